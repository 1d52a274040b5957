"""Images: where they come from, how they are split, and how an epoch goes through them."""

from torchreaper.lab.data.augment import Augmentation as Augmentation
from torchreaper.lab.data.augment import augment as augment
from torchreaper.lab.data.augment import epoch_generator as epoch_generator
from torchreaper.lab.data.augment import epoch_seed as epoch_seed
from torchreaper.lab.data.batches import FixedBatches as FixedBatches
from torchreaper.lab.data.batches import batches as batches
from torchreaper.lab.data.batches import check_augmentation as check_augmentation
from torchreaper.lab.data.batches import first as first
from torchreaper.lab.data.batches import judging as judging
from torchreaper.lab.data.batches import normalise as normalise
from torchreaper.lab.data.batches import training as training
from torchreaper.lab.data.boxes import BoxesSpec as BoxesSpec
from torchreaper.lab.data.boxes import BoxSplit as BoxSplit
from torchreaper.lab.data.boxes import load_boxes as load_boxes
from torchreaper.lab.data.boxes.spec import NAMES as _BOXES
from torchreaper.lab.data.load import load as load
from torchreaper.lab.data.questions import Questions as Questions
from torchreaper.lab.data.questions import QuestionsData as QuestionsData
from torchreaper.lab.data.questions import QuestionsSpec as QuestionsSpec
from torchreaper.lab.data.questions import load_questions as load_questions
from torchreaper.lab.data.questions.spec import NAMES as _QUESTIONS
from torchreaper.lab.data.spec import NAMES as _IMAGES
from torchreaper.lab.data.spec import DataSpec as DataSpec
from torchreaper.lab.data.split import WHOLE as WHOLE
from torchreaper.lab.data.split import Dataset as Dataset
from torchreaper.lab.data.split import Readable as Readable
from torchreaper.lab.data.split import Share as Share
from torchreaper.lab.data.split import Split as Split
from torchreaper.lab.data.table import Progress as Progress

#: What images may go through without their targets becoming wrong, by task.
AUGMENTATIONS: dict[str, tuple[Augmentation, ...]] = {
    "classification": ("none", "flip", "crop-flip", "resized-crop"),
    "detection": ("none", "flip"),
    "vqa": ("none",),
}
#: The `data:` section of a recipe, by its task.
SPECS: dict[str, type[DataSpec | BoxesSpec | QuestionsSpec]] = {
    "classification": DataSpec,
    "detection": BoxesSpec,
    "vqa": QuestionsSpec,
}
#: What data are called in that section, by task; beside ``package.module:callable`` of classification.
NAMES: dict[str, tuple[str, ...]] = {"classification": _IMAGES, "detection": _BOXES, "vqa": _QUESTIONS}
