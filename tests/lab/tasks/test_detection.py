"""Detectors in the lab: trained, judged, compared, gone on with; and one line for what does not fit the task."""

from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from tests.lab.models.test_faster_rcnn import made, watched
from tests.lab.schemes.test_resume import StopAfter, Stopped
from tests.vision_ops import with_operators
from torch import nn

from torchreaper.lab import inspection
from torchreaper.lab.average_precision import average_precision
from torchreaper.lab.compare import compare
from torchreaper.lab.environment import make_fabric
from torchreaper.lab.errors import UserError
from torchreaper.lab.models.detector import Detector
from torchreaper.lab.run import train
from torchreaper.lab.runs import read_events, read_metrics
from torchreaper.lab.tasks import TASKS
from torchreaper.lab.training import Run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def measured():
    pytest.importorskip("pycocotools")


def test_a_run_tells_average_precision_in_its_parts_and_goes_on_to_the_same_bits(boxes, tmp_path):
    whole = train(boxes(), scheme="repr", seed=0, out=tmp_path / "whole")
    assert whole["metric"] == "mAP"
    assert {"AP50", "AP75", "AP small", "AP cat", "AP dog"} <= whole["parts"].keys()
    for epoch in (1, 2):  # before and inside the sub-network phase
        with pytest.raises(Stopped):
            train(boxes(), scheme="repr", seed=0, out=tmp_path / "cut", progress=StopAfter(epoch))
    again = train(boxes(), scheme="repr", seed=0, out=tmp_path / "cut")
    assert (again["fingerprint"], again["parts"]) == (whole["fingerprint"], whole["parts"])
    lines = read_metrics(tmp_path / "cut" / "tiny" / "repr" / "seed-0")
    assert [line["phase"] for line in lines] == ["full", "sub", "full", "full"]
    assert {line["metric"] for line in lines} == {"mAP"}
    assert {line["train_accuracy"] for line in lines} == {None}
    (drop, _) = read_events(tmp_path / "cut" / "tiny" / "repr" / "seed-0")
    assert drop["filters"]
    assert not any(name.endswith("out") for name in drop["filters"])  # what says class and box


def test_it_is_judged_in_pixels_of_the_photographs(boxes):
    recipe = boxes()
    run = Run(recipe, recipe.training_spec("standard"), seed=0, device="cpu")
    truths, crowds, classes = run.test.truths(), run.test.crowds(), run.dataset.classes
    assert min(run.test.scale) < 1

    class Knowing(nn.Module):
        """Finds all that is there, in pixels of the input."""

        takes_targets, at = False, 0

        def forward(self, images):
            return images.mean()

        def loss(self, outputs, targets):
            return torch.tensor(0.5)

        def detections(self, outputs):
            scales = run.test.scale[self.at : self.at + 3]
            found = []
            for truth, scale in zip(truths[self.at : self.at + 3], scales):
                found.append(torch.cat([truth[:, :4] * scale, torch.ones(len(truth), 1), truth[:, 4:]], 1))
            self.at += 3
            return found

    how = {"classes": classes, "mean": run.mean, "std": run.std, "batch": 3}
    knowing = Knowing()
    judged = TASKS["detection"].judge(make_fabric("cpu", "32-true"), knowing, knowing, run.test, **how)
    assert (judged.loss, judged.score) == (0.5, pytest.approx(1.0))
    knowing.at = 0
    many = (*classes, "small", *map(str, range(20)))
    parts = (
        TASKS["detection"]
        .judge(make_fabric("cpu", "32-true"), knowing, knowing, run.test, **how | {"classes": many})
        .parts
    )
    assert set(parts) == set(judged.parts) - {f"AP {name}" for name in classes}, "of sizes, and of no class"
    assert "AP small" in parts
    half = [torch.cat([t[:, :4] * 2, torch.ones(len(t), 1), t[:, 4:]], 1) for t in truths]
    assert average_precision(half, truths, classes, crowd=crowds)["mAP"] < 0.5


