"""Networks of the user's own, found by package.module:callable."""

import re
import sys

import pytest
import torch
from torch import nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.models import build_callable, is_callable


def refused(name, **options):
    with pytest.raises(UserError) as error:
        build_callable(name, options)
    return str(error.value)


def test_a_colon_tells_a_callable_from_a_name_of_the_zoo():
    assert is_callable("mynets.nets:make")
    assert not is_callable("resnet20")


def test_a_function_and_a_class_of_the_current_folder_make_a_network(mine):
    assert build_callable("mynets.nets:make", {"width": 7})[0].out_channels == 7
    assert type(build_callable("mynets.nets:Untraceable", {})).__name__ == "Untraceable"
    assert isinstance(build_callable("torch.nn:Conv2d", {"in_channels": 1, "out_channels": 2, "kernel_size": 3}),
                      nn.Conv2d)  # fmt: skip


def test_what_stands_inside_a_class_is_found_too(mine):
    (mine / "mynets" / "inside.py").write_text(
        "from torch import nn\nclass Zoo:\n    @classmethod\n    def small(cls):\n        return nn.Conv2d(1, 2, 3)\n"
    )
    assert isinstance(build_callable("mynets.inside:Zoo.small", {}), nn.Conv2d)


ERRORS = {
    "mynets.nets": r"must be package\.module:callable, such as mynets\.small:make",
    ":make": "must be package",
    "mynets.nets:": "must be package",
    "mynets/nets.py:make": "must be package",
    "mynets.nets:make:more": "must be package",
    "nonets:make": r"nonets cannot be imported \(ModuleNotFoundError: No .*'nonets'\); install it, or put it into /.+$",
    "mynets.other:make": r"mynets\.other cannot be imported \(ModuleNotFoundError[^;]*$",
    "mynets.nets:mak": r"mynets\.nets has no mak; did you mean 'make'\?$",
    "mynets.nets:make.small": r"mynets\.nets has no make\.small$",
    "mynets.nets:number": r"number is a int; must be a callable$",
    "mynets.nets:fails": r"fails\(\) fails \(ValueError: no width\)",
    "mynets.nets:table": r"table\(\) makes a dict; must be a torch\.nn\.Module",
    "broken:make": r"broken cannot be imported \(SyntaxError: .*broken\.py, line 1\)",
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_makes_no_network_is_told(mine, name):
    (mine / "broken.py").write_text("def make(:\n")
    message = refused(name)
    assert message.startswith(f"model={name!r}: ")
    assert re.search(ERRORS[name], message), message
    assert "\n" not in message


def test_a_wrong_argument_is_told_with_those_that_were_given(mine):
    message = refused("mynets.nets:make", width=3, depth="two")
    assert message.startswith("model='mynets.nets:make': make(width=3, depth='two') fails (TypeError: make() got an ")
    assert "'depth'" in message


@pytest.mark.parametrize(("text", "place"), [("raise SystemExit(3)", "imported"), ("def make(): exit(3)", "make()")])
def test_a_script_that_ends_the_process_does_not_end_this_one(mine, text, place):
    (mine / "broken.py").write_text("from sys import exit\n" + text)
    message = refused("broken:make")
    assert place in message
    assert "SystemExit: 3" in message


def test_a_module_that_fails_while_it_is_imported_is_told(mine):
    (mine / "broken.py").write_text("1 / 0")
    assert "broken cannot be imported (ZeroDivisionError: division by zero)" in refused("broken:make")


def test_random_state_and_path_are_left_as_they_were(mine):
    (mine / "broken.py").write_text(
        "import sys, torch\nsys.path.insert(0, '/somewhere')\ntorch.manual_seed(3)\ntorch.rand(3)\n"
        "def make():\n    torch.rand(5)\n    return torch.nn.Conv2d(1, 2, 3)\n"
        "def fail():\n    torch.rand(5)\n    raise ValueError\n"
    )
    path, state = list(sys.path), torch.get_rng_state()
    build_callable("broken:make", {})
    refused("broken:fail")
    refused("broken:nothing")
    assert sys.path == path
    assert torch.equal(torch.get_rng_state(), state)


def test_a_folder_that_is_on_the_path_stays_on_it(mine, monkeypatch):
    monkeypatch.syspath_prepend(str(mine))
    before = list(sys.path)
    build_callable("mynets.nets:make", {})
    assert sys.path == before
