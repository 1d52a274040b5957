"""The recipes that are not the paper's: a first look, and whether the gain survives when other classes are learnt."""

import re
from pathlib import Path

import pytest
import yaml
from tests.lab.data.conftest import pictures, write

from torchreaper.lab.recipe import load_recipe
from torchreaper.lab.run import try_out

RECIPES = Path(__file__).parents[2] / "recipes"
TEXTS = {path.stem: path.read_text() for path in RECIPES.glob("*.yaml")}
EVERY = [
    (name, profile) for name in sorted(TEXTS) for profile in (None, *yaml.safe_load(TEXTS[name]).get("profiles", ()))
]
TRANSFER = [(name, profile) for name, profile in EVERY if name == "transfer-c3-32"]


def load(name, profile=None, *overrides):
    return load_recipe(RECIPES / f"{name}.yaml", profile=profile, overrides=overrides)


def ends(spec):
    """The epochs after which filters go, or weights, and those after which they return."""
    full, sub = {"repr": ("full", "sub"), "dsd": ("dense", "sparse")}.get(spec.name, (None, None))
    if full is None:
        return [], []
    cycle = getattr(spec, full) + getattr(spec, sub)
    back = [cycle * (number + 1) for number in range(spec.cycles)]
    return [one - getattr(spec, sub) for one in back], back


def test_these_are_all_there_are():
    assert set(TEXTS) == {"demo", "transfer-c3-32"}, "a new recipe belongs into these tests"


@pytest.mark.parametrize(("name", "profile"), EVERY)
def test_every_profile_makes_a_recipe_whose_schemes_fit_its_epochs(name, profile):
    recipe = load(name, profile)
    assert recipe.name == (f"{name}-{profile}" if profile else name)
    first = recipe.first() if recipe.source else recipe
    assert len(recipe.every_scheme()) >= 3
    for key in recipe.every_scheme():
        _, back = ends(recipe.scheme_spec(key))
        assert max(back, default=0) <= first.epochs * 0.9, f"{key}: too few epochs remain to settle"


@pytest.mark.parametrize("name", TEXTS)
def test_lines_are_short(name):
    assert max(map(len, TEXTS[name].splitlines())) <= 120


@pytest.mark.parametrize("name", TEXTS)
def test_the_first_lines_give_commands_with_profiles_that_there_are(name):
    about = re.match(r"(# ?.*\n)+", TEXTS[name])[0]
    commands = re.findall(r"reaper compare (\S+?\.yaml)(?: --schemes all)?(?: --profile (\S+))?", about)
    assert {file for file, _ in commands} == {f"recipes/{name}.yaml"}
    asked = {profile for _, profile in commands if profile}
    assert asked <= set(load(name).profiles)


@pytest.mark.parametrize(
    ("name", "profile", "said"),
    [
        ("demo", None, r"dropped after epochs ([\d, ]+), back after ([\d, ]+), so 15 epochs remain"),
        ("transfer-c3-32", "quick", r"dropped after epochs ([\d and]+), back after ([\d and]+)"),
    ],
)
def test_the_comment_beside_the_schedule_is_what_it_makes(name, profile, said):
    (told,) = re.findall(said, TEXTS[name])
    gone, back = ([int(number) for number in re.findall(r"\d+", part)] for part in told)
    recipe = load(name, profile)
    assert ends(recipe.scheme_spec("repr")) == (gone, back)
    if name == "demo":
        assert recipe.epochs - back[-1] == 15


@pytest.mark.parametrize(("name", "profile"), TRANSFER)
def test_what_is_learnt_first_and_later(name, profile):
    recipe = load(name, profile)
    first = recipe.first()
    assert (first.model, first.optim, first.seeds) == (recipe.model, recipe.optim, 1)
    assert first.source is None
    assert recipe.source.freeze == ((profile or "").endswith("frozen"))
    if profile == "cifar100":
        assert (first.data.hub, first.data.label, recipe.data.hub) == (
            "uoft-cs/cifar100",
            "fine_label",
            "uoft-cs/cifar10",
        )
        assert first.data.classes is recipe.data.classes is None
    else:
        assert (len(first.data.classes), len(recipe.data.classes)) == (6, 4)
        assert len({*first.data.classes, *recipe.data.classes}) == 10, "none is known before"
    for key in recipe.every_scheme():
        assert recipe.training_spec(key).name == "standard"
        assert first.training_spec(key) == recipe.scheme_spec(key)


CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.mark.parametrize(("name", "profile"), TRANSFER)
def test_every_scheme_can_begin_and_its_network_goes_into_the_second(name, profile, tmp_path, one_thread):
    """With 60 made-up images of CIFAR-10's classes in the place of CIFAR-10."""
    files = {}
    for key, count in (("train", 60), ("test", 30)):
        labels = [number % 10 for number in range(count)]
        files[key] = str(write(tmp_path / f"{key}.parquet", pictures(count, side=32), labels, names=CLASSES))
    recipe = load(name, profile)

    def data(section, limit):
        classes = list(section.classes) if section.classes else None
        return {"name": "parquet", **files, "limit": limit, "test_limit": 10, "classes": classes}

    changes = [f"data={data(recipe.data, 20)}", f"source.data={data(recipe.first().data, 30)}", "batch=10"]
    what = load(name, profile, *(change.replace("None", "null") for change in changes), "eval_batch=10")
    for key in ("standard", "repr", "repr-random"):
        try_out(what, key)


def test_demos_schemes_can_all_begin(one_thread):
    for key in load("demo").every_scheme():
        try_out(load("demo"), key)