@pytest.mark.parametrize("with_boxes", [slice(6, None), slice(4, 5)], ids=["the last", "none that is looked at"])
def test_the_gap_is_measured_on_training_images_that_have_boxes(boxes, coco, scenes, with_boxes, tmp_path):
    """A data set may begin with all photographs that have none; the mAP of those is no number, and not 0."""
    full = [scene if scene[2] else (*scene[:2], [[2, 2, 20, 20, "cat"]]) for scene in scenes["train"]]
    train_scenes = [scene if scene in full[with_boxes] else (*scene[:2], []) for scene in full]
    values = coco(scenes={"train": train_scenes, "test": scenes["test"]})
    recipe = boxes(scheme={"name": "standard"}, data=values)
    run = Run(recipe, recipe.training_spec("standard"), seed=0, device="cpu")
    asked = []

    def detections(outputs):
        asked.append(len(outputs[0]))
        return [torch.zeros(0, 6)] * len(outputs[0])

    run.module.detections = detections
    truths = run.train.truths()
    looked = run.task.judged_of_training(run.train, run.test)
    assert any(len(truths[one]) for one in (range(len(truths)) if looked is None else looked.tolist()))
    assert run._on_training(1) == 0.0
    assert sum(asked) == (10 if looked is None else 4)
    assert (looked is None) == (with_boxes == slice(4, 5))
    if looked is not None:
        assert looked.tolist() == [0, 2, 5, 7]


def test_judging_some_images_is_judging_those(boxes):
    recipe = boxes(scheme={"name": "standard"})
    run = Run(recipe, recipe.training_spec("standard"), seed=0, device="cpu")
    truths, seen = run.train.truths(), []

    def knowing(outputs):
        found = []
        for _ in range(len(outputs[0])):
            one = looked[len(seen)]
            seen.append(one)
            truth = truths[one]
            boxes = truth[:, :4] * run.train.scale[one]
            found.append(torch.cat([boxes, torch.ones(len(truth), 1), truth[:, 4:]], 1))
        return found

    run.module.detections = knowing
    looked = [one for one in range(len(truths)) if len(truths[one])][::-1]
    assert run._judged(run.train, 1, "training", torch.tensor(looked)).score == pytest.approx(1.0)
    assert seen == looked


def test_judging_leaves_training_alone(boxes, monkeypatch):
    """A network may sample boxes at random in its loss: training must not depend on how often it was judged."""
    recipe = boxes(scheme={"name": "standard"})
    run = Run(recipe, recipe.training_spec("standard"), seed=0, device="cpu")
    monkeypatch.setattr(run.module, "loss", lambda outputs, targets: torch.rand(()))
    before = torch.random.get_rng_state()
    first, second = (run._judged(run.test, 1, "test") for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert (first.loss, first.score) == (second.loss, second.score)


LOW = make_fabric("cpu", "bf16-mixed")


def test_fabric_rounds_no_target():
    network = SimpleNamespace(takes_targets=True)
    targets = torch.tensor([[[601.3, 101.2, 622.9, 130.4, 299.0]]])
    images, given = TASKS["detection"].arguments(network, torch.rand(1, 3, 4, 4), targets)
    images, kept = LOW.strategy.precision.convert_input((images, given))
    assert images.dtype == torch.bfloat16
    assert kept.dtype == torch.float32
    assert torch.equal(kept, targets)
    assert make_fabric("cpu", "64-true").strategy.precision.convert_input(given).dtype == torch.float64
    assert type(given[..., :4]) is type(given + 1) is torch.Tensor, "what is made of them is as always"
    assert (given + 0).to(torch.bfloat16).dtype == torch.bfloat16
    assert given.to(torch.zeros(1, dtype=torch.float16)).dtype == torch.float32
    assert TASKS["detection"].arguments(SimpleNamespace(takes_targets=False), images, targets) == (images,)


def test_faster_rcnn_in_fabric_learns_the_boxes_that_are_there(monkeypatch):
    """From the tensor of targets to the matcher, and out of it again: 640 pixels, corners that bfloat16 has not."""
    model = made(size=(64, 640))
    wrapped, matched = LOW.setup(model), watched(model, monkeypatch)
    images = torch.randn(1, 3, 64, 640, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[[601.3, 10.2, 622.9, 40.4, 1.0]]])
    arguments = TASKS["detection"].arguments(model, images, targets)
    found = []
    for call in (wrapped, model):
        with torch.random.fork_rng(), LOW.autocast(), torch.no_grad():
            torch.manual_seed(1)
            outputs = call.eval()(*arguments)
            found.append((model.loss(outputs, targets), *outputs.sampled.boxes, *model.detections(call(images))))
    for _, (truth,) in matched:
        assert torch.equal(truth["boxes"], targets[0, :, :4])
    assert len(matched) == 2
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), "in the wrapper and without it"
    *_, rows = found[0]
    corners = rows[:, :4][(rows[:, :4] > 512) & (rows[:, :4] < 640)]
    assert len(corners) > 4
    assert (corners % 4 == 0).float().mean() < 0.5


