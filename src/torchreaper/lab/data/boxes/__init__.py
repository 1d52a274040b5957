"""Photographs with boxes around the objects on them: what detection is trained on and judged by."""

from torchreaper.lab.data.boxes.geometry import FILLING as FILLING
from torchreaper.lab.data.boxes.geometry import in_photographs as in_photographs
from torchreaper.lab.data.boxes.geometry import letterbox as letterbox
from torchreaper.lab.data.boxes.geometry import mirror as mirror
from torchreaper.lab.data.boxes.load import load_boxes as load_boxes
from torchreaper.lab.data.boxes.spec import BoxesSpec as BoxesSpec
from torchreaper.lab.data.boxes.split import BoxSplit as BoxSplit
from torchreaper.lab.data.boxes.split import check_box_augmentation as check_box_augmentation
