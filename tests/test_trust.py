"""What the package never does with what it reads, found in its text; and where it does what needs care."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "torchreaper"
FILES = sorted([*SOURCE.rglob("*.py"), *(ROOT / "examples").glob("*.py")])
#: Calls that need care, and the only files that may make them.
ONLY_IN = {
    "torch.load": {"loading.py", "examples/imagenet.py"},
    # Between our own processes, through pipes that nobody else has.
    "pickle.load": set(),
    "pickle.loads": {"lab/execution/worker.py", "lab/execution/workers.py", "lab/execution/telling.py"},
    "pickle.Unpickler": set(),
    "yaml.safe_load": {"lab/starting.py"},  # of a text of its own
    "yaml.load": set(),
    "yaml.unsafe_load": set(),
    "yaml.full_load": set(),
    "eval": set(),
    "exec": set(),
    "compile": set(),
    "__import__": set(),
    # What a recipe names by package.module:attribute, and two libraries by their fixed names.
    "importlib.import_module": {"lab/objects.py", "lab/models/library.py"},
    "subprocess.run": {"lab/environment.py"},  # git rev-parse HEAD
    "subprocess.Popen": set(),
    "subprocess.call": set(),
    "subprocess.check_output": set(),
    "os.system": set(),
    "os.popen": set(),
    "numpy.load": set(),
    "np.load": set(),
    "joblib.load": set(),
    "dill.load": set(),
    "tempfile.mktemp": set(),
    "shutil.unpack_archive": set(),
    "extractall": set(),
    "urlopen": set(),
    "Markup": {"lab/report/page/rendering.py"},
    # Files are written by `lab/files.py`, which follows no link; elsewhere only where there was none before.
    "write_text": set(),
    "write_bytes": {"lab/files.py", "lab/checkpoints.py"},  # its function
    "open to write": {"lab/files.py"},
    "open anew": {"lab/files.py", "integrations/timm_saving.py"},
}
KEYWORDS = {"allow_pickle": False, "trust_remote_code": False, "shell": False, "weights_only": True, "autoescape": True}


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE if SOURCE in path.parents else ROOT).as_posix()


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def kind(name: str, call: ast.Call) -> str:
    """Which of the calls it is that need care, else its name."""
    last = name.rpartition(".")[2]
    if last == "open" and name not in ("os.open", "PIL.Image.open"):
        places = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
        modes = {one.value for one in places if isinstance(one, ast.Constant) and isinstance(one.value, str)}
        modes = {mode for mode in modes if mode and set(mode) <= set("rwxabt+")}
        if any(set(mode) & set("wa+") for mode in modes):
            return "open to write"
        return "open anew" if any("x" in mode for mode in modes) else name
    return last if last in ("extractall", "urlopen", "Markup", "write_text", "write_bytes") else name


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_calls_that_need_care_stand_where_they_are_known(path):
    for name, call in calls(path):
        what = kind(name, call)
        if path.parent.name == "examples" and what == "open to write":
            continue
        assert name_of(path) in ONLY_IN.get(what, {name_of(path)}), f"{name_of(path)}, line {call.lineno}: {what}"
        if what == "torch.load":
            assert "weights_only" in {word.arg for word in call.keywords}
        for word in call.keywords:
            if word.arg in KEYWORDS and isinstance(word.value, ast.Constant):
                assert word.value.value is KEYWORDS[word.arg], f"{name_of(path)}, line {call.lineno}: {word.arg}"
            assert word.arg not in KEYWORDS or isinstance(word.value, ast.Constant), f"{word.arg} must be plain to see"


def test_every_known_place_is_still_there():
    """Else the table would allow what nobody looks at."""
    found = {(kind(name, call), name_of(path)) for path in FILES for name, call in calls(path)}
    assert {(what, place) for what, places in ONLY_IN.items() for place in places} <= found


def test_the_loader_of_yaml_is_the_safe_one():
    import yaml

    from torchreaper.lab import yaml_text

    assert issubclass(yaml_text._Loader, yaml.SafeLoader)
    made = {name for name in yaml_text._Loader.yaml_constructors if name is not None and "python" in name}
    assert not made | set(yaml_text._Loader.yaml_multi_constructors)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_name_hides_what_is_called(path):
    """``from pickle import loads`` would: modules that need care are imported whole."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module not in (
                "pickle",
                "yaml",
                "subprocess",
                "os",
                "importlib.util",
                "joblib",
                "dill",
                "shutil",
            )
            assert node.module != "torch" or "load" not in {one.name for one in node.names}
        if isinstance(node, ast.Import):
            assert all(one.asname is None or one.name not in ("pickle", "yaml", "os", "torch") for one in node.names)
