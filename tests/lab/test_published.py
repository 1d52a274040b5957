"""What a paper reports: checked, converted, printed, and no part of a run."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from torchreaper.lab.errors import UserError
from torchreaper.lab.published import Published, percent
from torchreaper.lab.recipe import Recipe, load_recipe
from torchreaper.lab.run import finished, train
from torchreaper.lab.settings import parse

SECTION = {"unit": "accuracy %", "source": "a table", "values": {"standard": 72.1, "repr": 76.4}}
RECIPE = {
    "name": "tiny",
    "epochs": 3,
    "batch": 25,
    "data": {"name": "digits", "limit": 50},
    "model": {"name": "cnet", "options": {"depth": 2, "width": 4}},
    "optim": {"name": "sgd", "lr": 0.05},
    "scheme": {"name": "repr", "full": 1, "sub": 1, "cycles": 1},
    "schemes": {"repr-random": {"name": "repr", "criterion": "random", "full": 1, "sub": 1, "cycles": 1}},
    "published": SECTION,
}


def load(tmp_path, section=SECTION, **options):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "published": section}))
    return load_recipe(path, **options)


@given(st.integers(0, 10_000))
def test_an_error_is_100_minus_it_without_rounding_to_show(hundredths):
    value = hundredths / 100
    errors = Published(unit="error %", source="a table", values={"standard": value})
    assert errors.accuracy("standard") == (10_000 - hundredths) / 100
    assert errors.accuracy("repr") is None
    assert Published(unit="accuracy %", source="a table", values={"standard": value}).accuracy("standard") == value
    assert float(percent(value)) == value


def test_percents_have_the_decimals_they_have():
    assert [percent(value) for value in (72.1, 76.0, 69.59, 100.0)] == ["72.1", "76.0", "69.59", "100.0"]


def test_values_are_of_standard_of_the_recipes_schemes_or_of_any_there_is(tmp_path):
    values = {"standard": 72.1, "repr": 76.4, "repr-random": 73.4, "dsd": 70, "repr+kd": 83.1}
    assert load(tmp_path, {**SECTION, "values": values}).published.values == values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": {"reprr": 1.0}}, "published.values.reprr: no such scheme; did you mean 'repr'?"),
        ({"values": {"repr+kdd": 1.0}}, "published.values.repr+kdd: no such scheme; "),
        ({"values": {}}, "published.values={}: "),
        ({"values": {"repr": 101}}, "published.values.repr=101: must be at most 100"),
        ({"values": {"repr": "76.4"}}, "published.values.repr='76.4': must be a number"),
        ({"unit": "accuracy"}, "published.unit='accuracy': must be 'accuracy %', 'error %' or 'mAP %'"),
        ({"source": ""}, "published.source='': "),
        ({"sourc": "x"}, "published.sourc: unknown key; did you mean published.source?"),
    ],
)
def test_what_is_wrong_is_one_clear_line(tmp_path, change, message):
    with pytest.raises(UserError, match="^" + re.escape(message)) as error:
        load(tmp_path, {**SECTION, **change})
    assert "\n" not in str(error.value)


DETECTION = {
    "task": "detection",
    "data": {"name": "parquet", "train": "a", "test": "b", "size": 32},
    "model": {"name": "detector"},
    "scheme": {"name": "standard"},
    "schemes": {},
}
VQA = {"task": "vqa", "data": {"name": "easy-vqa"}, "model": {"name": "vqa"}, "schemes": {}}


@pytest.mark.parametrize(
    ("task", "unit", "parts"),
    [
        ({}, "error %", []),
        (DETECTION, "mAP %", ["AP50", "AP75", "AP small", "AP red cell", "AP large (class)"]),
        (VQA, "accuracy %", ["yes/no", "number", "other"]),
        ({"source": {"epochs": 4}}, "accuracy %", ["source: accuracy"]),
        ({**VQA, "source": {"epochs": 4}}, "accuracy %", ["other", "source: accuracy"]),
        ({**DETECTION, "source": {"epochs": 4, "leave": []}}, "mAP %", ["AP50", "source: mAP"]),
    ],
)
def test_units_and_parts_are_those_of_the_task(task, unit, parts):
    section = {**SECTION, "unit": unit, "values": {"standard": 7}, "parts": {name: {"standard": 7} for name in parts}}
    assert list(parse(Recipe, {**RECIPE, **task, "published": section}).published.parts) == parts


NO_PART = "no such part; "


@pytest.mark.parametrize(
    ("task", "unit", "part", "message"),
    [
        ({}, "mAP %", None, "unit='mAP %': is not of the task classification; use accuracy % or error %"),
        (VQA, "mAP %", None, "unit='mAP %': is not of the task vqa; use accuracy % or error %"),
        (DETECTION, "error %", None, "unit='error %': is not of the task detection; use mAP %"),
        (DETECTION, "accuracy %", None, "unit='accuracy %': is not of the task detection; use mAP %"),
        ({}, "error %", "dog", f"parts.dog: {NO_PART}the task classification has none, leave it out"),
        ({}, "error %", "source: accuracy", f"parts.source: accuracy: {NO_PART}the task classification has none"),
        (VQA, "error %", "numbr", f"parts.numbr: {NO_PART}did you mean 'number'? known: yes/no, number, other"),
        (DETECTION, "mAP %", "ap50", f"parts.ap50: {NO_PART}did you mean 'AP50'? known: AP50, AP75, AP small, "),
        (
            {"source": {"epochs": 4}},
            "error %",
            "source: mAP",
            f"parts.source: mAP: {NO_PART}did you mean 'source: accuracy'? known: source: accuracy",
        ),
    ],
)
def test_other_units_and_parts_are_refused(task, unit, part, message):
    parts = {part: {"standard": 7}} if part else {}
    section = {**SECTION, "unit": unit, "values": {"standard": 7}, "parts": parts}
    with pytest.raises(UserError) as error:
        parse(Recipe, {**RECIPE, **task, "published": section})
    assert str(error.value).startswith(f"published.{message}")


def test_a_profile_keeps_changes_or_takes_away_the_numbers(tmp_path):
    path = tmp_path / "tiny.yaml"
    profiles = {"quick": {"epochs": 4}, "other": {"published": {"values": {"repr": 60.0}}}, "none": {"published": None}}
    path.write_text(yaml.safe_dump({**RECIPE, "profiles": profiles}))
    assert load_recipe(path, profile="quick").published.values == SECTION["values"]
    assert load_recipe(path, profile="other").published.values == {"standard": 72.1, "repr": 60.0}
    assert load_recipe(path, profile="none").published is None


def test_they_make_no_other_recipe_and_no_other_run(tmp_path, one_thread):
    with_them, without = load(tmp_path), load(tmp_path, overrides=["published=null"])
    assert with_them.published is not None
    assert with_them.canonical() == without.canonical()
    assert with_them.fingerprint() == without.fingerprint()
    train(with_them, scheme="repr-random", seed=0, out=tmp_path / "out")
    assert finished(without, scheme="repr-random", seed=0, out=tmp_path / "out") is not None
