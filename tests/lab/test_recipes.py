"""The recipes of the paper: whole, with the numbers of its tables, and such that every scheme can begin."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from tests.lab.data.conftest import pictures, write

from torchreaper.lab import models, schemes
from torchreaper.lab.recipe import load_recipe
from torchreaper.lab.run import Run

PAPER = Path(__file__).parents[2] / "recipes" / "paper"
NAMES = sorted(path.stem for path in PAPER.glob("*.yaml"))
TEXTS = {name: (PAPER / f"{name}.yaml").read_text() for name in NAMES}
EVERY = [(name, profile) for name in NAMES for profile in (None, *yaml.safe_load(TEXTS[name])["profiles"])]
QUICK = [(name, profile) for name, profile in EVERY if profile and profile.endswith("quick")]
BOTH = ("standard", "repr")

# Test error in %, standard training and RePr, on CIFAR-10 and CIFAR-100.
CIFAR = {
    "c3-32": (27.9, 23.6, 52.8, 41.8),
    "c8-32": (26.8, 19.5, 50.9, 36.8),
    "c13-32": (26.6, 20.6, 51.0, 37.9),
    "c18-32": (28.2, 22.5, 51.9, 39.5),
    "densenet5": (39.4, 36.2, 43.5, 40.9),
    "densenet40": (6.8, 6.2, 26.4, 25.2),
    "densenet100": (5.3, 5.6, 22.2, 22.1),
    "resnet20": (8.4, 6.9, 32.6, 31.1),
    "resnet32": (7.4, 6.1, 31.4, 30.1),
    "resnet110": (6.3, 5.4, 27.5, 26.4),
    "resnet182": (5.6, 5.1, 26.0, 25.3),
}
# Parameters of the networks with 1,000 classes, as published or counted in the libraries that hold their weights.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "vgg16": 138_357_544,
}
# Top-1 error in %: standard training, RePr after one, two and three cycles.
IMAGENET = {
    "resnet18": (30.41, 28.68, 27.87, 27.31),
    "resnet34": (27.50, 26.49, 26.06, 25.80),
    "resnet50": (23.67, 22.79, 22.51, 22.37),
    "resnet101": (22.40, 21.70, 21.51, 21.40),
    "resnet152": (21.51, 20.99, 20.79, 20.71),
    "vgg16": (31.30, 27.76, 26.45, 25.50),
    "inception-v1": (31.11, 29.41, 28.47, 28.01),
    "inception-v2": (27.60, 27.15, 26.95, 26.80),
}
PLAIN = {"standard": 72.1, "repr": 76.4}  # C3(32) on CIFAR-10, accuracy in %
OTHERS = {
    ("ol-c3-32", None): PLAIN | {"ol": 72.8, "repr+ol": 76.7},
    ("ol-c3-32", "cifar100"): {"standard": 47.2, "ol": 48.3, "repr": 58.2, "repr+ol": 58.6},
    ("kd-c3-32", None): PLAIN | {"kd": 74.8, "repr+kd": 83.1},
    ("kd-c3-32", "cifar100"): {"standard": 47.2, "kd": 56.5, "repr": 58.2, "repr+kd": 64.1},
    ("figure-overlap-c3-32", None): PLAIN | {"repr-oracle": 76.0, "kd": 74.8, "repr+kd": 83.1},
    ("criteria-c3-32", None): PLAIN
    | {
        "repr-random": 73.4,
        "repr-mean-activation": 74.1,
        "repr-apoz": 74.3,
        "repr-gradient": 74.3,
        "repr-taylor": 74.3,
        "repr-hessian": 74.4,
        "repr-weight-norm": 74.6,
        "repr-oracle": 76.0,
    },
    ("ablation-fraction-c3-32", None): PLAIN,
    ("ablation-dropout-c3-32", None): PLAIN,
    ("ablation-optimizer-c3-32", None): PLAIN,
    ("ablation-schedule-c3-32", None): PLAIN,
}
IN_PERCENT_ERROR = {
    **{(f"{net}-cifar10", None): dict(zip(BOTH, row[:2], strict=True)) for net, row in CIFAR.items()},
    **{(f"{net}-cifar10", "cifar100"): dict(zip(BOTH, row[2:], strict=True)) for net, row in CIFAR.items()},
    **{
        (f"{net}-imagenet", None): dict(zip(("standard", "repr-n1", "repr-n2", "repr"), row, strict=True))
        for net, row in IMAGENET.items()
    },
    ("schemes-resnet20", None): {"standard": 8.4, "dsd": 7.8, "ban": 8.2, "repr-weight-norm": 7.7, "repr": 6.9},
}
# Other tasks, in full and in profiles.
OTHER_TASKS = {
    ("detection", None): ("mAP %", {"standard": 38.2, "repr": 42.3}),
    ("detection", "2x"): ("mAP %", {"standard": 38.2, "repr": 42.3}),
    ("detection", "c4"): ("mAP %", {"standard": 38.1, "repr": 41.1}),
    ("detection", "resnet101"): ("mAP %", {"standard": 41.7, "repr": 44.5}),
    ("detection", "resnet101-c4"): ("mAP %", {"standard": 40.7, "repr": 43.5}),
    ("vqa", "v1"): ("accuracy %", {"standard": 60.3, "repr": 64.6}),
}
VQA_PARTS = {
    "yes/no": {"standard": 81.4, "repr": 83.4},
    "number": {"standard": 37.2, "repr": 37.2},
    "other": {"standard": 47.6, "repr": 54.5},
}
NUMBERS = {
    **OTHER_TASKS,
    **{place: ("error %", values) for place, values in IN_PERCENT_ERROR.items()},
    **{place: ("accuracy %", values) for place, values in OTHERS.items()},
}
DATA = {None: "CIFAR-10", "cifar100": "CIFAR-100", "detection": "COCO", "vqa": "VQA v1"}
CLASSIFY = [name for name in NAMES if name not in ("detection", "vqa")]
ANOTHER_SETTING = {"momentum", "adam", "adamw", "rmsprop", "step", "cyclic", "restarts"}
NO_NUMBERS = {"ablation-cycles-c3-32", "ablation-s1-s2-c3-32", "figure-cca-c2-32", "figure-oracle-c2-32"}


@cache
def load(name, profile=None, *overrides):
    return load_recipe(PAPER / f"{name}.yaml", profile=profile, overrides=overrides)


@pytest.mark.parametrize(("name", "profile"), EVERY)
def test_every_profile_makes_a_recipe_whose_schemes_all_fit_its_epochs(name, profile):
    recipe = load(name, profile)
    assert recipe.name == (f"{name}-{profile}" if profile else name)
    assert len(recipe.every_scheme()) >= 2
    for key in recipe.every_scheme():
        recipe.scheme_spec(key)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_lines_say_which_table_or_figure_it_is_and_how_it_is_run(name):
    about = " ".join(re.match(r"(# .*\n)+", TEXTS[name])[0].replace("# ", "").split())
    assert re.search(r"\(Prakash et al\. 2019, [^()]*(table|figure|heat maps|distributions)", about)
    if name not in NO_NUMBERS and not name.startswith("ablation"):
        assert re.search(r"Published (test error|test accuracy|top-1 error|mAP|accuracy) in %", about)
    commands = re.findall(r"^#   (reaper compare \S+(?: --\S+ \S+)*)", TEXTS[name], re.M)
    assert commands
    assert all(command.split()[2] == f"recipes/paper/{name}.yaml" for command in commands)
    asked = [found[1] for command in commands if (found := re.search(r"--profile (\S+)", command))]
    assert "quick" in asked
    assert set(asked) <= set(load(name).profiles)


@pytest.mark.parametrize("name", NAMES)
def test_lines_are_short(name):
    assert max(map(len, TEXTS[name].splitlines())) <= 120


def test_every_row_of_the_papers_tables_has_a_recipe():
    assert set(NAMES) == {name for name, _ in NUMBERS} | NO_NUMBERS


@pytest.mark.parametrize(("name", "profile"), NUMBERS)
def test_published_numbers_are_the_papers(name, profile):
    found = load(name, profile).published
    assert (found.unit, found.values) == NUMBERS[name, profile]
    assert found.data == ("ImageNet" if name.endswith("imagenet") else DATA[name if name in DATA else profile])
    assert found.parts == (VQA_PARTS if name == "vqa" else {})
    assert re.fullmatch(r"Prakash et al\. 2019, tables? of .+", found.source)


@pytest.mark.parametrize(("name", "profile"), EVERY)
def test_published_numbers_belong_to_settings_and_schemes_that_there_are(name, profile):
    recipe = load(name, profile)
    other = (profile or "").removesuffix("-quick") in ANOTHER_SETTING
    other |= name.endswith("imagenet") and profile == "quick"  # on CIFAR-10
    other |= name not in CLASSIFY and (name, profile) not in NUMBERS
    assert (recipe.published is None) == (other or name in NO_NUMBERS)
    if recipe.published:
        assert set(recipe.published.values) <= set(recipe.every_scheme())


@pytest.mark.parametrize("name", NAMES)
def test_in_full_it_has_the_papers_schedule(name):
    recipe = load(name)
    scheme = recipe.scheme
    assert (scheme["full"], scheme["sub"], scheme["cycles"], scheme["fraction"]) == (20, 10, 3, 0.3)
    assert (scheme["criterion"], scheme["reinit"]["method"], scheme["skip"]) == ("orthogonality", "orthogonal", "first")
    assert recipe.epochs >= 100
    assert recipe.report == "last"
    if "c3-32" in name:
        assert (recipe.batch, recipe.optim.name, recipe.optim.lr, recipe.augment) == (64, "sgd", 0.01, "none")


def ends(spec, epochs):
    """The epoch after which the last filters or weights return; 0 where none go."""
    if isinstance(spec, schemes.TogetherSpec):
        return max(ends(part, epochs) for part in spec.parts.values())
    full, sub = {"repr": ("full", "sub"), "dsd": ("dense", "sparse")}.get(spec.name, (None, None))
    return spec.cycles * (getattr(spec, full) + getattr(spec, sub)) if full else 0


@pytest.mark.parametrize(("name", "profile"), QUICK)
def test_quick_ends_every_schedule_with_an_epoch_in_six_to_spare(name, profile):
    recipe = load(name, profile)
    assert recipe.seeds >= 3
    for key in recipe.every_scheme():
        assert ends(recipe.scheme_spec(key), recipe.epochs) <= recipe.epochs * 5 / 6, key


@pytest.mark.parametrize(("name", "profile"), QUICK)
def test_quick_says_at_which_step_the_last_filters_return(name, profile):
    """The comment above a quick profile, against what it makes."""
    recipe = load(name, profile)
    said = re.findall(
        r"[Aa]t ([\d,]+) steps an epoch.*?at\s+(?:#\s+)?step\s+(?:#\s+)?([\d,]+)(?: of ([\d,]+))?", TEXTS[name], re.S
    )
    assert len(said) == 1
    each, at, of = (int(number.replace(",", "")) if number else None for number in said[0])
    steps = (recipe.data.limit or 205) // recipe.batch  # photographs of blood cells
    last = max(ends(recipe.scheme_spec(key), recipe.epochs) for key in recipe.every_scheme())
    assert (each, at) == (steps, last * steps)
    assert of in (None, recipe.epochs * steps)


@dataclass
class Tiny:
    """Overrides that put 60 made-up images in the place of a recipe's own."""

    folder: Path

    def __call__(self, recipe, *, batch=10):
        limits = {"limit": 40, "test_limit": 10}
        if recipe.data.validation:
            limits["validation"] = 10
        files = {key: str(self.folder / f"{key}.parquet") for key in ("train", "test")}
        size = {"size": recipe.data.size} if recipe.data.size else {}
        data = {"name": "parquet", **files, **size, **limits}
        return f"data={data}", f"batch={batch}", "eval_batch=10"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    names = [str(number) for number in range(10)]
    for key, count in (("train", 60), ("test", 20)):
        labels = [number % 10 for number in range(count)]
        write(folder / f"{key}.parquet", pictures(count, side=32), labels, names=names)
    return Tiny(folder)


