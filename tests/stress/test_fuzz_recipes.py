"""Recipes and `--set` with something wrong: refused in one line, or a recipe that is written and read back the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.stress.mutating import damaged, fuzzing, garbled, mutated, one_line, one_of, quickly
from tests.stress.recording import lengths

from torchreaper.lab import starting
from torchreaper.lab.errors import UserError
from torchreaper.lab.recipe import Recipe, load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
STARTS = [starting.recipe_text("x.yaml", data=data) for data in ("digits", "folder", "parquet", "hub", "a.b:c")]
TEXTS = [*(path.read_text(encoding="utf-8") for path in RECIPES), *STARTS]
#: Short ones with what the recipes that come with the package do not have.
MORE: list[dict[str, Any]] = [
    {
        **{"name": "a", "epochs": 30, "batch": 8, "optim": {"name": "sgd", "lr": 0.1, "momentum": 0.9}},
        "data": {"name": "digits", "limit": 100, "validation": 20},
        "model": {"name": "cnet", "options": {"depth": 2, "width": 4}},
        "scheme": {"name": "repr+kd+label-smoothing", "parts": {"kd": {"teacher": {"model": {"name": "resnet20"}}}}},
        "schemes": {"x": {"name": "dsd"}, "ban": {}, "sfp": {}, "grafting": {}, "ema": {}, "sam": {}, "mixup": {}},
        "schedule": {"name": "step", "milestones": [10, 20], "warmup": 2},
        "published": {"unit": "error %", "source": "a paper", "values": {"standard": 10.0}},
        "profiles": {"quick": {"epochs": 20, "seeds": 1}},
    }
]


def loaded(path: Path, **how: Any) -> Recipe | None:
    """The recipe of a file, written and read back; None where it is refused, in one line."""
    try:
        with quickly():
            recipe = load_recipe(path, **how)
    except UserError as error:
        one_line(error)
        return None
    canonical = recipe.canonical()
    json.dumps(canonical, allow_nan=False)
    path.write_text(yaml.safe_dump(canonical), encoding="utf-8")
    again = load_recipe(path)
    assert again.canonical() == canonical
    assert again.fingerprint() == recipe.fingerprint()
    return recipe


def encoded(text: str) -> st.SearchStrategy[bytes]:
    plain = text.encode("utf-8", "surrogatepass")
    others = [text.encode(code, "surrogatepass") for code in ("utf-8-sig", "utf-16", "utf-32")]
    return st.one_of(*[st.just(plain)] * 5, st.sampled_from(others), damaged(plain))


@lengths(50, 2_500)
def test_a_recipe_with_something_wrong_is_refused_in_one_line_or_means_what_it_says(times, trials, tmp_path):
    count = trials(
        "bad input",
        "recipes with wrong keys, types and ranges: refused at once in one line, or else a recipe that is written and "
        "read back the same",
        "recipes",
    )
    path, good = tmp_path / "recipe.yaml", 0
    values = [*map(yaml.safe_load, TEXTS), *MORE]

    @fuzzing(times)
    @given(one_of(values).flatmap(mutated))
    def holds(recipe):
        nonlocal good
        path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
        with count.one():
            good += loaded(path) is not None

    holds()
    count.note = f"{good} of them were recipes still"
    assert 0 < good < times


@lengths(50, 2_500)
def test_a_garbled_recipe_file_is_refused_in_one_line(times, trials, tmp_path):
    count = trials(
        "bad input",
        "recipe files with YAML cut, doubled, tagged, in other encodings, with bytes flipped: refused at once in one "
        "line, or else a recipe that is written and read back the same",
        "files",
    )
    path = tmp_path / "recipe.yaml"

    @fuzzing(times)
    @given(one_of(TEXTS).flatmap(garbled).flatmap(encoded))
    def holds(data):
        path.write_bytes(data)
        with count.one():
            loaded(path)

    holds()


KEYS = [
    *("epochs", "batch", "name", "seeds", "scheme", "schemes", "data", "model", "optim", "optim.lr", "optim.momentum"),
    *("data.limit", "data.name", "data.options", "model.name", "model.options", "model.options.width", "profiles"),
    *("scheme.name", "scheme.fraction", "scheme.criterion", "scheme.full", "schemes.x.name", "schedule.milestones"),
    *("published", "published.values", "report", "precision", "grad_clip", "snapshots", "augment", "eval_batch"),
    *("scheme.parts.kd.teacher", "scheme.teacher.model.name", "schedule.name", "schedule.warmup", "", ".", "a..b"),
]


@st.composite
def overrides(draw: st.DrawFn) -> str:
    value = draw(mutated([1], most=2))
    text = json.dumps(value[0] if value else value, default=str)
    whole = f"{draw(st.sampled_from(KEYS))}={text}"
    return draw(garbled(whole, most=2)) if draw(st.booleans()) else whole


@lengths(40, 2_000)
def test_a_setting_with_something_wrong_is_refused_in_one_line(times, trials, tmp_path):
    count = trials("bad input", "`--set KEY=VALUE` with wrong keys, values and YAML: as with recipes", "settings")
    path = tmp_path / "set.yaml"

    @fuzzing(times)
    @given(one_of([*TEXTS[:3], STARTS[0], yaml.safe_dump(MORE[0])]), st.lists(overrides(), max_size=2, min_size=1))
    def holds(text, changes):
        path.write_text(text, encoding="utf-8")
        with count.one():
            loaded(path, overrides=changes)

    holds()
