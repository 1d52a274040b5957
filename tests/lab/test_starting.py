"""`reaper new`: a recipe to start from."""

import json
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from torchreaper.lab import cli
from torchreaper.lab.errors import UserError
from torchreaper.lab.recipe import Recipe, load_recipe
from torchreaper.lab.starting import recipe_text


def reaper(*args):
    return CliRunner().invoke(cli.app, list(map(str, args)), prog_name="reaper")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_runs_as_it_stands(here, one_thread):
    done = reaper("new")
    assert (done.exit_code, done.output) == (0, "recipe.yaml: edit it, then: reaper compare recipe.yaml\n")
    done = reaper("compare", "recipe.yaml", "--schemes", "standard,repr-random", "--seeds", "1", "--quiet")
    assert done.exit_code == 0, done.output
    results = [json.loads(path.read_text()) for path in (here / "runs" / "recipe").glob("*/seed-*/result.json")]
    assert {result["scheme"] for result in results} == {"standard", "repr-random"}
    assert len(results) == 2
    assert all(result["test_accuracy"] > 0.6 for result in results), "far better than guessing one of ten"


@pytest.mark.parametrize("data", ["digits", "folder", "parquet", "hub", "mypackage.data:make"])
@pytest.mark.parametrize("model", ["cnet", "resnet20", "timm:resnet18", "torchvision:resnet18", "mynets.at:Class.make"])
def test_every_choice_is_a_whole_recipe(here, model, data):
    done = reaper("new", "My first.yaml", "--model", model, "--data", data)
    assert (done.exit_code, done.output) == (0, "My first.yaml: edit it, then: reaper compare 'My first.yaml'\n")
    found = load_recipe(here / "My first.yaml")
    assert (found.name, found.model.name, found.data.name) == ("My-first", model, data)


@pytest.mark.parametrize(
    ("data", "model", "task", "made"),
    [
        ("coco", None, "detection", "detector"),
        ("coco", "faster-rcnn-c4", "detection", "faster-rcnn-c4"),
        ("coco", "mynets:make", "detection", "mynets:make"),
        ("easy-vqa", None, "vqa", "vqa"),
        ("easy-vqa", "mynets:make", "vqa", "mynets:make"),
    ],
)
def test_other_tasks_have_theirs(here, data, model, task, made):
    done = reaper("new", "mine.yaml", "--data", data, *(["--model", model] if model else []))
    assert done.exit_code == 0, done.output
    found = load_recipe(here / "mine.yaml")
    if model == "mynets:make":  # nobody knows its options
        assert found.model.options == {}
    assert (found.task, found.model.name, found.data.name) == (task, made, data)
    text = (here / "mine.yaml").read_text()
    for section in ("data", "model"):
        part = text[text.index(f"\n{section}:") :].split("\n\n")[0]
        for other in re.findall(r"^#   (\{.*\})", part, re.MULTILINE):
            (here / "other.yaml").write_text(yaml.safe_dump({**yaml.safe_load(text), section: yaml.safe_load(other)}))
            load_recipe(here / "other.yaml")


@pytest.mark.parametrize("name", ["2024", "yes", "1e3", "null"])
def test_a_name_stays_a_name(here, name):
    assert reaper("new", f"{name}.yaml").exit_code == 0
    assert load_recipe(f"{name}.yaml").name == name


@settings(max_examples=200)
@given(
    st.text(max_size=120).filter(lambda name: "/" not in name)
    | st.from_regex(r"(?i)(con|com1|nul)[. ]?\w?", fullmatch=True)
)
def test_whatever_the_file_is_called_the_recipe_can_be_run(name):
    if not name.isprintable():
        with pytest.raises(UserError, match="must be a name that can be printed; choose another"):
            recipe_text(f"{name}.yaml")
        return
    text = recipe_text(f"{name}.yaml")
    values = yaml.safe_load(text)
    assert Recipe.model_validate({**values, "profiles": {}}).name == values["name"]
    assert text.count("\n") == recipe_text("recipe.yaml").count("\n")


def test_what_is_commented_out_is_right_too(here):
    """Each alternative, put in the place of the section that it follows."""
    text = recipe_text("a.yaml")
    tried = 0
    for section in ("data", "model"):
        part = text[text.index(f"\n{section}:") :].split("\n\n")[0]
        for other in re.findall(r"^#   (\{.*\})", part, re.MULTILINE):
            values = {**yaml.safe_load(text), section: yaml.safe_load(other)}
            (here / "other.yaml").write_text(yaml.safe_dump(values))
            load_recipe(here / "other.yaml")
            tried += 1
    assert tried == 8


@pytest.mark.parametrize("data", ["digits", "coco", "easy-vqa"])
def test_the_filters_are_back_before_the_rate_falls(here, data):
    (here / "a.yaml").write_text(recipe_text("a.yaml", data=data))
    recipe = load_recipe(here / "a.yaml")
    scheme = recipe.scheme_spec("repr")
    assert scheme.cycles * (scheme.full + scheme.sub) == recipe.epochs - recipe.schedule.fall


@pytest.mark.parametrize(
    ("model", "skip"),
    [("cnet", None), ("resnet20", ["first", "full-width"]), ("timm:seresnet18", ["first", "full-width"])],
)
def test_filters_that_end_in_a_sum_are_left_out_of_residual_networks(here, model, skip):
    found = yaml.safe_load(recipe_text("a.yaml", model=model))
    assert found["scheme"].get("skip") == skip
    assert {"fraction": 0.3, **found["schemes"]["repr-random"]} == {**found["scheme"], "criterion": "random"}


def test_no_line_is_wider_than_the_others():
    texts = [recipe_text("a.yaml", data=data) for data in ("digits", "folder", "parquet", "hub", "coco", "easy-vqa")]
    lines = "\n".join([*texts, recipe_text("a.yaml", model="resnet20")]).splitlines()
    assert max(map(len, lines)) <= 120


def test_a_file_that_is_there_is_left_alone(here):
    (here / "recipe.yaml").write_text("mine")
    done = reaper("new")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "error: file='recipe.yaml': is there already; choose another name, or delete it\n"
    assert (here / "recipe.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "resnet_20"], "model.name='resnet_20': unknown model; did you mean 'resnet20'?"),
        (["--model", "a/b:c"], "model.name='a/b:c': must be package.module:callable, such as mynets.small:make"),
        (["--data", "folders"], "data='folders': unknown data; did you mean 'folder'?"),
        (["--data", "cocoa"], "data='cocoa': unknown data; did you mean 'coco'? known: digits, folder, parquet, hub, "),
        (["--data", "coco", "--model", "cnet"], "model='cnet': is not for data='coco'; choose detector, "),
        (["--data", "easy-vqa", "--model", "cnet"], "model='cnet': is not for data='easy-vqa'; choose vqa, or "),
        (
            ["--data", "coco", "--model", "resnet20"],
            "model='resnet20': is not for data='coco'; choose detector, faster-",
        ),
        *(
            (["--data", kind, "--model", "timm:resnet18"], f"model='timm:resnet18': is not for data='{kind}'; choose ")
            for kind in ("coco", "easy-vqa")
        ),
        (["--model", "vqa"], "model='vqa': is a network for vqa; give --data easy-vqa with it"),
        (["recipe.txt"], "file='recipe.txt': must end in .yaml"),
        (["no/where.yaml"], "file='no/where.yaml': cannot be written (No such file or directory); choose another"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(here, args, message):
    done = reaper("new", *args)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert not list(here.iterdir())
