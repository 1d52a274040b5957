"""A recipe to start from: whole as it stands, with a comment on every line and what else could stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml

from torchreaper.lab.data import DataSpec
from torchreaper.lab.errors import UserError, remedy
from torchreaper.lab.files import write_new
from torchreaper.lab.models import MODELS, ModelSpec
from torchreaper.lab.settings import parse

_DATA = {
    "digits": """\
  name: digits        # scikit-learn's 1,797 pictures of 8x8 pixels; nothing is downloaded
  limit: 200          # train on so many of them only, as many of each class; leave it out for all
""",
    "folder": """\
  name: folder        # pictures in folders, a subfolder for each class: train/cat/1.jpg, train/dog/7.png, ...
  train: train        # paths start at this file's folder
  test: test
  size: 64            # bring all to 64x64 pixels: the shorter side, then the middle
  validation: 0       # so many training images are held out: criteria that read images read these
""",
    "parquet": """\
  name: parquet       # files with a column of images and one of labels, as on huggingface.co
  train: train-*.parquet  # paths start at this file's folder
  test: test-*.parquet
""",
    "hub": """\
  name: hub           # a data set of huggingface.co, downloaded once
  hub: uoft-cs/cifar10
  limit: 5000         # train on so many of them only, as many of each class; leave it out for all
""",
}
_OWN_DATA = """\
  name: {name}  # your own code, beside this file or installed: it returns two torch data sets (train, test)
  options: {{}}         # its arguments, such as {{root: pictures}}
"""
_MODEL = {
    "cnet": """\
  name: cnet          # the paper's plain network: convolutions, then one fully connected layer
  options: {depth: 3, width: 16, kernel: 3, batch_norm: true}  # `reaper inspect cnet` shows what they make
""",
}
_ZOO_MODEL = """\
  name: {name}
  options: {{}}         # its options; leave them out for the published network
"""
_OTHER_MODEL = """\
  name: {name}
  options: {{}}         # arguments of the function or class that makes it; channels and classes come from the data
"""
_JUDGING = "eval_batch: 100       # images at a time when the network is judged\n"
_TEXT = """\
# What to compare, and how. `reaper compare {file}` trains the network with every scheme and seed named below
# and says whether they differ; `reaper inspect {file}` shows first which filters there are.
name: {stem}  # the runs go to <out>/{stem}/<scheme>/seed-<k>

data:
{data}# Other data; `size`, `limit`, `test_limit` and `validation` work with all of them:
#   {{name: folder, train: train, test: test, size: 64}}              # pictures, a subfolder for each class
#   {{name: parquet, train: train-*.parquet, test: test-*.parquet}}   # files as on huggingface.co
#   {{name: hub, hub: uoft-cs/cifar10}}                               # downloaded from there
#   {{name: mypackage.mymodule:make, options: {{root: pictures}}}}      # your own: returns two torch data sets
#   memory: false     # with any but digits: read images when they are needed, if all together do not fit

model:
{model}# Other networks:
#   {{name: resnet20}}                                   # the zoo: {zoo}
#   {{name: "timm:resnet18"}}                            # any convnet of timm (pip install timm)
#   {{name: "torchvision:resnet18"}}                     # or of torchvision
#   {{name: mypackage.mymodule:make, options: {{width: 32}}}}  # your own function or class

epochs: 30            # times that training goes through all images, for every scheme alike
batch: 25             # images in one step
augment: none         # crop-flip: random crops and mirror images (not for digits); resized-crop: ImageNet's
{judging}
optim:
  name: sgd           # or adam, adamw, rmsprop
  lr: 0.02            # learning rate
  momentum: 0.9
  weight_decay: 0.0

schedule:
  name: constant      # or: step with milestones: [15, 25]; cosine; halving with every: 1000

scheme:               # how `reaper train` trains; `reaper compare` adds "standard", the usual way
  name: repr
  full: 5             # epochs with the whole network; then the filters that overlap most are dropped,
  sub: 3              # epochs without them; then they come back, pointing where no other filter points
  cycles: 3           # how often; a whole network must be left at the end, with some epochs to settle
  fraction: 0.3       # share of the filters that goes each time
  criterion: orthogonality

schemes:              # others, by a name of yours: reaper compare {file} --schemes standard,repr,repr-random
  repr-random: {{name: repr, full: 5, sub: 3, cycles: 3, criterion: random}}  # do the chosen filters matter?
# `reaper schemes` lists all there are, `reaper schemes NAME` the options of one.

seeds: 3              # trainings per scheme, from different random starts; one alone would prove nothing
report: last          # judge by the last epoch; validation: by the best one on data.validation held-out images
"""


def recipe_text(file: str, *, model: str = "cnet", data: str = "digits") -> str:
    """A recipe for the file ``file``, with this network and these data.

    Raises:
        UserError: no such network, or no such data.
    """
    parse(ModelSpec, {"name": model}, at="model")
    own = ":" in data
    if own or data not in _DATA:
        parse(DataSpec, {"name": data}, at="data")
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", Path(file).stem).lstrip("._-") or "recipe"
    template = _MODEL.get(model, _ZOO_MODEL if model in MODELS else _OTHER_MODEL)
    return _TEXT.format(
        file=shlex.quote(file),
        stem=stem if stem[0].isalpha() and yaml.safe_load(stem) == stem else f"'{stem}'",  # 2024.yaml, yes.yaml
        data=_OWN_DATA.format(name=data) if own else _DATA[data],
        model=template if model in _MODEL else template.format(name=model),
        zoo=f"{', '.join(list(MODELS)[1:3])}, densenet40, vgg16, ...",
        judging=_JUDGING if data == "folder" or own else "",
    )


def start(path: Path, *, model: str = "cnet", data: str = "digits") -> None:
    """Write such a recipe to ``path``.

    Raises:
        UserError: the file is there already, or cannot be written; or as in `recipe_text`.
    """
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise UserError(f"file={str(path)!r}: must end in .yaml")
    text = recipe_text(path.name, model=model, data=data)
    try:
        write_new(path, text.encode())
    except FileExistsError:
        raise UserError(f"file={str(path)!r}: is there already; choose another name, or delete it") from None
    except OSError as error:
        what = remedy(error, "choose another place")
        raise UserError(f"file={str(path)!r}: cannot be written ({error.strerror}); {what}") from None
