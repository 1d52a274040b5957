"""Numbers about the filters of a network (section 7 of the paper): no plots, nothing changes in the model."""

from torchreaper.analysis.agreement import Agreement as Agreement
from torchreaper.analysis.agreement import agreement as agreement
from torchreaper.analysis.agreement import by_layer as by_layer
from torchreaper.analysis.cca import between_runs as between_runs
from torchreaper.analysis.cca import canonical_correlations as canonical_correlations
from torchreaper.analysis.cca import chance_cca as chance_cca
from torchreaper.analysis.cca import pairwise_cca as pairwise_cca
from torchreaper.analysis.distribution import Distribution as Distribution
from torchreaper.analysis.distribution import distributions as distributions
from torchreaper.analysis.maps import feature_maps as feature_maps
from torchreaper.analysis.overlap import LayerOverlap as LayerOverlap
from torchreaper.analysis.overlap import layer_overlaps as layer_overlaps
from torchreaper.analysis.overlap import network_overlap as network_overlap
from torchreaper.analysis.overlap import present_overlap as present_overlap
from torchreaper.analysis.overlap import spread_of_mean as spread_of_mean