# Following the channels of more than 100 layers takes seconds; they are the blocks of the others, more often.
DEEP = re.compile(r"(resnet1\d\d|densenet100)-")


def kinds(recipe):
    """One key for each kind of scheme in a recipe: of RePr with several schedules or shares the first."""
    found = {}
    for key in recipe.every_scheme():
        spec = recipe.scheme_spec(key)
        found.setdefault((spec.name, getattr(spec, "criterion", None)), key)
    return found.values()


@pytest.mark.parametrize(
    ("name", "profile"), [place for place in QUICK if place[0] in CLASSIFY and not DEEP.match(place[0])]
)
def test_every_scheme_of_a_quick_profile_can_begin(name, profile, tiny, one_thread):
    recipe = load(name, profile, *tiny(load(name, profile)))
    for key in kinds(recipe):
        run = Run(recipe, recipe.scheme_spec(key), seed=0, device="cpu")
        assert run.scheme.phase == "full"
        assert run.steps == 4


# Profiles that change nothing of the network or the schemes would only repeat what their recipe has shown.
FULL = [(name, None) for name in CLASSIFY if not name.endswith("imagenet")] + [("c3-32-cifar10", "release")]


@pytest.mark.parametrize(("name", "profile"), [place for place in FULL if not DEEP.match(place[0])])
def test_in_full_the_recipes_own_scheme_can_begin(name, profile, tiny, one_thread):
    recipe = load(name, profile, *tiny(load(name, profile)))
    run = Run(recipe, recipe.scheme_spec("repr"), seed=0, device="cpu")
    assert any(layer.ranked for layer in run.scheme.bank.layers)


