"""The registry: from a recipe's options to a spec, and one line for each thing that can be wrong."""

import json

import pytest

from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes import SCHEMES, RePrSpec, StandardSpec, options_of, parse


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
