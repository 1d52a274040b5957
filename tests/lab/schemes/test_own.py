"""Schemes of the user's own: found by import when they are put to work, and one line for what is wrong with them."""

import pytest
from tests.lab.schemes.setups import network, setup
from tests.lab.schemes.test_resume import check
from tests.lab.tiny import TINY, recipe

from torchreaper.lab import settings
from torchreaper.lab.compare import compare
from torchreaper.lab.errors import UserError
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.run import train
from torchreaper.lab.schemes import OwnSpec, TogetherSpec, parse

pytestmark = pytest.mark.usefixtures("one_thread")

CODE = """
from __future__ import annotations

from typing import Literal

from pydantic import Field

from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes import Attached, Spec


class Pulling(Attached):
    def __init__(self, model, strength):
        self.model, self.strength = model, strength

    def loss(self, batch, loss):
        return loss + self.strength * sum(p.square().sum() for p in self.model.parameters())


class PullSpec(Spec):
    name: Literal["pull"] = "pull"
    strength: float = Field(default=0.01, ge=0)

    def check(self, epochs):
        if epochs < 2:
            raise UserError(f"scheme: pulls for two epochs, the recipe has {epochs}; raise epochs")

    def attach(self, setup):
        return Pulling(setup.model, self.strength)


class LongSpec(PullSpec):
    def lengths(self, epochs):
        return (2 * epochs,)


class TaughtSpec(PullSpec):
    def teachers(self):
        return ({"epochs": 1},)


class OtherwiseSpec(PullSpec):
    def optim(self, spec):
        return spec.model_copy(update={"lr": 1.0})


class BrokenSpec(PullSpec):
    def attach(self, setup):
        return setup.nothing_here


class NothingSpec(PullSpec):
    def attach(self, setup):
        self.strength


class Giving(Attached):
    def __init__(self, given):
        self.given = given

    def loss(self, batch, loss):
        return {"nothing": None, "each": loss.expand(4), "number": 0.5}[self.given]


class GivingSpec(PullSpec):
    given: str

    def attach(self, setup):
        return Giving(self.given)


def make():
    return PullSpec()
"""


@pytest.fixture
def pulling(mine):
    """A module of the user's own with schemes; forgotten after the test."""
    (mine / "mynets" / "pulling.py").write_text(CODE)
    return mine


def test_it_trains_with_its_options_alone_and_together_and_is_gone_on_with(pulling):
    schemes = {
        "pull": {"name": "mynets.pulling:PullSpec", "options": {"strength": 0.5}},
        "no-pull": {"name": "mynets.pulling:PullSpec", "options": {"strength": 0}},
    }
    what = recipe(schemes=schemes)
    found = {
        key: train(what, scheme=key, seed=0, out=pulling)["fingerprint"]
        for key in ("standard", "pull", "no-pull", "pull+ema", "mynets.pulling:PullSpec")
    }
    assert found["standard"] == found["no-pull"]
    assert len(set(found.values())) == 4
    check(what, "repr+pull", pulling)


