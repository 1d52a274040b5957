"""What a run was made of besides its recipe, the user's own modules and data files, and that a change is told."""

import importlib
import json
import os
import shutil
import sys
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.lab.test_compare import Listener
from tests.lab.tiny import recipe

from torchreaper.lab import provenance
from torchreaper.lab.compare import compare
from torchreaper.lab.objects import find
from torchreaper.lab.provenance import changed, in_words, now
from torchreaper.lab.run import train

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = {"name": "mynets.nets:make", "options": {}}
QUIET = {"epochs": 1, "scheme": {"name": "standard"}, "model": MODEL}
NAMES = st.text("ab", min_size=1, max_size=2).map("{}.png".format)
FILES = st.dictionaries(NAMES, st.binary(max_size=3), min_size=1, max_size=4)


def code(asked, scheme="standard"):
    return provenance.provenance(asked, scheme)["code"]


def forget():
    """As a new command would."""
    for name in [name for name in sys.modules if name.split(".")[0] == "mynets"]:
        del sys.modules[name]


@pytest.fixture
def nets(mine):
    """The user's package ``mynets``: ``nets`` imports ``blocks``, and ``late`` and ``deep`` in a function."""
    for name in ("blocks", "late", "other", "deep"):
        (mine / "mynets" / f"{name}.py").write_text(f"NAME = {name!r}\n")
    path = mine / "mynets" / "nets.py"
    late = (
        "\n\ndef later():\n    from . import late\n    import mynets.deep, json\n    return late, mynets.deep, json\n"
    )
    path.write_text(f"from mynets.blocks import NAME\n{path.read_text()}{late}")
    importlib.invalidate_caches()
    return mine


def test_code_is_the_modules_that_are_named_and_what_they_import_from_beside_them(nets):
    assert code(recipe(**QUIET)) == {}  # nothing is imported yet
    find("mynets.nets:later", "model")()
    importlib.import_module("mynets.other")
    found = code(recipe(**QUIET))
    assert sorted(found) == [f"mynets/{name}.py" for name in ("__init__", "blocks", "deep", "late", "nets")]


def test_code_of_another_folder_than_the_recipes_has_its_whole_path(nets, tmp_path_factory):
    find("mynets.nets:make", "model")
    found = code(recipe(**QUIET).at(tmp_path_factory.mktemp("elsewhere")))
    assert sorted(found) == [str((nets / "mynets" / f"{name}.py").resolve()) for name in ("__init__", "blocks", "nets")]
    assert not changed({"code": found}, now(nets))


def test_what_is_installed_or_pythons_own_is_not_the_users(nets, monkeypatch):
    (nets / "site-packages").mkdir()
    shutil.move(nets / "mynets", nets / "site-packages" / "mynets")
    monkeypatch.syspath_prepend(nets / "site-packages")
    monkeypatch.chdir("/")  # everything is below it
    find("mynets.nets:make", "model")
    names = ("mynets.nets:make", "json.decoder:JSONDecoder", "torchreaper.lab.run:train")
    sources = [sys.modules[name.partition(":")[0]] for name in names]
    assert all(module.__file__ for module in sources)
    for name in names:
        assert code(recipe(model={"name": name, "options": {}})) == {}


def test_a_finished_run_says_that_its_code_is_another_now(nets):
    told = Listener()
    first = train(recipe(**QUIET), scheme="standard", seed=0, out=nets / "runs", progress=told)
    assert train(recipe(**QUIET), scheme="standard", seed=0, out=nets / "runs", progress=told) == first
    assert not told.notes
    (nets / "mynets" / "blocks.py").write_text("NAME = 'wider'\n")
    assert train(recipe(**QUIET), scheme="standard", seed=0, out=nets / "runs", progress=told) == first
    folder = nets / "runs" / "tiny" / "standard" / "seed-0"
    assert told.notes == [
        f"{folder}: was trained with another mynets/blocks.py than there is now; it is not repeated: give another name "
        "or out, or delete that folder, to train with what there is now"
    ]
    (nets / "mynets" / "blocks.py").write_text("NAME = 'blocks'\n")
    train(recipe(**QUIET), scheme="standard", seed=0, out=nets / "runs", progress=told)
    assert len(told.notes) == 1  # as it was