class Sloppy(nn.Module):
    """Finds one box, and counts and says it in whatever precision it is given."""

    takes_targets = True

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.tensor(20.0))
        self.said = []

    def forward(self, images, targets=None):
        return images.flatten(1).mean(1) + 7.03 + self.size

    def loss(self, outputs, targets):
        return (outputs * 1.01).mean()

    def detections(self, outputs):
        self.said.append((outputs * 1.01).tolist())
        return [torch.stack([one - 20, one - 20, one, one, 0.5 + 0 * one, 0 * one])[None] for one in outputs * 1.01]


def test_one_process_and_several_judge_alike(boxes):
    """Of several each calls the network without Fabric's wrapper."""
    recipe = boxes(scheme={"name": "standard"}, precision="bf16-mixed")
    run = Run(recipe, recipe.training_spec("standard"), seed=0, device="cpu")
    how = {"classes": run.dataset.classes, "mean": run.mean, "std": run.std, "batch": 3}
    sloppy = Sloppy()
    for network, wrapped in ((run.module, run.model), (sloppy, LOW.setup(sloppy))):
        one, several = (TASKS["detection"].judge(LOW, call, network, run.test, **how) for call in (wrapped, network))
        assert one == several
    half = len(sloppy.said) // 2
    assert sloppy.said[:half] == sloppy.said[half:]


def test_criteria_read_no_more_photographs_at_a_time_than_training(boxes, monkeypatch):
    scheme = {"name": "repr", "full": 1, "sub": 1, "cycles": 1, "criterion": "taylor", "images": 6}
    recipe, sizes, forward = boxes(scheme=scheme, batch=2), [], Detector.forward
    setup = Run(recipe, recipe.training_spec("repr"), seed=0, device="cpu")._setup(recipe.training_spec("repr"))
    assert {len(targets) for source in (setup.batches, setup.training) for _, targets in source} <= {1, 2}

    def counted(self, images):
        sizes.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Detector, "forward", counted)
    inspection.inspect(recipe)
    assert max(sizes) == 2
    assert sum(sizes) >= 6
    # How many are read at once must not change what a classifier loses.
    assert [TASKS[task].read_at_once(2) for task in TASKS] == [100, 2, 100]
    assert TASKS["detection"].read_at_once(1000) == 100


@pytest.mark.parametrize("criterion", ["taylor", "mean-activation", "oracle"])
def test_criteria_read_photographs_with_the_networks_own_loss(boxes, criterion):
    scheme = {"name": "repr", "full": 1, "sub": 1, "cycles": 1, "criterion": criterion, "images": 6}
    bank, preview = inspection.inspect(boxes(scheme=scheme))
    assert {layer.name.split(".")[0] for layer in bank.ranked} == {"backbone", "neck", "head"}
    assert sum(map(len, preview.filters.values())) == int(0.3 * sum(layer.filters for layer in bank.ranked))


