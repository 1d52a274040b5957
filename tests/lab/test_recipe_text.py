"""Single values of a recipe, reached by keys with dots between them."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchreaper.lab.errors import UserError
from torchreaper.lab.recipe_text import with_override

# None is the beginning of another, so that a way through them can be read in one way only.
NAMES = st.sampled_from(["a", "b.c", "sfp-0.5", "1.2.3"])
sections = st.recursive(st.integers(0, 9), lambda inner: st.dictionaries(NAMES, inner, min_size=1), max_leaves=9)


def ways(values):
    """The keys to every value, and to every section."""
    inside = values.items() if isinstance(values, dict) else ()
    return [[key, *way] for key, inner in inside for way in [[], *ways(inner)]]


@given(values=st.dictionaries(NAMES, sections, min_size=1), draw=st.data())
def test_what_is_there_is_reached_whatever_dots_its_keys_have(values, draw):
    way = draw.draw(st.sampled_from(ways(values)))
    wanted, before = copy.deepcopy(values), copy.deepcopy(values)
    section = wanted
    for key in way[:-1]:
        section = section[key]
    section[way[-1]] = "new"
    assert with_override(values, f"{'.'.join(way)}=new") == wanted
    assert values == before


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, {"a": {"b": {"c": 3}}}),
        ({"a": None}, {"a": {"b": {"c": 3}}}),
        ({"a": {}}, {"a": {"b": {"c": 3}}}),
        ({"a": {"b.x": 1}}, {"a": {"b.x": 1, "b": {"c": 3}}}),
        ({"a.b": {}, "a": {"b": {}}}, {"a.b": {"c": 3}, "a": {"b": {}}}),  # the longest that is there
        ({"a.b.c": 1, "a": {}}, {"a.b.c": 3, "a": {}}),
        ({1: 2}, {1: 2, "a": {"b": {"c": 3}}}),
    ],
    ids=str,
)
def test_what_is_not_there_is_made_and_the_longest_key_goes_first(values, wanted):
    assert with_override(values, "a.b.c=3") == wanted


def test_a_value_without_keys_is_told_by_its_own_name():
    with pytest.raises(UserError, match=r"^set='a\.b\.c\.d=3': a\.b\.c=1 has no keys; set a\.b\.c as a whole$"):
        with_override({"a.b": {"c": 1}}, "a.b.c.d=3")
