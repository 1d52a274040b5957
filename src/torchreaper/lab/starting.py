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
from torchreaper.lab.recipe import names_folder
from torchreaper.lab.settings import did_you_mean, parse, show

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
_SUMS = "skip: [first, full-width]"
_WHY = "  # not the first layer; in residual networks: nor filters that end in a sum\n"
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
#   judge: validation # judge on `validation` held-out images while you choose settings, on the test images at the end

model:
{model}# Other networks:
#   {{name: resnet20}}                                   # the zoo: {zoo}
#   {{name: "timm:resnet18"}}                            # any convnet of timm (pip install timm)
#   {{name: "torchvision:resnet18"}}                     # or of torchvision
#   {{name: mypackage.mymodule:make, options: {{width: 32}}}}  # your own function or class

epochs: 40            # times that training goes through all images, for every scheme alike
batch: 25             # images in one step
augment: none         # crop-flip: random crops and mirror images (not for digits); resized-crop: ImageNet's
{judging}
optim:
  name: sgd           # or adam, adamw, rmsprop
  lr: 0.02            # learning rate
  momentum: 0.9
  weight_decay: 0.0

schedule:
  name: trapezoid     # or: constant; cosine; step with milestones: [20, 30]
  fall: 8             # the last epochs, in which it falls to 0: RePr wants its filters back before

scheme:               # how `reaper train` trains; `reaper compare` adds "standard", the usual way
  name: repr
  full: 2             # epochs with the whole network; then the filters that overlap most are dropped,
  sub: 2              # epochs without them; then they come back, pointing where no other filter points
  cycles: 8           # how often: back for good after epoch 32 of 40
  fraction: 0.3       # share of the filters that goes each time
  criterion: orthogonality
{skip}
schemes:              # others: reaper compare {file} --schemes all
  repr-random: {{name: repr, full: 2, sub: 2, cycles: 8, criterion: random{too}}}
  shorter: {{factor: 0.4}}
  weight-decay: {{value: 0.01}}
# The first: does it matter which filters go? The second, standard training in 0.4 of the epochs: or when to stop?
# The third: or is it weight decay that is missing? Try some values, and each with RePr too: weight-decay+repr.
# `reaper schemes` lists all there are, `reaper schemes NAME` the options of one.

seeds: 3              # trainings per scheme, from different random starts; one alone would prove nothing
report: last          # judge by the last epoch; validation: by the best one on data.validation held-out images
"""

_BOXES = """\
# What to compare, and how. `reaper compare {file}` trains the detector with every scheme and seed named below
# and says whether they differ, in average precision; `reaper inspect {file}` shows first which filters there are.
name: {stem}  # the runs go to <out>/{stem}/<scheme>/seed-<k>
task: detection

data:
  name: coco          # COCO's JSON beside a folder of the pictures; paths start at this file's folder
  train: annotations/train.json
  train_images: train
  test: annotations/test.json
  test_images: test
  size: [240, 320]    # height and width of the input; photographs keep their proportions, the rest is grey
# Other data; `limit`, `test_limit` and `validation` work with all of them:
#   {{name: parquet, train: train-*.parquet, test: test-*.parquet, size: 320}}  # a column of pictures, one of objects
#   {{name: hub, hub: cppe-5, size: 320}}                                       # downloaded from huggingface.co
#   memory: false     # read photographs when they are needed, if all together do not fit
#   judge: validation # judge on `validation` held-out images while you choose settings, on the test images at the end

model:
  name: {model}
  options: {{}}         # its options; leave them out for the defaults
# Other detectors:
#   {{name: detector, options: {{width: 16}}}}                                      # small; trains on a CPU
#   {{name: faster-rcnn-fpn, options: {{backbone: resnet50, weights: imagenet}}}}   # downloads torchvision's weights
#   {{name: mypackage.mymodule:make}}                                             # your own: docs/other-tasks.md

epochs: 30            # times that training goes through all photographs, for every scheme alike
batch: 8              # photographs in one step
augment: flip         # mirror images; or none
eval_batch: 8         # photographs at a time when the detector is judged

optim:
  name: adamw         # or adam, sgd, rmsprop
  lr: 0.002           # learning rate; torchvision's detectors: 0.0002
  weight_decay: 0.0001

schedule:
  name: trapezoid     # or: cosine; constant; step with milestones: [15, 25]
  fall: 12            # the last epochs, in which it falls to 0: RePr wants its filters back before
  warmup: 1

scheme:               # how `reaper train` trains; `reaper compare` adds "standard", the usual way
  name: repr
  full: 6             # epochs with the whole network; then the filters that overlap most are dropped,
  sub: 3              # epochs without them; then they come back, pointing where no other filter points
  cycles: 2           # how often: back for good after epoch 18 of 30
  fraction: 0.3       # share of the filters that goes each time
  scope: null         # or backbone: touch that part only
  max_per_layer: 0.5  # leave half of every layer: narrow ones would nearly vanish

