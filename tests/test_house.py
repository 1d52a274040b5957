"""The order of the modules: each imports only what stands below it, and the method never imports the lab."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "torchreaper"
# Each adapter, and what it alone imports beside torch.
STACKS = {
    "lightning": {"lightning"},
    "transformers": {"transformers"},
    "transformers_inputs": set(),
    "lightning_end": {"lightning"},
    "accelerate": {"accelerate"},
    "timm": {"timm"},
    "timm_validation": {"timm"},
    "timm_epoch": {"timm"},
    "timm_parts": {"timm"},
    "timm_images": {"timm"},
    "timm_saving": set(),
}
METHOD = [
    *(
        "__init__",
        "integrations",
        "scheme",
        "fitting",
        "checks",
        "saved",
        "transitions",
        "analysis",
        "bank",
        "restoring",
        "subnetwork",
        "cost",
        "reinit",
        "candidates",
        "criteria",
    ),
    *("geometry", "filters", "state", "ranks", "flow", "text", "loading", "errors"),
]
INSIDE = {
    "criteria": [
        *("__init__", "oracle", "hessian", "gradient", "correlation", "activation", "weights", "maps", "data"),
        *("scaling", "scale", "median", "orthogonality", "magnitude", "random", "turns", "reversed", "base", "ranking"),
    ],
    "analysis": ["__init__", "overlap", "maps", "cca", "agreement", "distribution", "values"],
    "subnetwork": ["__init__", "subnetwork", "modes", "moments", "leaves", "plan", "parts"],
    "integrations": ["__init__", *STACKS, "adapter"],
    "flow": [
        *("__init__", "find", "rows", "recording", "heads", "walk", "moving", "reading", "walking", "ledger"),
        *("following", "channels", "tracing", "putting_back", "operations"),
    ],
}
LAB = [
    *(
        "cli",
        "cli_looking",
        "cli_timm",
        "command_line",
        "console",
        "report",
        "compare",
        "execution",
        "comparison",
        "analyze",
    ),
    *(
        "statistics",
        "inspection",
        "starting",
        "run",
        "training",
        "sources",
        "tasks",
        "finite",
        "resuming",
        "teachers",
        "optim",
        "average_precision",
        "measures",
        "processes",
    ),
    *(
        "environment",
        "provenance",
        "progress",
        "locking",
        "runs",
        "reading",
        "snapshots",
        "checkpoints",
        "checksums",
        "library",
        "recipe",
        "recipe_text",
        "records",
        "published",
        "schemes",
        "data",
        "models",
        "sections",
    ),
    *("objects", "settings", "files", "stopping", "yaml_text", "foreign", "launched", "wording", "errors"),
]
FILES = sorted(p.relative_to(SOURCE) for p in SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return (
        (path.parts[0] if len(path.parts) > 1 else path.stem)
        if path.parts[0] != "lab"
        else path.parts[1].removesuffix(".py")
    )


def imports(path: Path) -> set[str]:
    """Full names of everything of this package that a file imports, names out of packages included."""
    found = set()
    for node in ast.walk(ast.parse((SOURCE / path).read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name for name in names if name.split(".")[0] == "torchreaper"}
    return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_run_downwards(path):
    in_lab = path.parts[0] == "lab"
    if path == Path("lab/__init__.py"):
        assert not imports(path)
        return
    order = LAB if in_lab else METHOD
    here = order.index(room(path))
    for name in imports(path):
        parts = name.split(".")[1:]
        if parts[:1] == ["lab"]:
            assert in_lab, f"the method imports the lab: {name}"
            assert order.index(parts[1]) >= here, f"{path} imports upwards: {name}"
        elif not in_lab and parts and parts[0] in METHOD:
            assert order.index(parts[0]) >= here, f"{path} imports upwards: {name}"
            if (rooms := INSIDE.get(parts[0])) and path.parts[0] == parts[0] and parts[1] in rooms:
                assert rooms.index(parts[1]) > rooms.index(path.stem), f"{path} imports upwards: {name}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_private_names_of_others_and_no_long_files(path):
    for name in imports(path):
        private = [part for part in name.split(".") if part.startswith("_") and not part.startswith("__")]
        assert not private, f"{path} imports {name}"
    assert len((SOURCE / path).read_text().splitlines()) <= 400


def test_the_method_needs_torch_and_jaxtyping_only():
    allowed = {"torchreaper", "torch", "jaxtyping", "__future__"}
    import sys

    for path in FILES:
        if path.parts[0] == "lab":
            continue
        for node in ast.walk(ast.parse((SOURCE / path).read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            stack = STACKS.get(path.stem, set()) if path.parts[0] == "integrations" else set()
            for name in names:
                top = name.split(".")[0]
                assert top in allowed | stack or top in sys.stdlib_module_names, f"{path} imports {name}"


@pytest.mark.parametrize("stack", STACKS)
def test_an_adapter_is_short(stack):
    path = SOURCE / "integrations" / f"{stack}.py"
    assert not path.exists() or len(path.read_text().splitlines()) <= 100
