"""Being without some filters: masked (zeros at full width) or compact (really smaller), by one plan.

:mod:`modes` decides which, :mod:`plan` says what goes, :mod:`parts` takes it out of a tensor, :mod:`leaves` and
:mod:`moments` do so for modules and optimizers, and :class:`Subnetwork` for a whole model.
"""

from torchreaper.subnetwork.subnetwork import Subnetwork as Subnetwork
