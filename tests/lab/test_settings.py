from typing import Literal

import pytest
from pydantic import Field, field_validator, model_validator

from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import Settings, did_you_mean, keys, parse, parse_nested, show


class Inner(Settings):
    rate: float = Field(default=0.1, gt=0, le=1)
    kind: Literal["a", "b"] = "a"
    on: bool = False

    @model_validator(mode="after")
    def _together(self):
        if self.on and self.kind == "b":
            raise UserError("on=True: has no effect with kind b")
        return self


class Outer(Settings):
    count: int
    several: tuple[int, ...] = ()
    inner: Inner = Inner()
    options: dict = Field(default_factory=dict)

    @field_validator("options")
    @classmethod
    def _nested(cls, options):
        return parse_nested(Inner, options).model_dump()

    @field_validator("count")
    @classmethod
    def _even(cls, count):
        if count % 2:
            raise ValueError("must be even")
        return count


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "x.count: is missing"),
        ({"count": 3}, "x.count=3: must be even"),
        ({"count": True}, "x.count=True: must be a whole number"),
        ({"count": 2.0}, "x.count=2.0: must be a whole number"),
        ({"count": "2"}, "x.count='2': must be a whole number"),
        ({"cuont": 2}, "x.cuont: unknown key; did you mean x.count? (and 1 more)"),
        ({"count": 2, "rate": 0.1}, "x.rate: unknown key; did you mean x.inner.rate?"),
        ({"count": 2, "zzz": 0.1}, "x.zzz: unknown key; known: count, several, inner, options"),
        ({"count": 2, 7: 0.1}, "x[7]: a key must be a string"),
        ({"count": 2, "several": 3}, "x.several=3: must be a list"),
        ({"count": 2, "inner": {"inner": 1}}, "x.inner.inner: unknown key; known: rate, kind, on"),
        ({"count": 2, "inner": 3}, "x.inner=3: must be a mapping (key: value)"),
        ({"count": 2, "inner": {"rate": 0}}, "x.inner.rate=0: must be greater than 0"),
        ({"count": 2, "inner": {"rate": 2}}, "x.inner.rate=2: must be at most 1"),
        ({"count": 2, "inner": {"rate": float("nan")}}, "x.inner.rate=nan: must be a finite number"),
        ({"count": 2, "inner": {"rate": "x" * 200}}, f"x.inner.rate='{'x' * 76}...: must be a number"),
        ({"count": 2, "inner": {"kind": "c"}}, "x.inner.kind='c': must be 'a' or 'b'"),
        ({"count": 2, "inner": {"on": 1}}, "x.inner.on=1: must be true or false"),
        ({"count": 2, "inner": {"knd": 1}}, "x.inner.knd: unknown key; did you mean x.inner.kind?"),
        (
            {"count": 2, "inner": {"kind": "b", "on": True}},
            "x.inner.on=True: has no effect with kind b",
        ),
        ({"count": 2, "options": {"rte": 1}}, "x.options.rte: unknown key; did you mean x.options.rate?"),
        (
            {"count": 2, "options": {"kind": "b", "on": True}},
            "x.options.on=True: has no effect with kind b",
        ),
        ({"count": 2, "a\nb": 1}, "x.a b: unknown key; known: count, several, inner, options"),
    ],
)
def test_one_line_with_the_full_key_the_value_and_the_remedy(values, message):
    with pytest.raises(UserError) as caught:
        parse(Outer, values, at="x")
    assert str(caught.value) == message


def test_without_a_path_the_keys_stand_alone():
    with pytest.raises(UserError, match=r"^inner\.rate=0: must be greater than 0$"):
        parse(Outer, {"count": 2, "inner": {"rate": 0}})


def test_good_values_are_kept_and_frozen():
    parsed = parse(Outer, {"count": 2, "options": {"rate": 1}})
    assert parsed.options == {"rate": 1.0, "kind": "a", "on": False}
    with pytest.raises(ValueError, match="frozen"):
        parsed.count = 4


def test_keys_did_you_mean_and_show():
    assert keys(Outer) == ["count", "several", "inner", "inner.rate", "inner.kind", "inner.on", "options"]
    assert did_you_mean("Repr", ["standard", "repr"]) == "did you mean 'repr'? known: standard, repr"
    assert did_you_mean("xyz", ["standard", "repr"]) == "known: standard, repr"
    assert len(show("x" * 1000)) == 80
    assert "\n" not in show("a\nb")