def test_scope_is_the_part_that_repr_may_touch(boxes, tmp_path):
    train(boxes(scheme={"name": "repr", "full": 1, "sub": 1, "cycles": 1, "scope": "backbone"}), scheme="repr",
          seed=0, out=tmp_path)  # fmt: skip
    (drop, _) = read_events(tmp_path / "tiny" / "repr" / "seed-0")
    assert {name.split(".")[0] for name in drop["filters"]} == {"backbone"}


def test_a_comparison_speaks_of_map_and_has_its_parts(boxes, tmp_path):
    comparison = compare(boxes(epochs=3), ["standard", "repr"], 2, tmp_path)
    assert comparison.metric == "mAP"
    text = (tmp_path / "tiny" / "comparison.md").read_text()
    assert "test mAP %" in text
    assert "accuracy" not in text
    assert "| AP dog | repr |" in text
    (contrast,) = comparison.contrasts
    assert contrast.parts["AP dog"].n == 2
    head, *rows = (tmp_path / "tiny" / "comparison.csv").read_text().splitlines()
    assert "AP dog" in head.split(",")
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"source": {"epochs": 3}}, "source.leave: is missing; name the layers of the first detector that know its "),
        ({"augment": "crop-flip"}, "augment='crop-flip': cannot be used with task detection; use none or flip"),
        ({"model": {"name": "resnet20"}}, "model.name='resnet20': is a network for classification, the recipe's task "),
        ({"model": {"name": "timm:resnet18"}}, "model.name='timm:resnet18': is a network for classification, the "),
        (
            {"task": "classification"},
            "data.name='coco': is data of the task detection, the recipe's is classification; set task",
        ),
        ({"task": "vqa"}, "data.name='coco': is data of the task detection, the recipe's is vqa; set task"),
        ({"scheme": {"name": "kd"}}, "scheme='kd': is not for the task detection; leave it out"),
        ({"scheme": {"name": "mixup"}}, "scheme='mixup': is not for the task detection; leave it out"),
        ({"scheme": {"name": "ema+cutmix"}}, "scheme='ema+cutmix': is not for the task detection"),
        ({"task": "segmentation"}, "task='segmentation': must be 'classification', 'detection' or 'vqa'"),
        ({"data": {"name": "coca"}}, "data.name='coca': must be 'coco', 'parquet' or 'hub'"),
        (
            {"data": {"name": "digits"}},
            "data.name='digits': is data of the task classification, the recipe's is detection; set task",
        ),
    ],
)
def test_what_does_not_fit_the_task_is_one_line(boxes, changes, text):
    with pytest.raises(UserError) as error:
        boxes(**changes)
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


def test_photographs_are_judged_few_at_a_time(boxes, questions):
    assert (boxes().eval_batch, questions().eval_batch) == (16, 1000)
    of_pictures = {"task": "classification", "data": {"name": "digits"}, "model": {"name": "cnet"}, "leave": []}
    assert boxes(source=of_pictures).first().eval_batch == 1000


