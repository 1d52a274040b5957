"""Teachers: trained once, gone on with when killed, and one line for what is wrong with them."""

import json
import shutil

import pytest
import torch
from tests.lab.schemes.test_resume import StopAfter, Stopped
from tests.lab.tiny import TINY, recipe

from torchreaper.lab import settings, teachers
from torchreaper.lab.checkpoints import judged_weights, load_checkpoint
from torchreaper.lab.errors import UserError
from torchreaper.lab.measures import fingerprint
from torchreaper.lab.progress import NullProgress
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.run import train

pytestmark = pytest.mark.usefixtures("one_thread")

TEACHER = {"model": {"name": "cnet", "options": {"depth": 2, "width": 8, "batch_norm": True}}, "epochs": 3}


class Names(NullProgress):
    """The runs that were started, and the epochs trained in each."""

    def __init__(self):
        self.epochs = {}

    def start_run(self, name, epochs, steps, done):
        self.now = name
        self.epochs[name] = 0

    def epoch(self, metrics):
        self.epochs[self.now] += 1


class StopTeacher(StopAfter):
    def start_run(self, name, epochs, steps, done):
        self.is_teacher = not name.startswith("teacher-")


def with_teacher(**changes):
    return recipe(schemes={"kd": {"teacher": {**TEACHER, **changes}}})


def place(what, out, scheme="kd"):
    return teachers.needed(what, what.scheme_spec(scheme), out)


def folder(what, out, seed=0):
    teacher = place(what, out)
    return teacher.out / teacher.recipe.name / "standard" / f"seed-{seed}"


def test_it_is_trained_once_for_all_schemes_with_the_same_seed(tmp_path):
    what, names = with_teacher(), Names()
    first = train(what, scheme="kd", seed=0, out=tmp_path, progress=names)
    second = train(what, scheme="repr+kd", seed=0, out=tmp_path, progress=names)
    mine = place(what, tmp_path).recipe.name
    assert names.epochs == {
        f"{mine} / standard / seed 0": 3,
        "tiny / kd / seed 0": 5,
        "tiny / repr+kd / seed 0": 5,
    }
    assert folder(what, tmp_path).is_dir()
    assert first["teacher_seconds"] == second["teacher_seconds"] > 0
    train(what, scheme="kd", seed=1, out=tmp_path, progress=names)
    assert names.epochs[f"{mine} / standard / seed 1"] == 3
    assert train(what, scheme="standard", seed=0, out=tmp_path)["teacher_seconds"] == 0


def test_another_teacher_lies_in_another_folder_and_what_does_not_concern_it_makes_none(tmp_path):
    def name(**changes):
        what = recipe(**{"schemes": {"kd": {"teacher": TEACHER}}, **changes})
        return place(what, tmp_path).recipe.name

    mine = name()
    assert mine.startswith("teacher-cnet-")
    assert name(schemes={"kd": {"teacher": {**TEACHER, "epochs": 4}}}) != mine
    assert name(schemes={"kd": {"teacher": TEACHER, "temperature": 2.0}}) == mine
    same = {"seeds": 7, "snapshots": 2, "report": "validation", "scheme": {"name": "standard"}}
    assert name(**same) == mine
    assert name(model__options__width=4) == mine  # the student's
    assert name(precision="bf16-mixed") != mine


def test_one_that_was_killed_goes_on(tmp_path):
    what = with_teacher()
    whole = train(what, scheme="kd", seed=0, out=tmp_path / "whole")
    with pytest.raises(Stopped):
        train(what, scheme="kd", seed=0, out=tmp_path / "parts", progress=StopTeacher(2))
    names = Names()
    parts = train(what, scheme="kd", seed=0, out=tmp_path / "parts", progress=names)
    assert names.epochs[f"{place(what, tmp_path).recipe.name} / standard / seed 0"] == 1
    assert parts["fingerprint"] == whole["fingerprint"]


def test_the_student_learns_from_the_weights_that_were_trained(tmp_path):
    what = with_teacher()
    with pytest.raises(Stopped):
        train(what, scheme="kd", seed=0, out=tmp_path, progress=StopAfter(1))
    trained = load_checkpoint(folder(what, tmp_path), print)
    ended = {"seconds": 1.5, "fingerprint": fingerprint(judged_weights(trained))}
    taught = teachers.load(place(what, tmp_path), ended, 0)
    assert fingerprint(taught.weights) == ended["fingerprint"]
    assert taught.seconds == 1.5


