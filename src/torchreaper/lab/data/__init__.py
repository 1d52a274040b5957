"""Images: where they come from, how they are split, and how an epoch goes through them."""

from torchreaper.lab.data.batches import Augmentation as Augmentation
from torchreaper.lab.data.batches import FixedBatches as FixedBatches
from torchreaper.lab.data.batches import augment as augment
from torchreaper.lab.data.batches import batches as batches
from torchreaper.lab.data.batches import epoch_generator as epoch_generator
from torchreaper.lab.data.batches import epoch_seed as epoch_seed
from torchreaper.lab.data.batches import normalise as normalise
from torchreaper.lab.data.load import load as load
from torchreaper.lab.data.spec import DataSpec as DataSpec
from torchreaper.lab.data.split import Dataset as Dataset
from torchreaper.lab.data.split import Split as Split
from torchreaper.lab.data.table import Progress as Progress
