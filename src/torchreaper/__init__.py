"""torchreaper: RePr, a training method for convolutional networks, for any PyTorch training loop."""

from torchreaper import analysis as analysis
from torchreaper import criteria as criteria
from torchreaper.bank import FilterBank as FilterBank
from torchreaper.bank import Preview as Preview
from torchreaper.bank import find_filters as find_filters
from torchreaper.candidates import Candidates as Candidates
from torchreaper.cost import Cost as Cost
from torchreaper.errors import NoEffectWarning as NoEffectWarning
from torchreaper.errors import OneLayerWarning as OneLayerWarning
from torchreaper.errors import ReaperError as ReaperError
from torchreaper.filters import FilterLayer as FilterLayer
from torchreaper.geometry import expected_overlap as expected_overlap
from torchreaper.geometry import overlap as overlap
from torchreaper.ranks import rewrapped as rewrapped
from torchreaper.reinit import METHODS as METHODS
from torchreaper.reinit import Reinit as Reinit
from torchreaper.scheme import RePr as RePr
from torchreaper.state import elementwise as elementwise
from torchreaper.transitions import Transition as Transition

__version__ = "0.1.0"
