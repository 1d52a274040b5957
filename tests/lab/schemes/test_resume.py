"""Every scheme and a dozen combinations, stopped after an epoch and gone on with: the same bits, in both modes."""

import pytest
from tests.lab.tiny import ADAMW, recipe

from torchreaper.lab.progress import NullProgress
from torchreaper.lab.run import train
from torchreaper.lab.runs import folder_of, read_metrics
from torchreaper.lab.schemes import SCHEMES

SETTINGS = {
    "dsd": {"dense": 1, "sparse": 2, "cycles": 1},
    "ban": {"generations": 2},
    "kd": {"teacher": {"model": {"name": "cnet", "options": {"depth": 2, "width": 8}}, "epochs": 2}},
    "sfp": {"until": 0.9},
    "swa": {"start": 0.2},
    "longer": {"factor": 1.2},
    "self-kd": {"start": 1, "every": 2},
    "ema": {"decay": 0.8},
    "ol": {"strength": 0.05},
    "at-once": {"name": "repr", "full": 1, "sub": 0, "cycles": 3, "criterion": "orthogonality-reversed"},
}
TOUCHING = ("dsd", "ban", "sfp", "grafting", "ema", "swa", "sam", "repr+ema", "repr+swa", "repr+sam", "ban+sam")
WITH_REPR = (
    *("repr", "self-kd+repr", "repr+kd", "repr+ol", "repr+ema", "repr+swa", "repr+sam", "repr+dropout", "repr+mixup"),
    *("ema+repr+sam", "repr+longer", "repr+kd+ol+ema+sam+dropout+mixup+label-smoothing"),
)
OTHERS = (
    *(key for key in SCHEMES if key not in ("standard", "repr")),
    *(
        "at-once",
        "ban+cutmix",
        "dsd+swa+label-smoothing",
        "grafting+ema",
        "sfp+sam",
        "kd+longer",
        "mixup+label-smoothing+swa",
    ),
)


class Stopped(Exception):  # noqa: N818  (nothing went wrong)
    pass


class StopAfter(NullProgress):
    """Ends a run after an epoch; not its teacher's."""

    def __init__(self, epoch):
        self.at, self.is_teacher = epoch, False

    def start_run(self, name, epochs, steps, done):
        self.is_teacher = name.startswith("teacher-")

    def epoch(self, metrics):
        if metrics["epoch"] == self.at and not self.is_teacher:
            raise Stopped


def numbers(folder):
    """All that was measured but times."""
    times = ("seconds", "images_per_second")
    return [{key: value for key, value in line.items() if key not in times} for line in read_metrics(folder)]


def check(what, scheme, out):
    """The run in one go, and stopped after every epoch."""
    whole = train(what, scheme=scheme, seed=0, out=out / "whole")
    for epoch in range(1, whole["epochs"]):
        with pytest.raises(Stopped):
            train(what, scheme=scheme, seed=0, out=out / "parts", progress=StopAfter(epoch))
    parts = train(what, scheme=scheme, seed=0, out=out / "parts")
    for key in ("fingerprint", "epochs", "reported_epoch", "test_accuracy", "train_accuracy"):
        assert parts[key] == whole[key]
    first, second = (numbers(folder_of(out / place, "tiny", scheme, 0)) for place in ("whole", "parts"))
    assert first == second
    assert len(first) == whole["epochs"]


@pytest.mark.parametrize("mode", ["masked", "compact"])
@pytest.mark.parametrize("scheme", WITH_REPR)
def test_with_repr(scheme, mode, tmp_path, one_thread):
    what = recipe(schemes=SETTINGS, scheme__subnetwork=mode, schedule={"name": "cosine"})
    check(what, scheme, tmp_path)


def test_with_directions_chosen_by_gradient(tmp_path, one_thread):
    check(recipe(epochs=3, scheme__sub=1, scheme__reinit={"candidates": 8}), "repr", tmp_path)


@pytest.mark.parametrize("scheme", OTHERS)
def test_without_repr(scheme, tmp_path, one_thread):
    check(recipe(schemes=SETTINGS, schedule={"name": "cosine"}, report="validation"), scheme, tmp_path)


@pytest.mark.parametrize("scheme", TOUCHING)
def test_those_that_touch_weights_with_adamw(scheme, tmp_path, one_thread):
    check(recipe(schemes=SETTINGS, optim=ADAMW, grad_clip=1.0), scheme, tmp_path)
