import json
import pickle
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from torchreaper.lab.errors import UserError
from torchreaper.lab.recipe import Recipe, load_recipe
from torchreaper.lab.settings import parse

RECIPES = Path(__file__).parents[2] / "recipes"
PAPER = {"full": 20, "sub": 10, "cycles": 3}
BASE = {
    "name": "base",
    "epochs": 100,
    "batch": 64,
    "data": {"name": "digits", "limit": 300},
    "model": {"name": "cnet", "options": {"width": 16, "batch_norm": True}},
    "optim": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
    "schedule": {"name": "cosine"},
    "scheme": {"name": "repr", **PAPER},
    "schemes": {"repr-random": {"name": "repr", **PAPER, "criterion": "random"}},
    "profiles": {
        "quick": {"epochs": 30, "scheme": {"full": 5, "sub": 3}, "schemes": {"repr-random": {"cycles": 1, "full": 9}}},
        "residual": {"name": "other", "model": {"name": "resnet20"}, "scheme": {"name": "standard"}},
    },
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return path


def refused(path, *overrides, **options):
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides=overrides, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused_text(path, text):
    path.write_text(text)
    return refused(path)


def test_defaults_are_filled_in(path):
    recipe = load_recipe(path)
    assert recipe.optim.weight_decay == 0
    assert recipe.model.options == {
        "depth": 3, "width": 16, "kernel": 3, "batch_norm": True, "pool": False, "init": "torch", "std": 0.04,
        "dropout": 0.0,
    }  # fmt: skip
    assert (recipe.scheme["full"], recipe.scheme["sub"], recipe.scheme["fraction"]) == (20, 10, 0.3)
    assert recipe.schemes["repr-random"]["full"] == 20
    assert recipe.base == path.parent
    assert sorted(recipe.profiles) == ["quick", "residual"]


@pytest.mark.parametrize("profile", [None, "quick", "residual"])
def test_the_canonical_form_reads_itself_back(path, tmp_path, profile):
    recipe = load_recipe(path, profile=profile)
    canonical = recipe.canonical()
    assert "profiles" not in canonical
    assert json.loads(json.dumps(canonical)) == canonical
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(canonical))
    assert load_recipe(again).canonical() == canonical
    assert load_recipe(again).fingerprint() == recipe.fingerprint()


def test_the_fingerprint_is_of_the_content(path):
    one = load_recipe(path).fingerprint()
    assert len(one) == 64
    assert one == load_recipe(path, overrides=["optim.lr=0.010", "optim.weight_decay=0.0"]).fingerprint()
    others = [load_recipe(path, overrides=[o]).fingerprint() for o in ("optim.lr=0.02", "seeds=4", "scheme.full=19")]
    assert len({one, *others}) == 4


def test_the_fingerprint_of_a_recipe_without_later_keys_is_what_it_was_before_them():
    plain = {"name": "x", "epochs": 1, "batch": 2, "model": {"name": "cnet"}, "optim": {"name": "sgd", "lr": 0.1}}
    known = Recipe.model_validate({**plain, "data": {"name": "digits"}})
    assert known.fingerprint().startswith("094f291e3171054e")  # as an older version wrote it: teachers are found by it
    for later in (
        {"data": {"name": "digits", "validation": 1, "judge": "validation"}},
        {"data": {"name": "digits", "label_noise": 0.1}},
        {"data": {"name": "digits"}, "channels_last": True},
    ):
        assert Recipe.model_validate({**plain, **later}).fingerprint() != known.fingerprint()


def test_a_recipe_travels_to_another_process(path):
    recipe = load_recipe(path)
    copy = pickle.loads(pickle.dumps(recipe))
    assert (copy, copy.base) == (recipe, recipe.base)


def test_a_profile_is_merged_and_gets_a_name_of_its_own(path):
    recipe = load_recipe(path, profile="quick")
    assert recipe.name == "base-quick"
    assert recipe.epochs == 30
    assert (recipe.scheme["full"], recipe.scheme["sub"], recipe.scheme["cycles"]) == (5, 3, 3)
    assert recipe.schemes["repr-random"]["criterion"] == "random"
    assert recipe.model.options["width"] == 16


def test_a_profile_that_changes_model_or_scheme_starts_them_afresh(path):
    recipe = load_recipe(path, profile="residual")
    assert recipe.name == "other"
    assert recipe.model.options == {"width": 16, "shortcut": "pad"}
    assert recipe.scheme == {"name": "standard"}


