"""Recipes that are found by name and by folder, listed, copied."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from torchreaper.lab import cli, library
from torchreaper.lab.errors import UserError
from torchreaper.lab.recipe import load_recipe

ROOT = Path(__file__).parents[2]
TINY = {
    "name": "mine",
    "epochs": 4,
    "batch": 25,
    "data": {"name": "digits", "limit": 50},
    "model": {"name": "cnet", "options": {"depth": 2, "width": 4}},
    "optim": {"name": "sgd", "lr": 0.05},
    "scheme": {"name": "repr", "full": 1, "sub": 1, "cycles": 1},
    "published": {"unit": "error %", "source": "a table", "values": {"standard": 30.0, "repr": 25.5}},
    "profiles": {"quick": {"seeds": 1}, "long": {"epochs": 9}},
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "recipes" / "deep" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# What I try (Me 2026, table 1).\n" + yaml.safe_dump(TINY, sort_keys=False))
    return Path("recipes/deep/mine.yaml")


def reaper(*args):
    return CliRunner().invoke(cli.app, [str(arg) for arg in args], prog_name="reaper")


def test_the_packages_recipes_have_the_names_of_their_files():
    found = library.shipped()
    assert {"demo", "paper/c3-32-cifar10"} <= found.keys()
    assert set(found.values()) == set((ROOT / "recipes").rglob("*.yaml"))
    for name in ("demo", "demo.yaml", "paper/c3-32-cifar10"):
        assert library.find(name).samefile(ROOT / "recipes" / f"{name.removesuffix('.yaml')}.yaml")


def test_a_file_that_is_there_comes_before_a_name(tmp_path):
    Path("demo").write_text("mine")
    assert library.find("demo") == Path("demo")


def test_a_folder_of_that_name_is_no_recipe(tmp_path):
    """``--out .`` makes one."""
    Path("demo").mkdir()
    assert library.find("demo").samefile(ROOT / "recipes" / "demo.yaml")


@pytest.mark.parametrize("wrong", ["dmo", "recipes/demo.yaml", "paper/c3-32-cifar"])
def test_a_name_that_is_nearly_one_is_corrected(wrong):
    with pytest.raises(UserError, match=r"no such file; did you mean '(demo|paper/c3-32-cifar10)', which comes with"):
        library.find(wrong)


@pytest.mark.parametrize("path", ["nothing-like-it.yaml", "../x/y", "elsewhere/very/deep/file.yaml", "/"])
def test_other_paths_stay_what_they_are(path):
    assert library.find(path) == Path(path)


@pytest.mark.parametrize("path", ["../demo", "/demo"])
def test_a_path_is_no_name_even_where_it_would_lead_to_a_recipe(path):
    with pytest.raises(UserError, match="no such file; did you mean 'demo'"):
        library.find(path)


def test_the_list_has_the_packages_and_those_of_the_folder_recipes(mine):
    found = library.listing()
    assert [one.name for one in found] == [*library.shipped(), str(mine)]
    assert [one.what for one in found if one.name in ("demo", str(mine))][1] == "What I try"
    heads, rows = library.table(found[-1:])
    assert dict(zip(heads, rows[0])) == {
        "recipe": str(mine),
        "what": "What I try",
        "published accuracy %": "70.0 -> 74.5",
        "profiles": "quick, long",
        "epochs": "4",
        "seeds": "3",
    }
    ((name, about),) = library.table(found[-1:], narrow=True)[1]
    assert (name, about.splitlines()) == (
        str(mine),
        ["What I try", "published accuracy 70.0 -> 74.5 %, 4 epochs, 3 seeds", "profiles: quick, long"],
    )


def test_in_the_checkout_no_recipe_is_listed_twice(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert [one.name for one in library.listing()] == list(library.shipped())


def test_a_broken_recipe_is_named_and_the_others_are_listed(mine):
    (mine.parent / "broken.yaml").write_text("epochs: [")
    (mine.parent / "wrong.yaml").write_text(yaml.safe_dump({**TINY, "epochs": "many"}))
    done = reaper("recipes", "recipes")
    assert done.exit_code == 1
    assert f"{mine}" in done.output
    broken = [line for line in done.output.splitlines() if line.startswith("broken: ")]
    assert broken[0].startswith("broken: recipes/deep/broken.yaml: recipe=")
    assert "is not valid YAML" in broken[0]
    assert broken[1] == "broken: recipes/deep/wrong.yaml: epochs='many': must be a whole number"


def test_a_folder_without_recipes_and_none(tmp_path):
    Path("empty").mkdir()
    assert reaper("recipes", "empty").output == "No recipes there.\n"
    done = reaper("recipes", "nowhere")
    assert (done.exit_code, done.output) == (
        2,
        "error: folder='nowhere': no such folder; name one with recipes, or leave it out\n",
    )


def test_the_command_lists_all_with_their_published_numbers():
    done = reaper("recipes")
    assert done.exit_code == 0, done.output
    lines = {line.split()[0]: line for line in done.output.splitlines() if line.strip()}
    assert "72.1 -> 76.4" in lines["paper/c3-32-cifar10"]
    assert "demo" in lines


def test_a_copy_is_the_recipe_and_nothing_is_overwritten():
    done = reaper("recipes", "--copy", "paper/c3-32-cifar10")
    assert (done.exit_code, done.output) == (0, "c3-32-cifar10.yaml\n")
    source = ROOT / "recipes/paper/c3-32-cifar10.yaml"
    assert Path("c3-32-cifar10.yaml").read_bytes() == source.read_bytes()
    again = reaper("recipes", "--copy", "paper/c3-32-cifar10")
    assert (again.exit_code, again.output) == (
        2,
        "error: copy='paper/c3-32-cifar10': c3-32-cifar10.yaml is there already; rename it, or go to another folder\n",
    )
    wrong = reaper("recipes", "--copy", "dem")
    assert wrong.output.startswith("error: copy='dem': no such recipe; did you mean 'demo'?")
    useless = reaper("recipes", "recipes", "--copy", "demo")
    assert useless.output == "error: folder='recipes': has no effect with --copy; leave it out\n"


def test_commands_take_a_recipe_by_its_name(one_thread):
    small = ("--set", "epochs=4", "--set", "scheme={name: repr, full: 1, sub: 1, cycles: 1}", "--set", "schemes={}")
    done = reaper("compare", "demo", "--seeds", 1, *small)
    assert done.exit_code == 0, done.output
    assert Path("runs/demo/comparison.md").exists()


@pytest.mark.slow
def test_a_wheel_has_the_recipes(tmp_path):
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(pip, check=True)
    (wheel,) = tmp_path.glob("torchreaper-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "from torchreaper.lab import library; print(*library.shipped(), library.find('demo'), sep='\\n')"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert found[:-1] == list(library.shipped())
    assert load_recipe(found[-1]).name == "demo"
    assert found[-1].startswith(str(tmp_path / "site"))