def test_detectors_can_begin_on_the_blood_cells(one_thread):
    if not (PAPER / ".." / ".." / ".." / "shared" / "data" / "bccd").exists():
        pytest.skip("no ../shared/data/bccd")
    recipe = load("detection", "quick", "data.limit=20", "data.test_limit=5")
    for key in kinds(recipe):
        run = Run(recipe, recipe.scheme_spec(key), seed=0, device="cpu")
        ranked = (
            {layer.name.split(".")[0] for layer in run.scheme.bank.layers if layer.ranked} if key != "standard" else ()
        )
        assert key == "standard" or ranked == ({"backbone"} if key == "repr-backbone" else {"backbone", "neck", "head"})


def test_questions_can_be_asked_of_easy_vqa(one_thread):
    pytest.importorskip("easy_vqa")
    recipe = load("vqa", "quick", "data.limit=50", "data.test_limit=20", "batch=10")
    run = Run(recipe, recipe.scheme_spec("repr"), seed=0, device="cpu")
    assert {layer.name for layer in run.scheme.bank.layers if layer.ranked} == {f"cnn.conv{k}" for k in (2, 3, 4)}
    assert run.steps == 5


@pytest.mark.parametrize("profile", ["frozen", "quick-frozen", "v1", "v2"])
def test_frozen_features_are_learnt_by_the_scheme_before(profile):
    recipe = load("vqa", profile)
    assert (recipe.source.into, recipe.source.freeze) == ("cnn", True)
    assert recipe.first().model.name == recipe.model.options["cnn"]["name"]
    assert recipe.training_spec("repr").name == "standard"
    assert recipe.first().training_spec("repr").name == "repr"


