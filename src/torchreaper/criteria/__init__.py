"""Criteria: how filters are ranked. Higher score = dropped earlier."""

from torchreaper.criteria.base import Bank as Bank
from torchreaper.criteria.base import Criterion as Criterion
from torchreaper.criteria.base import make as make
from torchreaper.criteria.base import names as names
from torchreaper.criteria.base import register as register
from torchreaper.criteria.magnitude import Magnitude as Magnitude
from torchreaper.criteria.orthogonality import Orthogonality as Orthogonality
from torchreaper.criteria.random import Random as Random
from torchreaper.criteria.ranking import capacity as capacity
from torchreaper.criteria.ranking import quota as quota
from torchreaper.criteria.ranking import rounded as rounded
from torchreaper.criteria.ranking import select as select
from torchreaper.criteria.ranking import worst_first as worst_first

register("orthogonality", Orthogonality)
register("orthogonality-released", lambda: Orthogonality("released"))
register("orthogonality-corrected", lambda: Orthogonality("corrected"))
register("magnitude", Magnitude)
register("magnitude-l1", lambda: Magnitude(p=1))
register("random", Random)