def test_reading_a_recipe_imports_nothing_and_a_recipe_is_what_it_says_of_itself():
    schemes = {"mine": {"name": "not_there.at_all:Spec", "options": {"depth": [1, {"a": None}]}}}
    what = recipe(schemes=schemes, scheme={"name": "not_there.at_all:Other"})
    assert Recipe.model_validate(what.canonical()) == what
    spec = what.scheme_spec("mine+sam")
    assert isinstance(spec, TogetherSpec)
    assert spec.parts["mine"] == OwnSpec(name="not_there.at_all:Spec", options={"depth": [1, {"a": None}]})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "a b:Spec"}, "scheme.name='a b:Spec': must be package.module:callable, such as myschemes:"),
        ({"name": "mine:Spec", "strength": 1}, "scheme.strength: unknown key; known: name, options"),
        ({"name": "mine:Spec", "options": 3}, "scheme.options=3: must be a mapping (key: value)"),
        ({"name": "mine:Spec", "options": {"at": {1}}}, "scheme.options={'at': {1}}: at must be text, a number,"),
    ],
)
def test_what_is_wrong_in_the_recipe_is_named(options, text):
    with pytest.raises(UserError) as error:
        settings.parse(Recipe, {**TINY, "scheme": options})
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "mynets.missing:Spec"}, "scheme.name='mynets.missing:Spec': mynets.missing cannot be imported ("),
        (
            {"name": "mynets.pulling:PulSpec"},
            "scheme.name='mynets.pulling:PulSpec': mynets.pulling has no PulSpec; did",
        ),
        ({"name": "mynets.pulling:make"}, "scheme.name='mynets.pulling:make': must be a subclass of torchreaper.lab."),
        (
            {"name": "mynets.pulling:Pulling"},
            "scheme.name='mynets.pulling:Pulling': must be a subclass of torchreaper.",
        ),
        ({"name": "mynets.pulling:LongSpec"}, "scheme.name='mynets.pulling:LongSpec': has epochs or a teacher of its"),
        ({"name": "mynets.pulling:TaughtSpec"}, "scheme.name='mynets.pulling:TaughtSpec': has epochs or a teacher of"),
        (
            {"name": "mynets.pulling:OtherwiseSpec"},
            "scheme.name='mynets.pulling:OtherwiseSpec': has an optimizer of its own, as only the lab's",
        ),
        (
            {"name": "mynets.pulling:NothingSpec"},
            "scheme.name='mynets.pulling:NothingSpec': its attach gives a NoneType; must return a torchreaper.lab.",
        ),
        (
            {"name": "mynets.pulling:PullSpec", "options": {"strenght": 1.0}},
            "scheme.options.strenght: unknown key; did you mean scheme.options.strength?",
        ),
        (
            {"name": "mynets.pulling:PullSpec", "options": {"strength": -1.0}},
            "scheme.options.strength=-1.0: must be at least 0",
        ),
    ],
)
def test_what_is_wrong_with_the_class_is_named_when_it_is_put_to_work(options, text, pulling):
    spec = parse(options)
    with pytest.raises(UserError) as error:
        spec.attach(setup(network()))
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "what"), [("nothing", "NoneType"), ("each", "tensor of shape [4]"), ("number", "float")]
)
@pytest.mark.parametrize("together", [False, True])
def test_a_loss_that_is_none_is_named(given, what, together, pulling):
    giving = {"name": "mynets.pulling:GivingSpec", "options": {"given": given}}
    schemes = {"giving": giving, "both": {"name": "giving+label-smoothing"}}
    text = f"Giving.loss gives a {what}; must return the loss, a tensor of one number"
    scheme = "both" if together else "giving"
    found = compare(recipe(schemes=schemes), ["standard", scheme], 1, pulling)
    assert [summary.scheme for summary in found.schemes] == ["standard"]
    (failure,) = found.failures
    assert failure.scheme == scheme
    assert failure.reason.startswith(f"TypeError: {text} (")


def test_its_check_is_asked(pulling):
    with pytest.raises(UserError, match=r"^scheme: pulls for two epochs, the recipe has 1; raise epochs$"):
        parse({"name": "mynets.pulling:PullSpec"}).attach(setup(network(), lengths=(1,)))


def test_one_that_fails_in_its_own_code_is_named_and_the_others_are_compared(pulling):
    what = recipe(schemes={"broken": {"name": "mynets.pulling:BrokenSpec"}})
    found = compare(what, ["standard", "broken"], 2, pulling)
    assert [summary.seeds for summary in found.schemes] == [(0, 1)]
    assert [(failure.scheme, failure.seed) for failure in found.failures] == [("broken", 0), ("broken", 1)]
    for failure in found.failures:
        assert failure.reason.startswith("AttributeError: 'Setup' object has no attribute 'nothing_here' (")
    assert "nothing_here" in (pulling / what.name / "broken" / "seed-0" / "error.txt").read_text()
