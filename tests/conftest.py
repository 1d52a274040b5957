"""Shapes and types in the method's annotations are checked while the tests run."""

import importlib
import inspect
import random
import sys
import typing
from pathlib import Path
from unittest import mock

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings

# How long drawing examples takes says nothing on a machine that others use too.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")

# Processes that tests start find `tests` too; they take over sys.path.
sys.path.insert(0, str(Path(__file__).parents[1]))

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PACKAGE = Path(__file__).parents[1] / "src" / "torchreaper"
# Not the lab: pydantic and typer read annotations in ways of their own.
PACKAGES = ["torchreaper.analysis", "torchreaper.criteria", "torchreaper.flow", "torchreaper.subnetwork"]
METHOD = [*PACKAGES, *(f"torchreaper.{p.stem}" for p in PACKAGE.glob("*.py") if p.stem != "__init__")]
# beartype looks at one place of a list, chosen by lot: of its own lots, or a run's random state would depend on how
# many lists were looked at.
with mock.patch.object(random, "getrandbits", random.Random(0).getrandbits):
    importlib.import_module("beartype")


def names_a_shape(annotation: object) -> bool:
    """Whether an array's annotation stands anywhere in it."""
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(names_a_shape, typing.get_args(annotation)))


def checked(*, typechecker, bind_shapes=jaxtyping.jaxtyped):
    """What the import hook puts on every function and class of the method.

    Binding sizes to names costs more than most of the functions themselves: where those that name no shape went through
    it, too, building a network's flow took twice as long. Their types are checked all the same.
    """

    def decorate(target):
        try:
            annotations = inspect.get_annotations(target, eval_str=True).values()
            binds = inspect.isclass(target) or any(map(names_a_shape, annotations))
        except NameError:  # a class that is not there yet
            binds = True
        return bind_shapes(typechecker=typechecker)(target) if binds else typechecker(target)

    return decorate


jaxtyping.jaxtyped = checked
jaxtyping.install_import_hook(METHOD, "beartype.beartype")


def pytest_addoption(parser):
    parser.addoption("--keep-counts", action="store_true", help="keep what the stress tests counted, for the table")


@pytest.fixture
def one_rank():
    """A process group of this process alone."""
    import torch  # after the hook of the imports

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def load(monkeypatch):
    """Import a module of benchmarks/, which is no package, and forget it afterwards."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]