def test_a_checkpoint_that_is_gone_is_named(tmp_path):
    what = with_teacher()
    train(what, scheme="kd", seed=0, out=tmp_path)
    where = folder(what, tmp_path)
    shutil.rmtree(tmp_path / "tiny" / "kd")
    for path in where.glob("*.pt"):
        path.unlink()
    with pytest.raises(UserError, match=r"its checkpoint is gone; delete that folder and run again$") as error:
        train(what, scheme="kd", seed=0, out=tmp_path)
    assert str(error.value).startswith(f"{where}: the network is trained")


@pytest.mark.parametrize(("damaged", "epochs"), [(["last.pt"], 1), (["last.pt", "previous.pt"], 3)])
def test_a_damaged_one_is_trained_to_its_end_again_and_never_taken_for_the_one_before(tmp_path, damaged, epochs):
    what = with_teacher()
    whole = train(what, scheme="kd", seed=0, out=tmp_path)
    where = folder(what, tmp_path)
    before = json.loads((where / "result.json").read_text())
    shutil.rmtree(tmp_path / "tiny" / "kd")
    for name in damaged:
        (where / name).write_bytes(b"\0" * 9)
    names, notes = Names(), []
    names.note = notes.append
    again = train(what, scheme="kd", seed=0, out=tmp_path, progress=names)
    assert names.epochs[f"{place(what, tmp_path).recipe.name} / standard / seed 0"] == epochs
    assert notes[0] == f"{where}: its last checkpoint is damaged; the network is trained to its end again"
    assert again["fingerprint"] == whole["fingerprint"]
    after = json.loads((where / "result.json").read_text())
    assert (after["fingerprint"], after["test_accuracy"]) == (before["fingerprint"], before["test_accuracy"])


@pytest.mark.parametrize(
    ("teacher", "text"),
    [
        ({"model": {"name": "cnett"}}, "scheme.teacher: model.name='cnett'"),
        ({"model": {"name": "cnet", "options": {"depth": -1}}}, "scheme.teacher: model.options.depth=-1: must be "),
        ({"model": {"name": "cnet", "wdth": 1}}, "scheme.teacher: model.wdth: unknown key"),
        ({**TEACHER, "epochs": 0}, "scheme.teacher: epochs=0: must be at least 1"),
        ({**TEACHER, "optim": {"name": "adam", "lr": -1}}, "scheme.teacher: optim.lr=-1: must be greater than 0"),
        ({**TEACHER, "augment": "mirror"}, "scheme.teacher: augment='mirror': must be "),
        ({**TEACHER, "schedule": {"name": "step", "milestones": [3]}}, "scheme.teacher: schedule.milestones: 3 has no"),
    ],
)
def test_what_makes_no_recipe_is_named_in_full(teacher, text):
    with pytest.raises(UserError) as error:
        settings.parse(Recipe, {**TINY, "scheme": {"name": "kd", "teacher": teacher}})
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError) as error:
        settings.parse(Recipe, {**TINY, "schemes": {"kd": {"teacher": teacher}}})
    assert str(error.value).startswith(f"schemes.kd: {text}")


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
@pytest.mark.parametrize("scheme", ["kd", "ban", "grafting"])
def test_other_networks_are_in_the_precision_of_the_run(scheme, precision, tmp_path):
    what = recipe(precision=precision, schemes={"kd": {"teacher": TEACHER}})
    whole = train(what, scheme=scheme, seed=0, out=tmp_path / "whole")
    with pytest.raises(Stopped):
        train(what, scheme=scheme, seed=0, out=tmp_path / "parts", progress=StopAfter(4))
    assert train(what, scheme=scheme, seed=0, out=tmp_path / "parts")["fingerprint"] == whole["fingerprint"]
    if precision == "64-true" and scheme == "kd":
        weights = judged_weights(load_checkpoint(folder(what, tmp_path / "whole"), print))
        assert weights["conv1.weight"].dtype == torch.float64