def test_overrides_come_last_and_are_yaml(path):
    recipe = load_recipe(
        path,
        profile="quick",
        overrides=[
            "optim.lr=1e-3",
            "data.limit=null",
            "model.options.pool=true",
            "scheme.skip=[conv1, conv2]",
            "schedule={name: step, milestones: [10, 20]}",
            "name = mine",
            "epochs=31",
        ],
    )
    assert recipe.optim.lr == 0.001
    assert recipe.data.limit is None
    assert recipe.model.options["pool"] is True
    assert recipe.scheme["skip"] == ["conv1", "conv2"]
    assert recipe.schedule.milestones == (10, 20)
    assert (recipe.name, recipe.epochs) == ("mine", 31)


@given(lr=st.floats(min_value=1e-12, max_value=1e12))
def test_every_way_to_write_a_number_is_a_number(tmp_path_factory, lr):
    path = tmp_path_factory.mktemp("numbers") / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE))
    for text in (repr(lr), f"{lr:.17e}", f"{lr:.17e}".replace("e+", "e"), f"{lr:.17e}".replace("e", "E")):
        assert load_recipe(path, overrides=[f"optim.lr={text}"]).optim.lr == pytest.approx(lr, rel=1e-15)


def test_a_scheme_is_the_recipes_own_or_one_of_schemes_or_its_defaults(path):
    recipe = load_recipe(path, overrides=["scheme.full=19"])
    assert recipe.scheme_spec("repr").model_dump(mode="json") == recipe.scheme
    assert recipe.scheme_spec("repr-random").model_dump(mode="json")["criterion"] == "random"
    assert recipe.scheme_spec("standard").name == "standard"
    message = r"^scheme='rper': unknown scheme; did you mean 'repr'\? known: standard, repr.*, repr-random$"
    with pytest.raises(UserError, match=message):
        recipe.scheme_spec("rper")
    with pytest.raises(UserError, match=r"^scheme='repr': full=1, sub=1, cycles=1 need 2 epochs"):
        load_recipe(path, profile="residual", overrides=["epochs=2", "schemes={}"]).scheme_spec("repr")


def test_what_is_left_empty_has_no_options(path):
    path.write_text(yaml.safe_dump({**BASE, "schemes": {"ema": {}}, "profiles": {}}))
    whole = load_recipe(path)
    without = yaml.safe_dump({key: value for key, value in BASE.items() if key not in ("schemes", "profiles")})
    path.write_text(f"{without}\nschemes:\n  ema:\nprofiles:\n")
    assert load_recipe(path) == whole
    path.write_text(f"{without}\nschemes:\n")
    assert load_recipe(path).schemes == {}


@pytest.mark.parametrize("change", ["schemes:", "schemes: {}", "schemes: {ema: }", "schemes: {ema: {}}"])
def test_what_a_profile_leaves_empty_it_does_not_change(path, change):
    path.write_text(
        yaml.safe_dump({**BASE, "schemes": {"ema": {"decay": 0.5}}, "profiles": {"p": yaml.safe_load(change)}})
    )
    assert load_recipe(path, profile="p").scheme_spec("ema").decay == 0.5