def test_a_network_of_the_users_own_has_to_be_a_detector(boxes, tmp_path, monkeypatch):
    (tmp_path / "mydetectors.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Plain(nn.Module):\n"
        "    def __init__(self, classes, image_size):\n        super().__init__()\n"
        "        self.conv, self.size = nn.Conv2d(3, 4, 3), image_size\n"
        "    def forward(self, images):\n        return self.conv(images)\n"
        "class Vague(Plain):\n"
        "    def loss(self, outputs, targets):\n        return outputs.mean()\n"
        "    def detections(self, outputs):\n        return outputs\n"
        "class Whole(Vague):\n"
        "    def detections(self, outputs):\n"
        "        return [torch.tensor([[1.0, 1.0, 9.0, 9.0, 0.5, 0.0]]) for _ in outputs]\n"
        # What is wrong with these is seen on more images than the two of noise.
        "class Few(Whole):\n"
        "    def detections(self, outputs):\n        return super().detections(outputs)[:2]\n"
        "class Other(Whole):\n"
        "    def detections(self, outputs):\n"
        "        found = super().detections(outputs)\n"
        "        return found[:2] + [one + torch.tensor([0, 0, 0, 0, 0, 7.0]) for one in found[2:]]\n"
        "class Lost(Whole):\n"
        "    def detections(self, outputs):\n"
        "        found = super().detections(outputs)\n"
        "        return found[:2] + [one * torch.nan for one in found[2:]]\n"
        "class Pixels(Whole):\n"
        "    def detections(self, outputs):\n"
        "        return [torch.tensor([[1, 1, 9, 9, 1, 0]]) for _ in outputs]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(name):
        recipe = boxes(model={"name": f"mydetectors:{name}"}, scheme={"name": "standard"})
        return train(recipe, scheme="standard", seed=0, out=tmp_path / name)

    with pytest.raises(UserError, match=r"^model\.name='mydetectors:Plain': has no loss; must be a module with loss\("):
        run("Plain")
    with pytest.raises(UserError, match=r"its detections in 2 images are torch\.float32 of shape .*; must be a list"):
        run("Vague")
    assert run("Whole")["metric"] == "mAP"
    assert run("Pixels")["metric"] == "mAP"
    for name, what in {"Few": "a list of torch.float32", "Other": "of class 7", "Lost": "not finite"}.items():
        with pytest.raises(UserError, match=rf"^model: its detections in \d+ images are {what}.*; must be a list of "):
            run(name)


@pytest.mark.slow
def test_faster_rcnn_in_mixed_precision_is_judged_alike_after_training(boxes):
    with_operators()
    options = {"backbone": "resnet18", "anchor": 8, "proposals": 60, "samples": 16, "min_score": 0.0}
    recipe = boxes(
        model={"name": "faster-rcnn-fpn", "options": options},
        scheme={"name": "standard"},
        precision="bf16-mixed",
        batch=2,
        optim={"name": "sgd", "lr": 1e-3},
        grad_clip=10.0,
    )
    run = Run(recipe, recipe.training_spec("standard"), seed=0, device="cpu")
    for inputs, targets in islice(run._batches(0, 1, run.share), 4):
        loss, _ = run._step(inputs, targets)
        assert loss.isfinite()
    how = {"classes": run.dataset.classes, "mean": run.mean, "std": run.std, "batch": 3}
    one, several = (
        TASKS["detection"].judge(LOW, call, run.module, run.test, **how) for call in (run.model, run.module)
    )
    assert one == several
    assert one.loss > 0


@pytest.mark.slow
def test_faster_rcnn_trains_in_a_run_with_its_backbone_alone(boxes, tmp_path):
    with_operators()
    model = {
        "name": "faster-rcnn-fpn",
        "options": {"backbone": "resnet18", "anchor": 8, "proposals": 30, "samples": 16},
    }
    scheme = {"name": "repr", "full": 1, "sub": 1, "cycles": 1, "scope": "backbone", "criterion": "taylor", "images": 4}
    recipe = boxes(model=model, scheme=scheme, epochs=3, batch=2, optim={"name": "sgd", "lr": 1e-3}, grad_clip=10.0)
    whole = train(recipe, scheme="repr", seed=0, out=tmp_path / "whole")
    with pytest.raises(Stopped):
        train(recipe, scheme="repr", seed=0, out=tmp_path / "cut", progress=StopAfter(2))
    assert train(recipe, scheme="repr", seed=0, out=tmp_path / "cut")["fingerprint"] == whole["fingerprint"]
    (drop, _) = read_events(tmp_path / "cut" / "tiny" / "repr" / "seed-0")
    assert {name.split(".")[0] for name in drop["filters"]} == {"backbone"}
