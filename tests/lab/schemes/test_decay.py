"""Another weight decay: the run is that of a recipe with this decay, whatever else is at work."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.schemes.test_resume import numbers
from tests.lab.tiny import recipe

from torchreaper.lab.errors import UserError
from torchreaper.lab.run import train
from torchreaper.lab.runs import folder_of, read_metrics
from torchreaper.lab.schemes import parse
from torchreaper.lab.schemes.decay import DecaySpec
from torchreaper.lab.sections import OptimSpec

OPTIM = {"name": "sgd", "lr": 0.05, "momentum": 0.9}


@given(
    optim=st.builds(OptimSpec, name=st.sampled_from(["sgd", "adam", "adamw", "rmsprop"]), lr=st.floats(1e-6, 10)),
    value=st.floats(0, 1),
)
def test_the_optimizer_is_the_recipes_but_for_the_decay(optim, value):
    assert DecaySpec(value=value).optim(optim) == optim.model_copy(update={"weight_decay": value})


@pytest.mark.parametrize("beside", ["", "repr", "grafting", "sam", "ban", "ema"])
@pytest.mark.parametrize("value", [0.0, 0.02])
def test_the_run_is_that_of_a_recipe_with_this_decay(tmp_path, one_thread, beside, value):
    key = f"weight-decay+{beside}" if beside else "weight-decay"
    with_scheme = recipe(optim=OPTIM | {"weight_decay": 0.3}, schemes={"weight-decay": {"value": value}})
    with_recipe = recipe(optim=OPTIM | {"weight_decay": value})
    train(with_scheme, scheme=key, seed=0, out=tmp_path / "scheme")
    train(with_recipe, scheme=beside or "standard", seed=0, out=tmp_path / "recipe")
    ours = numbers(folder_of(tmp_path / "scheme", "tiny", key, 0))
    theirs = numbers(folder_of(tmp_path / "recipe", "tiny", beside or "standard", 0))
    assert ours == theirs
    assert len(ours) >= 5


def test_a_teacher_is_trained_with_the_recipes_own(tmp_path, one_thread):
    teacher = {"model": {"name": "cnet", "options": {"depth": 2, "width": 8}}, "epochs": 2}
    what = recipe(schemes={"kd": {"teacher": teacher}, "weight-decay": {"value": 0.3}})
    curves = []
    for scheme in ("kd", "weight-decay+kd"):
        train(what, scheme=scheme, seed=0, out=tmp_path / scheme)
        (folder,) = (tmp_path / scheme / "tiny").glob("teacher-*")
        curves.append([line["train_loss"] for line in read_metrics(folder / "standard" / "seed-0")])
    assert curves[0] == curves[1]


@pytest.mark.parametrize("value", [-0.1, float("nan"), 1e31])
def test_a_decay_that_is_none_is_refused(value):
    with pytest.raises(UserError, match=r"^scheme\.value=\S+: must be "):
        parse({"name": "weight-decay", "value": value})
