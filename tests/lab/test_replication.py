"""The recipes of the replication: the grid is whole, and RePr's filters are back before the learning rate falls."""

from itertools import product
from pathlib import Path

import pytest
import yaml

from torchreaper.lab.recipe import load_recipe

FOLDER = Path(__file__).parents[2] / "recipes" / "replication"
EVERY = [
    (path.stem, profile)
    for path in sorted(FOLDER.glob("*.yaml"))
    for profile in (None, *yaml.safe_load(path.read_text())["profiles"])
]


def load(name, profile=None):
    return load_recipe(FOLDER / f"{name}.yaml", profile=profile)


def repr_in(spec):
    """RePr's own settings in a scheme, which may be one of several parts."""
    return [part for part in getattr(spec, "parts", {"": spec}).values() if part.name == "repr"]


@pytest.mark.parametrize(("name", "profile"), EVERY)
def test_all_schemes_fit_and_the_filters_are_back_before_the_rate_falls(name, profile):
    recipe = load(name, profile)
    for key in recipe.every_scheme():
        for spec in repr_in(recipe.scheme_spec(key)):
            back = spec.cycles * (spec.full + spec.sub)
            late = key in ("paper", "paper-zeros", "into-fall")
            assert (back > recipe.epochs - recipe.schedule.fall) == late, key
    assert recipe.report == "last"


def test_the_grid_has_each_cell_once_and_nothing_else_changes():
    cells, rest = [], set()
    for profile in (profile for name, profile in EVERY if name == "grid"):
        recipe = load("grid", profile)
        data, optim = recipe.data, recipe.optim
        cells.append((recipe.augment, optim.weight_decay, data.label_noise, data.limit))
        share = {key: recipe.scheme[key] / recipe.epochs for key in ("full", "sub")}
        same = recipe.model_dump_json(include={"model", "batch", "precision", "channels_last"})
        ours, theirs = recipe.scheme, recipe.schemes["repr-random"]
        method = str({key: value for key, value in ours.items() if key not in share})
        fall = recipe.schedule.fall / recipe.epochs
        rest.add((same, method, optim.lr, data.validation, data.test_limit, fall, *share.values()))
        assert {key for key in ours if ours[key] != theirs[key]} == {"criterion"}
    assert sorted(cells, key=str) == sorted(product(("none", "crop-flip"), (0, 5e-4), (0, 0.2), (4500, None)), key=str)
    assert len(rest) == 1


@pytest.mark.parametrize(("profile", "cell"), [(None, "crop"), ("noise", "noise-crop")])
def test_augmented_is_a_cell_of_the_grid_with_five_times_the_epochs(profile, cell):
    longer, once = load("augmented", profile), load("grid", cell)
    same = {"data", "model", "batch", "augment", "precision", "channels_last", "optim", "seeds", "report"}
    assert longer.model_dump(include=same) == once.model_dump(include=same)
    assert longer.epochs == 5 * once.epochs
    assert longer.schedule.fall == 5 * once.schedule.fall
    assert longer.scheme == {**once.scheme, "full": 5 * once.scheme["full"], "sub": 5 * once.scheme["sub"]}


def test_100_epochs_are_40_times_two_and_a_half():
    longer, once = load("c3-32-100"), load("c3-32")
    same = {"data", "model", "batch", "augment", "precision", "channels_last", "optim", "seeds", "report"}
    assert longer.model_dump(include=same) == once.model_dump(include=same)
    assert longer.epochs == 2.5 * once.epochs
    assert longer.schedule.fall == 2.5 * once.schedule.fall
    assert longer.scheme == {**once.scheme, "full": 2.5 * once.scheme["full"], "sub": 2.5 * once.scheme["sub"]}
    epochs = [recipe.epochs * recipe.scheme_spec("shorter").factor for recipe in (longer, once)]
    assert epochs == [16, 16]
    paper = longer.scheme_spec("paper")
    assert (paper.full, paper.sub, paper.cycles, paper.fraction) == (20, 10, 3, 0.3)


def test_in_residual_networks_what_ends_in_a_sum_is_left_out():
    for profile in ("resnet20", "resnet20-crop"):
        recipe = load("networks", profile)
        inside, fewer = recipe.schemes["inside"], recipe.schemes["inside-fewer"]
        assert inside["skip"] == ["first", "full-width"]
        assert {key for key in inside if inside[key] != fewer[key]} == {"full", "cycles"}
        kept = recipe.schemes["inside-momentum-kept"]
        assert kept == {**inside, "reinit": {**inside["reinit"], "optimizer_state": "keep"}}


def test_the_parts_differ_from_the_whole_in_what_they_are_named_after():
    recipe = load("c3-32")
    parts = {
        "slices-kept": {"reinit": {"consumers": "keep"}},
        "random": {"criterion": "random"},
        "reversed": {"criterion": "orthogonality-reversed"},
        "random-directions": {"reinit": {"method": "random"}},
        "at-once": {"full": 4, "sub": 0},
        "longer-phases": {"full": 5, "sub": 3, "cycles": 4},
        "criterion-released": {"criterion": "orthogonality-released"},
        "first-layer": {"skip": None},
        "first-layer-corrected": {"skip": None, "criterion": "orthogonality-corrected"},
        "paper-zeros": {"full": 8, "sub": 4, "cycles": 3},
        "into-fall": {"cycles": 9},
        "magnitude": {"criterion": "magnitude"},
        "in-turn": {"criterion": "in-turn"},
        "tenth": {"fraction": 0.1},
        "fifth": {"fraction": 0.2},
        "half": {"fraction": 0.5},
        "capped": {"max_per_layer": 0.5},
        "length-one": {"reinit": {"gain": 1}},
        "bias-kept": {"reinit": {"bias": "keep"}},
        "candidates": {"reinit": {"candidates": 8}},
        "activation-correlation": {"criterion": "activation-correlation"},
    }
    for key, changes in parts.items():
        expected = {**recipe.scheme, **changes, "reinit": {**recipe.scheme["reinit"], **changes.get("reinit", {})}}
        assert recipe.schemes[key] == expected, key
    as_they_were = recipe.schemes["as-they-were"]["reinit"]
    assert (as_they_were["method"], as_they_were["consumers"]) == ("keep", "keep")
    assert recipe.schemes["as-they-were-zero"]["reinit"] == {**as_they_were, "consumers": "zero"}
    assert recipe.schemes["return-released"]["reinit"]["method"] == "released"
