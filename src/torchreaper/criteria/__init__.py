"""Criteria: how filters are ranked. Higher score = dropped earlier."""

from torchreaper.criteria.activation import APoZ as APoZ
from torchreaper.criteria.activation import MeanActivation as MeanActivation
from torchreaper.criteria.base import Bank as Bank
from torchreaper.criteria.base import Criterion as Criterion
from torchreaper.criteria.base import make as make
from torchreaper.criteria.base import names as names
from torchreaper.criteria.base import needs_data as needs_data
from torchreaper.criteria.base import register as register
from torchreaper.criteria.correlation import ActivationCorrelation as ActivationCorrelation
from torchreaper.criteria.data import FromData as FromData
from torchreaper.criteria.gradient import Gradient as Gradient
from torchreaper.criteria.gradient import Taylor as Taylor
from torchreaper.criteria.hessian import Hessian as Hessian
from torchreaper.criteria.magnitude import Magnitude as Magnitude
from torchreaper.criteria.median import GeometricMedian as GeometricMedian
from torchreaper.criteria.oracle import Oracle as Oracle
from torchreaper.criteria.orthogonality import Orthogonality as Orthogonality
from torchreaper.criteria.random import Random as Random
from torchreaper.criteria.ranking import capacity as capacity
from torchreaper.criteria.ranking import quota as quota
from torchreaper.criteria.ranking import rounded as rounded
from torchreaper.criteria.ranking import select as select
from torchreaper.criteria.ranking import worst_first as worst_first
from torchreaper.criteria.reversed import Reversed as Reversed
from torchreaper.criteria.scale import BatchNormScale as BatchNormScale
from torchreaper.criteria.turns import InTurn as InTurn

register("orthogonality", Orthogonality)
register("orthogonality-released", lambda: Orthogonality("released"))
register("orthogonality-corrected", lambda: Orthogonality("corrected"))
register("orthogonality-reversed", lambda: Reversed(Orthogonality()))
register("magnitude", Magnitude)
register("magnitude-l1", lambda: Magnitude(p=1))
register("random", Random)
register("in-turn", InTurn)
register("geometric-median", GeometricMedian)
register("batchnorm-scale", BatchNormScale)
register("mean-activation", MeanActivation, data=True)
register("apoz", APoZ, data=True)
register("activation-correlation", ActivationCorrelation, data=True)
register("gradient", Gradient, data=True)
register("taylor", Taylor, data=True)
register("hessian", Hessian, data=True)
register("oracle", Oracle, data=True)
register("oracle-loss", lambda batches, loss_fn: Oracle(batches, loss_fn, measure="loss"), data=True)