def test_a_run_that_goes_on_says_so_too_and_its_comparison_keeps_it(nets):
    asked = recipe(**{**QUIET, "epochs": 3})

    class Stop(Listener):
        def epoch(self, metrics):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(asked, scheme="standard", seed=0, out=nets / "runs", progress=Stop())
    (nets / "mynets" / "blocks.py").write_text("NAME = 'wider'\n")
    forget()
    told = Listener()
    found = compare(asked, ["standard"], 1, nets / "runs", told)
    folder = nets / "runs" / "tiny" / "standard" / "seed-0"
    note = f"{folder}: was trained with another mynets/blocks.py than there is now; it goes on with what there is now"
    assert told.notes == [note]
    begun = json.loads((folder / "environment.json").read_text())
    assert begun["code"]["mynets/blocks.py"] != begun["resumed"][0]["code"]["mynets/blocks.py"]
    assert any(text.startswith("1 of 1 runs were made with another mynets/blocks.py") for text in found.remarks)


PULL = """
from typing import Literal
from torchreaper.lab.schemes import StandardSpec

class PullSpec(StandardSpec):
    name: Literal["standard"] = "standard"
"""


def test_a_schemes_own_code_is_that_of_its_runs_alone(nets):
    (nets / "mynets" / "pull.py").write_text(PULL)
    asked = recipe(schemes={"pull": {"name": "mynets.pull:PullSpec"}})
    find("mynets.pull:PullSpec", "scheme")
    both = ["mynets/__init__.py", "mynets/pull.py"]
    assert code(asked) == {}
    assert sorted(code(asked, "pull")) == sorted(code(asked, "ema+pull")) == both
    # Named on the command line alone, too.
    assert sorted(code(recipe(), "mynets.pull:PullSpec")) == both


def test_code_is_what_was_loaded_not_what_its_file_has_become(nets):
    find("mynets.nets:make", "model")
    before = code(recipe(**QUIET))
    (nets / "mynets" / "blocks.py").write_text("NAME = 'wider'\n")
    assert code(recipe(**QUIET)) == before
    importlib.reload(sys.modules["mynets.blocks"])
    after = code(recipe(**QUIET))
    assert [name for name in after if after[name] != before[name]] == ["mynets/blocks.py"]
    forget()
    find("mynets.nets:make", "model")
    assert code(recipe(**QUIET)) == after


def test_links_and_names_of_pythons_own_modules_are_the_users_where_they_stand_beside_the_recipe(
    nets, tmp_path_factory
):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "blocks.py"
    shutil.move(nets / "mynets" / "blocks.py", elsewhere)
    (nets / "mynets" / "blocks.py").symlink_to(elsewhere)
    (nets / "mynets" / "sched.py").write_text("PATTERN = '\\d'\n")
    path = nets / "mynets" / "nets.py"
    path.write_text(f"from . import sched\n{path.read_text()}")
    importlib.invalidate_caches()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # '\d'
        find("mynets.nets:make", "model")
    assert {"mynets/blocks.py", "mynets/sched.py"} <= code(recipe(**QUIET)).keys()


@pytest.mark.parametrize("name", ["a\0b", "\udc80", "/dev/zero", "mynets"])
def test_names_of_no_files_are_nothing_to_tell(nets, name):
    assert changed({"code": {name: "0"}, "data": {name: "0"}}, now(nets)) == []


def test_another_teacher_is_told_as_well(nets):
    teacher = {"model": MODEL, "epochs": 1}
    asked = recipe(epochs=1, scheme={"name": "standard"}, schemes={"kd": {"teacher": teacher}})
    compare(asked, ["standard", "kd"], 1, nets / "runs")
    (nets / "mynets" / "blocks.py").write_text("NAME = 'wider'\n")
    told = Listener()
    found = compare(asked, ["standard", "kd"], 2, nets / "runs", told)
    assert told.notes[0].startswith("1 of 2 runs were made with another mynets/blocks.py than there is now")
    # The second teacher learnt by the code that this process had loaded.
    assert any(text.startswith("2 of 4 runs were made with another mynets/blocks.py") for text in found.remarks)


def test_links_in_a_circle_end(tmp_path):
    fill(tmp_path / "data", {"a.png": b"1"})
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "above").symlink_to(tmp_path)
    assert now(tmp_path)("data", "data").startswith("1 file, 1 bytes, ")