def test_every_scheme_is_named_once(path):
    assert load_recipe(path).every_scheme() == ["standard", "repr", "repr-random"]
    assert load_recipe(path, profile="residual").every_scheme() == ["standard", "repr-random"]
    with_standard = load_recipe(path, overrides=["schemes={standard: {}, z: {name: repr}, a: {name: repr}}"])
    assert with_standard.every_scheme() == ["standard", "repr", "z", "a"], "in the recipe's order"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=-1", "optim.lr=-1: must be greater than 0"),
        ("optim.lr=abc", "optim.lr='abc': must be a number"),
        ("optim.lr=.nan", "optim.lr=nan: must be a finite number"),
        ("optim.lrr=1", "optim.lrr: unknown key; did you mean optim.lr?"),
        ("optim.learning_rate=1", "optim.learning_rate: unknown key; known: name, lr, momentum, nesterov, weight"),
        ("lr=1", "lr: unknown key; did you mean optim.lr?"),
        ("optim.name=adam", "optim.momentum=0.9: has no effect with adam; leave it out"),
        ("optim={name: sgd, lr: 1, nesterov: true}", "optim.nesterov=True: needs name: sgd and a momentum above 0"),
        ("epochs=true", "epochs=True: must be a whole number"),
        ("epochs=0", "epochs=0: must be at least 1"),
        ("model.name=cnte", "model.name='cnte': unknown model; did you mean 'cnet'? known: "),
        ("model.options.dpth=3", "model.options.dpth: unknown key; did you mean model.options.depth?"),
        ("model.options.kernel=4", "model.options.kernel=4: must be odd"),
        ("model=cnet", "model='cnet': must be a mapping (key: value)"),
        ("data.train=x", "data.train='x': has no effect with name='digits'; leave it out"),
        ("data.limt=3", "data.limt: unknown key; did you mean data.limit?"),
        ("scheme.fraction=1.3", "scheme.fraction=1.3: must be in (0, 1)"),
        ("scheme.full=0", "scheme.full=0: must be at least 1"),
        ("scheme.criterion=orthogonal", "scheme.criterion='orthogonal': unknown criterion; did you mean"),
        ("scheme.fractoin=0.2", "scheme.fractoin: unknown key; did you mean scheme.fraction?"),
        ("scheme.reinit={method: zero, gian: 1}", "scheme.reinit.gian: unknown key; did you mean scheme.reinit.gain?"),
        ("scheme={name: rper}", "scheme.name='rper': unknown scheme; did you mean 'repr'?"),
        ("scheme={full: 3}", "scheme.name: is missing"),
        ("scheme=repr", "scheme='repr': must be a mapping (key: value)"),
        ("epochs=50", "scheme: full=20, sub=10, cycles=3 need 90 epochs, the recipe has 50"),
        ("epochs=85", "scheme: full=20, sub=10, cycles=3 need 90 epochs, the recipe has 85, which end inside the sub-"),
        ("schemes.repr-random.cycles=4", "schemes.repr-random: scheme: full=20, sub=10, cycles=4 need 120 epochs"),
        ("schemes.repr-random.cylces=4", "schemes.repr-random.cylces: unknown key; did you mean schemes.repr-random."),
        ("schemes.repr.full=4", "schemes.repr: has no effect, the recipe's own scheme has that name; rename it"),
        (
            "schemes.standard={name: ema}",
            "schemes.standard.name='ema': standard is the name of another scheme; give it another key",
        ),
        ("schemes.x/y={name: repr}", "schemes: 'x/y' names a folder: "),
        ("schemes.all={name: repr}", "schemes.all: is the word for all schemes together in reaper compare; rename it"),
        ("schemes.x=3", "schemes.x=3: must be a mapping (key: value)"),
        ("data=digits", "data='digits': must be a mapping (key: value), such as {name: digits}"),
        ("data=null", "data=None: must be a mapping (key: value), such as {name: digits}"),
        ("schedule.every=3", "schedule.every=3: has no effect with name: cosine; it belongs to halving"),
        ("schedule.gamma=0.3", "schedule.gamma=0.3: has no effect with name: cosine; it belongs to step"),
        ("schedule={name: step}", "schedule.milestones: is missing; "),
        ("schedule={name: halving}", "schedule.every: is missing; "),
        ("schedule={name: step, milestones: [50, 20]}", "schedule.milestones=[50, 20]: must be epochs from 1"),
        ("schedule={name: step, milestones: [50, 100]}", "schedule.milestones: 100 has no effect with epochs=100"),
        ("schedule={name: step, milestones: [0.5]}", "schedule.milestones[0]=0.5: must be a whole number"),
        ("schedule.warmup=100", "schedule.warmup=100: must be less than epochs=100"),
        ("report=validation", "report='validation': needs images to validate on; set data.validation"),
        ("report=best", "report='best': must be 'last' or 'validation'"),
        ("augment=mirror", "augment='mirror': must be 'none', 'flip', 'crop-flip' or 'resized-crop'"),
        ("precision=16", "precision=16: must be '32-true', 'bf16-mixed' or '64-true'"),
        ("grad_clip=0", "grad_clip=0: must be greater than 0"),
        ("snapshots=0", "snapshots=0: must be at least 1"),
        ("seeds=0", "seeds=0: must be at least 1"),
        ("name=a/b", "name='a/b': names a folder: letters, digits, '.', '_', '+' and '-' only"),
        ("name=..", "name='..': names a folder: "),
        ("profile=quick", "profile: unknown key; did you mean profiles?"),
        ("profiles.quick.epochs=3", "set='profiles.quick.epochs=3': has no effect; set the key itself, or choose"),
        ("epochs", "set='epochs': must be key=value, such as optim.lr=0.1"),
        ("=3", "set='=3': must be key=value, such as optim.lr=0.1"),
        ("a..b=3", "set='a..b=3': must be key=value, such as optim.lr=0.1"),
        ("batch.size=3", "set='batch.size=3': batch=64 has no keys; set batch as a whole"),
        ("epochs=[", "set='epochs=[': is not valid YAML: line 1: "),
        ("optim.lr=1e300", "optim.lr=1e+300: must be at most "),
        ("optim.weight_decay=1e300", "optim.weight_decay=1e+300: must be at most "),
        ("epochs=" + "9" * 30, "set='epochs=999"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_clear_line(path, override, message):
    assert refused(path, override).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping (key: value), not None"),
        ("- 1", "must be a mapping (key: value), not [1]"),
        ("a: [", "is not valid YAML: line 1: "),
        ("a: 1\nb: 2\na: 3", "is not valid YAML: line 3: the key 'a' stands here twice"),
        ("a: {b: 1, b: 2}", "is not valid YAML: line 1: the key 'b' stands here twice"),
        ("\ta: 1", "is not valid YAML: line 1: found character '\\t'"),
        ("? [a]\n: 1", "is not valid YAML: line 1: found unhashable key"),
        ("!!python/object/apply:os.system [ls]", "is not valid YAML: line 1: could not determine a constructor"),
        ("[" * 5000, "is not valid YAML: line 1: more than 50 levels"),
        ("a: !!int b", "is not valid YAML: line 1: 'b' is not a whole number"),
        ("a: 1\nb: !!bool 3", "is not valid YAML: line 2: '3' is not true or false"),
        ("a: 2024-99-99", "is not valid YAML: line 1: '2024-99-99' is not a date"),
        ("a: !!set b", "is not valid YAML: line 1: "),
        ("a: 0x" + "F" * 9999, "is not valid YAML: line 1: a whole number of 10,001 characters"),
        ('a: "\\0"', "is not valid YAML: line 1: '\\x00' has a character that is no text"),
        ('a: "\\ud800"', "is not valid YAML: line 1: '\\ud800' has a character that is no text"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_clear_line(path, text, message):
    assert refused_text(path, text).startswith(f"recipe={str(path)!r}: {message}")


def test_files_that_cannot_be_read(tmp_path):
    assert refused(tmp_path / "no.yaml") == f"recipe={str(tmp_path / 'no.yaml')!r}: no such file"
    assert refused(tmp_path).startswith(f"recipe={str(tmp_path)!r}: cannot be read as text (")
    (tmp_path / "bin.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as text ('utf-8' codec" in refused(tmp_path / "bin.yaml")


def test_a_missing_section_is_told_by_name(path):
    assert refused_text(path, yaml.safe_dump({k: v for k, v in BASE.items() if k != "optim"})) == "optim: is missing"
    misspelt = yaml.safe_dump({k if k != "optim" else "optm": v for k, v in BASE.items()})
    assert refused_text(path, misspelt) == "optm: unknown key; did you mean optim? (and 1 more)"


def test_a_profile_that_changes_another_scheme_starts_it_afresh(path):
    named = {"dsd": {"dense": 4}, "other": {"name": "dsd", "dense": 4}}
    for key, old in named.items():
        profiles = {
            "same": {"schemes": {key: {"sparse": 2}}},
            "again": {"schemes": {key: {"name": "dsd", "sparse": 2}}},
            "new": {"schemes": {"other": {"name": "ema", "decay": 0.5}}},
        }
        path.write_text(yaml.safe_dump({**BASE, "schemes": {key: old}, "profiles": profiles}))
        for profile in ("same", "again"):
            options = load_recipe(path, profile=profile).schemes[key]
            assert (options["name"], options["dense"], options["sparse"]) == ("dsd", 4, 2)
    options = load_recipe(path, profile="new").schemes["other"]
    assert (options["name"], options["decay"]) == ("ema", 0.5)
    assert "dense" not in options


def test_profiles_are_checked_chosen_or_not(path):
    def profiles(**changes):
        return yaml.safe_dump({**BASE, "profiles": changes})

    assert refused_text(path, profiles(q={"epoch": 3})) == "profiles.q: epoch: unknown key; did you mean epochs?"
    assert refused_text(path, profiles(q={"optim": {"lr": 0}})) == "profiles.q: optim.lr=0: must be greater than 0"
    assert refused_text(path, profiles(q=3)).startswith("profiles: must be a mapping of names to changes")
    assert refused_text(path, profiles(q={"profiles": {}})) == "profiles.q: profiles: a profile cannot have profiles"


def test_an_unknown_profile_lists_those_there_are(path):
    assert refused(path, profile="quik") == (
        "profile='quik': unknown profile; did you mean 'quick'? known: quick, residual"
    )
    path.write_text(yaml.safe_dump({k: v for k, v in BASE.items() if k != "profiles"}))
    assert refused(path, profile="quick") == "profile='quick': unknown profile; the recipe has none"


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_of_the_project_is_valid_with_each_profile(path):
    recipe = load_recipe(path)
    names = {recipe.name, *(load_recipe(path, profile=name).name for name in recipe.profiles)}
    assert len(names) == 1 + len(recipe.profiles)
    recipe.scheme_spec("standard")


def test_the_papers_recipe_has_the_papers_settings():
    path = RECIPES / "paper" / "c3-32-cifar10.yaml"
    recipe = load_recipe(path)
    scheme = recipe.scheme
    assert (scheme["full"], scheme["sub"], scheme["cycles"], scheme["fraction"]) == (20, 10, 3, 0.3)
    assert (recipe.epochs, recipe.batch, recipe.optim.lr) == (100, 64, 0.01)
    assert (recipe.augment, recipe.data.validation) == ("none", 5000)
    release = load_recipe(path, profile="release")
    assert release.model.options == {
        "depth": 3, "width": 32, "kernel": 5, "batch_norm": False, "pool": True, "init": "normal", "std": 0.04,
        "dropout": 0.0,
    }  # fmt: skip
    assert (release.optim.lr, release.schedule.name, release.schedule.every) == (0.05, "halving", 25000)
    assert release.scheme["skip"] is None
    assert (release.scheme["criterion"], release.scheme["reinit"]["method"]) == ("orthogonality-released", "released")
    quick = load_recipe(path, profile="quick")
    assert quick.schedule.every is not None
    assert quick.data.limit is not None
    steps = -(-quick.data.limit // quick.batch)
    last_return = (quick.scheme["full"] + quick.scheme["sub"]) * quick.scheme["cycles"]
    assert last_return * steps < quick.schedule.every, "the last cycle ends before the learning rate falls"


@pytest.mark.parametrize("profile", [None, "quick"])
def test_the_recipe_of_criteria_changes_the_criterion_alone(profile):
    path = RECIPES / "paper" / "criteria-c3-32.yaml"
    recipe = load_recipe(path, profile=profile)
    assert len(recipe.every_scheme()) == 10
    specs = [recipe.scheme_spec(key).model_dump(exclude={"criterion"}) for key in recipe.every_scheme()[1:]]
    assert all(spec == specs[0] for spec in specs)
    assert len({recipe.scheme_spec(key).criterion for key in recipe.every_scheme()[1:]}) == 9


@pytest.mark.parametrize("name", ["criteria-c3-32", "figure-cca-c2-32", "figure-oracle-c2-32"])
def test_the_other_recipes_have_the_papers_settings_and_end_whole(name):
    path = RECIPES / "paper" / f"{name}.yaml"
    recipe = load_recipe(path)
    scheme = recipe.scheme
    assert (scheme["full"], scheme["sub"], scheme["cycles"], scheme["fraction"]) == (20, 10, 3, 0.3)
    assert (recipe.epochs, recipe.batch, recipe.optim.lr, recipe.seeds) == (100, 64, 0.01, 5)
    assert recipe.model.options["depth"] == (2 if "c2" in name else 3)
    assert (recipe.snapshots is None) == (name == "criteria-c3-32")
    quick = load_recipe(path, profile="quick")
    last_return = (quick.scheme["full"] + quick.scheme["sub"]) * quick.scheme["cycles"]
    assert quick.epochs - last_return > quick.scheme["full"]


def test_a_recipe_made_in_code_is_checked_too():
    recipe = parse(Recipe, {k: v for k, v in BASE.items() if k not in ("profiles", "scheme", "schemes")})
    assert recipe.scheme == {"name": "standard"}
    assert recipe.base == Path()


def test_a_word_that_begins_like_a_number_is_a_word(path):
    assert load_recipe(path, overrides=["name=1e5x"]).name == "1e5x"
    assert load_recipe(path, overrides=["optim.lr=1e-5"]).optim.lr == 1e-5


def test_a_file_without_an_end_is_refused():
    with pytest.raises(UserError, match=r"recipe='/dev/zero': has more than [\d,]+ bytes"):
        load_recipe("/dev/zero")
