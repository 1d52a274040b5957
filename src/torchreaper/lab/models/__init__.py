"""Networks: the paper's, at their published sizes; those of timm and torchvision; the user's own."""

from torchreaper.lab.models.callable_ import build_callable as build_callable
from torchreaper.lab.models.callable_ import is_callable as is_callable
from torchreaper.lab.models.cnet import CNet as CNet
from torchreaper.lab.models.cnet import CNetOptions as CNetOptions
from torchreaper.lab.models.cnet import cnet as cnet
from torchreaper.lab.models.densenet import DenseNet as DenseNet
from torchreaper.lab.models.densenet import DenseNet5Options as DenseNet5Options
from torchreaper.lab.models.densenet import DenseNetOptions as DenseNetOptions
from torchreaper.lab.models.densenet import densenet as densenet
from torchreaper.lab.models.detector import Detector as Detector
from torchreaper.lab.models.detector import DetectorOptions as DetectorOptions
from torchreaper.lab.models.detector import detector as detector
from torchreaper.lab.models.faster_rcnn import FasterRCNN as FasterRCNN
from torchreaper.lab.models.faster_rcnn import FasterRCNNOptions as FasterRCNNOptions
from torchreaper.lab.models.faster_rcnn import faster_rcnn as faster_rcnn
from torchreaper.lab.models.imagenet_resnet import ImageNetResNet as ImageNetResNet
from torchreaper.lab.models.imagenet_resnet import ImageNetResNetOptions as ImageNetResNetOptions
from torchreaper.lab.models.imagenet_resnet import imagenet_resnet as imagenet_resnet
from torchreaper.lab.models.inception import InceptionV1 as InceptionV1
from torchreaper.lab.models.inception import InceptionV1Options as InceptionV1Options
from torchreaper.lab.models.inception import InceptionV2 as InceptionV2
from torchreaper.lab.models.inception import InceptionV2Options as InceptionV2Options
from torchreaper.lab.models.inception import inception_v1 as inception_v1
from torchreaper.lab.models.inception import inception_v2 as inception_v2
from torchreaper.lab.models.layout import in_channels_last as in_channels_last
from torchreaper.lab.models.mobilenet_v2 import MobileNetV2 as MobileNetV2
from torchreaper.lab.models.mobilenet_v2 import MobileNetV2Options as MobileNetV2Options
from torchreaper.lab.models.mobilenet_v2 import mobilenet_v2 as mobilenet_v2
from torchreaper.lab.models.resnet import ResNet as ResNet
from torchreaper.lab.models.resnet import ResNetOptions as ResNetOptions
from torchreaper.lab.models.resnet import resnet as resnet
from torchreaper.lab.models.spec import MODELS as MODELS
from torchreaper.lab.models.spec import Builder as Builder
from torchreaper.lab.models.spec import ModelSpec as ModelSpec
from torchreaper.lab.models.spec import build as build
from torchreaper.lab.models.vgg import VGG16 as VGG16
from torchreaper.lab.models.vgg import VGG16Options as VGG16Options
from torchreaper.lab.models.vgg import vgg16 as vgg16
from torchreaper.lab.models.vqa import VQA as VQA
from torchreaper.lab.models.vqa import VQAOptions as VQAOptions
from torchreaper.lab.models.vqa import vqa as vqa

# Here, as it is built around another network of the table.
MODELS["vqa"] = Builder(VQAOptions, vqa, "vqa")