seeds: 3              # trainings per scheme, from different random starts; one alone would prove nothing
report: last          # judge by the last epoch; validation: by the best one on data.validation held-out images
"""
_QUESTIONS = """\
# What to compare, and how. `reaper compare {file}` trains the network with every scheme and seed named below
# and says whether they differ; `reaper inspect {file}` shows first which filters there are.
name: {stem}  # the runs go to <out>/{stem}/<scheme>/seed-<k>
task: vqa

data:
  name: easy-vqa      # pictures of shapes and questions about them; pip install easy-vqa
  limit: 10000        # learn from so many questions only; leave it out for all
# Other data:
#   {{name: easy-vqa, path: mine}}   # your own, in the same form: train and test, each with questions.json and images/
#   judge: validation # judge on `validation` held-out questions while you choose settings, on the test ones at the end
# VQA v1 and v2 by path: see `reaper recipes`, profile v1 of paper/vqa

model:
  name: {model}
{options}
epochs: 12            # times that training goes through all questions, for every scheme alike
batch: 32             # questions in one step
eval_batch: 250       # questions at a time when the network is judged

optim:
  name: adam          # or adamw, sgd, rmsprop
  lr: 0.001           # learning rate

schedule:
  name: trapezoid     # or: constant; step with milestones: [8, 10]; cosine
  fall: 6             # the last epochs, in which it falls to 0: RePr wants its filters back before

scheme:               # how `reaper train` trains; `reaper compare` adds "standard", the usual way
  name: repr
  full: 2             # epochs with the whole network; then the filters that overlap most are dropped,
  sub: 1              # epochs without them; then they come back, pointing where no other filter points
  cycles: 2           # how often: back for good after epoch 6 of 12
  fraction: 0.3       # share of the filters that goes each time
  scope: cnn          # the part that looks at the picture

seeds: 3              # trainings per scheme, from different random starts; one alone would prove nothing
report: last          # judge by the last epoch; validation: by the best one on data.validation held-out questions
"""
_OPTIONS = """\
  options:
    cnn: {name: cnet, options: {depth: 4, width: 16, pool: true}}  # what looks at the picture: any classifier
"""
_OWN_OPTIONS = """\
  options: {}         # arguments of your callable: docs/other-tasks.md
"""
#: Data of other tasks than classification: the text of a recipe, and the network where none is named.
_OTHER_TASKS = {"coco": (_BOXES, "detector"), "easy-vqa": (_QUESTIONS, "vqa")}
DEFAULT = "cnet"
_LONGEST_NAME = 80  # profiles put theirs behind it


def recipe_text(file: str, *, model: str | None = None, data: str = "digits") -> str:
    """A recipe for the file ``file``, with this network, or a small one, and these data.

    Raises:
        UserError: no such network, no such data, or a name that no comment can hold.
    """
    if not file.isprintable():
        raise UserError(f"file={show(file)}: must be a name that can be printed; choose another")
    usual = _OTHER_TASKS.get(data, ("", DEFAULT))[1]
    model = usual if model is None else model
    spec = parse(ModelSpec, {"name": model}, at="model")
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", Path(file).stem)[:_LONGEST_NAME].lstrip("._-").rstrip(".") or "recipe"
    stem = stem if names_folder(stem) else f"recipe-{stem}"  # con.yaml
    stem = stem if stem[0].isalpha() and yaml.safe_load(stem) == stem else f"'{stem}'"  # 2024.yaml, yes.yaml
    if data in _OTHER_TASKS:
        task = MODELS[usual].task
        if spec.tasks and task not in spec.tasks:
            near = ", ".join(name for name, builder in MODELS.items() if builder.task == task)
            raise UserError(f"model={model!r}: is not for data={data!r}; choose {near}, or package.module:callable")
        options = _OPTIONS if model in MODELS else _OWN_OPTIONS
        return _OTHER_TASKS[data][0].format(file=shlex.quote(file), stem=stem, model=model, options=options)
    own = ":" in data
    if own:
        parse(DataSpec, {"name": data}, at="data")
    elif data not in _DATA:
        known = did_you_mean(data, [*_DATA, *_OTHER_TASKS])
        raise UserError(f"data={data!r}: unknown data; {known}, package.module:callable")
    if spec.tasks not in ((), ("classification",)):
        (other,) = (name for name, (_, usual) in _OTHER_TASKS.items() if MODELS[usual].task in spec.tasks)
        raise UserError(f"model={model!r}: is a network for {spec.tasks[0]}; give --data {other} with it")
    template = _MODEL.get(model, _ZOO_MODEL if model in MODELS else _OTHER_MODEL)
    residual = "resne" in model  # resnets and resnexts, their relatives too
    return _TEXT.format(
        file=shlex.quote(file),
        stem=stem,
        data=_OWN_DATA.format(name=data) if own else _DATA[data],
        model=template if model in _MODEL else template.format(name=model),
        zoo=f"{', '.join(list(MODELS)[1:3])}, densenet40, vgg16, ...",
        skip=f"  {'' if residual else '# '}{_SUMS}{_WHY}",
        too=f", {_SUMS}" if residual else "",
        judging=_JUDGING if data == "folder" or own else "",
    )


def start(path: Path, *, model: str | None = None, data: str = "digits") -> None:
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
