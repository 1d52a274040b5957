"""The registry: from a recipe's options to a spec, and one line for each thing that can be wrong."""

import json
from typing import Literal

import pytest

from torchreaper.lab import schemes as registry
from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes import SCHEMES, Attached, RePrSpec, Spec, StandardSpec, options_of, parse, register


@pytest.mark.parametrize("name", SCHEMES)
def test_a_spec_is_its_own_plain_values(name):
    spec = parse({"name": name})
    plain = json.loads(json.dumps(spec.model_dump(mode="json")))
    assert parse(plain) == spec
    assert type(spec) is SCHEMES[name]
    assert spec.summary


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "scheme.name: is missing; choose one of standard, repr, dsd"),
        ({"name": "rep"}, "scheme.name='rep': unknown scheme; did you mean 'repr'?"),
        ({"name": 3}, "scheme.name=3: unknown scheme"),
        ({"name": "repr", "fration": 0.3}, "scheme.fration: unknown key; did you mean scheme.fraction?"),
        ({"name": "standard", "fraction": 0.3}, "scheme.fraction: unknown key"),
    ],
)
def test_what_is_wrong_is_named(options, text):
    with pytest.raises(UserError) as error:
        parse(options)
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


def test_the_place_in_the_recipe_is_named():
    with pytest.raises(UserError, match=r"^schemes\.other\.name: is missing"):
        parse({}, where="schemes.other")


def test_options_come_from_the_recipes_scheme_then_from_its_schemes_then_from_the_defaults():
    scheme = {"name": "repr", "fraction": 0.2}
    schemes = {"standard": {}, "repr": {"fraction": 0.9}, "repr-random": {"name": "repr", "criterion": "random"}}
    assert parse(options_of("repr", scheme, schemes)) == RePrSpec(fraction=0.2)
    assert parse(options_of("repr", {"name": "standard"}, schemes)) == RePrSpec(fraction=0.9)
    assert parse(options_of("repr-random", scheme, schemes)) == RePrSpec(criterion="random")
    assert parse(options_of("standard", scheme, {})) == StandardSpec()


class MineSpec(Spec):
    """A scheme of one's own."""

    name: Literal["mine"] = "mine"
    strength: float = 2.0

    def attach(self, setup):
        return Attached()


def test_a_scheme_of_ones_own_has_a_name_of_its_own(monkeypatch):
    monkeypatch.setattr(registry, "SCHEMES", dict(SCHEMES))
    with pytest.raises(UserError, match=r"^scheme\.name='mine': unknown scheme"):
        parse({"name": "mine"})
    assert register(MineSpec) is MineSpec
    register(MineSpec)  # a module that is imported again
    assert parse({"name": "mine", "strength": 3.0}) == MineSpec(strength=3.0)
    assert parse({"name": "mine+ema"}).parts["mine"] == MineSpec()
    with pytest.raises(UserError, match=r"^scheme\.strenght: unknown key; did you mean scheme\.strength\?"):
        parse({"name": "mine", "strenght": 3.0})
    again = type("Again", (MineSpec,), {})
    with pytest.raises(UserError, match=r"^Again\.name='mine': is the name of MineSpec; choose another$"):
        register(again)


@pytest.mark.parametrize("name", ["a+b", "", "a b", "a/b"])
def test_what_cannot_be_a_name_is_refused(name):
    class BadSpec(MineSpec):
        pass

    BadSpec.model_fields["name"].default = name
    with pytest.raises(UserError, match=r"^BadSpec\.name='.*': must have a default of letters, digits"):
        register(BadSpec)


def test_a_name_without_a_default_is_refused():
    class BareSpec(Spec):
        pass

    with pytest.raises(UserError, match=r"^BareSpec\.name=PydanticUndefined: must have a default"):
        register(BareSpec)
