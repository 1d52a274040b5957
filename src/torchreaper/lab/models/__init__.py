"""The paper's networks, at their published sizes."""

from torchreaper.lab.models.cnet import CNet as CNet
from torchreaper.lab.models.cnet import CNetOptions as CNetOptions
from torchreaper.lab.models.cnet import cnet as cnet
from torchreaper.lab.models.resnet import ResNet as ResNet
from torchreaper.lab.models.resnet import ResNetOptions as ResNetOptions
from torchreaper.lab.models.resnet import resnet as resnet
from torchreaper.lab.models.spec import MODELS as MODELS
from torchreaper.lab.models.spec import ModelSpec as ModelSpec
from torchreaper.lab.models.spec import build as build
