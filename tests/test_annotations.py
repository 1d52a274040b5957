"""While the tests run, the method's annotations are checked: sizes of one name are equal, types are what is said."""

import importlib
import inspect
import pkgutil
import re
from typing import Any, TypeVar, get_args

import beartype.roar
import jaxtyping
import pytest
import torch

import torchreaper
from torchreaper import checks, reinit

CHECKED = [
    module.name
    for module in pkgutil.walk_packages(torchreaper.__path__, "torchreaper.")
    if not re.match(r"torchreaper\.(lab|integrations)\b", module.name)
]


def may_be_anything(annotation):
    says_nothing = annotation in ("Any", "object", Any, object) or isinstance(annotation, TypeVar)
    return says_nothing or Any in get_args(annotation)


def test_sizes_of_one_name_are_equal():
    with pytest.raises(jaxtyping.TypeCheckError, match="rows"):
        reinit.worst_cosine(torch.eye(2), torch.eye(3))


def test_a_type_is_looked_at_where_no_shape_is_named():
    with pytest.raises(beartype.roar.BeartypeCallHintParamViolation, match="epochs"):
        checks.checked_phases("8", 2, 2, 1)


@pytest.mark.parametrize("name", CHECKED)
def test_no_function_of_the_method_goes_unchecked(name):
    module = importlib.import_module(name)
    owners = [module, *(c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == name)]
    for owner in owners:
        for function in filter(inspect.isfunction, vars(owner).values()):
            written = inspect.unwrap(function)
            # What a dataclass writes itself has no source.
            telling = not all(map(may_be_anything, inspect.get_annotations(written).values()))
            if function.__module__ == name and telling and written.__code__.co_filename == module.__file__:
                assert function is not written or hasattr(function, "__beartype_wrapper"), written.__qualname__