def test_of_very_many_files_the_names_count(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_MOST", 1)
    fill(tmp_path / "data", {"a.png": b"123", "b.png": b"456"})
    before = now(tmp_path)("data", "data")
    assert before.startswith("2 files, ")
    assert "bytes" not in before
    fill(tmp_path / "data", {"a.png": b"12", "b.png": b"456"})
    assert now(tmp_path)("data", "data") == before
    fill(tmp_path / "data", {"a.png": b"123", "c.png": b"456"})
    assert now(tmp_path)("data", "data") != before


def pictures(folder, seed):
    """Two classes of eight pictures."""
    for kind in ("dark", "light"):
        for split in ("train", "test"):
            place = folder / split / kind
            place.mkdir(parents=True, exist_ok=True)
            for number in range(8):
                Image.new("L", (8, 8), (number + seed) * 3 + (kind == "light") * 128).save(place / f"{number}.png")


def test_a_comparison_says_which_runs_had_other_data(tmp_path):
    pictures(tmp_path / "data", 0)
    asked = recipe(
        epochs=1,
        batch=8,
        data={"name": "folder", "train": "data/train", "test": "data/test", "memory": True},
        scheme={"name": "standard"},
        schemes={"again": {"name": "standard"}},
    ).at(tmp_path)
    compare(asked, ["standard"], 1, tmp_path / "runs")
    assert not any("another" in text for text in compare(asked, ["standard", "again"], 1, tmp_path / "runs").remarks)
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    shutil.rmtree(tmp_path / "data")
    os.rename(tmp_path / "copy", tmp_path / "data")  # the same pictures, with another date
    for name in (".DS_Store", "Thumbs.db", "._1.png"):  # what systems leave in folders
        (tmp_path / "data" / "train" / "dark" / name).write_text("theirs")
    assert not any("another" in text for text in compare(asked, ["standard"], 1, tmp_path / "runs").remarks)
    pictures(tmp_path / "data", 1)
    told = Listener()
    found = compare(asked, ["standard", "again"], 2, tmp_path / "runs", told)
    text = (
        "2 of 2 runs were made with another data/train and data/test than there is now, and finished runs are not "
        "repeated: give another name or out to make all of them with what there is now."
    )
    assert told.notes == [text]  # before any of the new runs
    assert text.replace("2 of 2", "2 of 4") in found.remarks
    assert text.replace("2 of 2", "2 of 4") in (tmp_path / "runs" / "tiny" / "comparison.md").read_text()
    shutil.rmtree(tmp_path / "data")  # brought to another machine, nothing can be said
    assert not any("another" in text for text in compare(asked, ["standard", "again"], 2, tmp_path / "runs").remarks)


def fill(folder, files):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=FILES, two=FILES, place=st.sampled_from(["data", "data/*", "data/a.png"]))
def test_data_are_the_same_if_and_only_if_names_and_contents_are(tmp_path, one, two, place):
    seen = []
    for files in (one, two):
        fill(tmp_path / "data", files)
        seen.append(now(tmp_path)("data", place))
    if place == "data/a.png":
        one, two = ({"a": files["a.png"]} if "a.png" in files else None for files in (one, two))
    assert (seen[0] == seen[1]) == (one == two)


def test_large_data_are_known_by_names_and_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_READ", 5)
    fill(tmp_path / "data", {"a.png": b"123", "b.png": b"456"})
    before = now(tmp_path)("data", "data")
    assert before is not None
    assert before.startswith("2 files, 6 bytes, ")
    fill(tmp_path / "data", {"a.png": b"abc", "b.png": b"456"})
    assert now(tmp_path)("data", "data") == before
    fill(tmp_path / "data", {"a.png": b"ab", "b.png": b"3456"})
    assert now(tmp_path)("data", "data") != before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are POSIX's")
def test_a_pipe_among_the_data_is_left_out(tmp_path):
    fill(tmp_path / "data", {"a.png": b"1"})
    before = now(tmp_path)("data", "data")
    os.mkfifo(tmp_path / "data" / "pipe.png")
    assert now(tmp_path)("data", "data") == before
    assert now(tmp_path)("data", "data/pipe.png") is None


def test_each_place_is_looked_at_once(tmp_path):
    fill(tmp_path / "data", {"a.png": b"1"})
    today = now(tmp_path)
    before = today("data", "data")
    fill(tmp_path / "data", {"a.png": b"2"})
    assert today("data", "data") == before != now(tmp_path)("data", "data")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c"], "a, b and c"),
        (["a", "b", "c", "d", "e"], "a, b, c and 2 more"),
    ],
)
def test_files_in_words(names, words):
    assert in_words(names) == words