@pytest.mark.parametrize(("name", "profile"), [place for place in EVERY if DEEP.match(place[0])])
def test_deep_networks_can_be_built(name, profile):
    recipe = load(name, profile)
    side = recipe.data.size or 32
    made = models.build(
        recipe.model.name,
        recipe.model.options,
        in_channels=3,
        classes=10,
        image_size=(side, side),
        generator_seed=0,
    )
    with torch.no_grad():
        assert made.eval()(torch.zeros(1, 3, side, side)).shape == (1, 10)


@pytest.mark.parametrize("net", PARAMETERS)
def test_networks_for_imagenet_are_the_published_ones(net):
    model = load(f"{net}-imagenet").model
    # On no device: no weights are drawn.
    with torch.device("meta"):
        made = models.MODELS[model.name]
        network = made.build(made.options(**model.options), in_channels=3, classes=1000, image_size=(224, 224))
    assert sum(weight.numel() for weight in network.parameters()) == PARAMETERS[net]


def test_cifar_100s_fine_labels_are_the_classes(tmp_path, one_thread):
    """The profile's column, in files that have the coarse labels too."""
    import datasets

    names = [f"fine {number}" for number in range(100)], [f"coarse {number}" for number in range(20)]
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=names[0]),
            "coarse_label": datasets.ClassLabel(names=names[1]),
        }
    )
    images = pictures(200, side=32)
    rows = {
        "img": list(images),
        "fine_label": [n % 100 for n in range(200)],
        "coarse_label": [n % 20 for n in range(200)],
    }
    for key in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{key}.parquet")
    files = [f"data.{key}={tmp_path / key}.parquet" for key in ("train", "test")]
    changes = ["data.name=parquet", "data.hub=null", "data.validation=0", "batch=50", *files]
    recipe = load("c3-32-cifar10", "cifar100", *changes)
    run = Run(recipe, recipe.scheme_spec("repr"), seed=0, device="cpu")
    assert len(run.dataset.classes) == 100
    assert run.module.fc.out_features == 100
