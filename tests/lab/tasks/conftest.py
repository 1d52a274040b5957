"""Recipes of short runs: photographs of rectangles, and questions about one-coloured pictures, made in tmp_path."""

import pytest
from tests.lab.data.boxes.conftest import coco, scenes  # noqa: F401
from tests.lab.data.questions.conftest import easy, vqa  # noqa: F401

from torchreaper.lab.recipe import Recipe
from torchreaper.lab.settings import parse

REPR = {"name": "repr", "full": 1, "sub": 1, "cycles": 1, "fraction": 0.4}


@pytest.fixture
def boxes(coco, tmp_path):  # noqa: F811
    """boxes(**changes) -> a detection recipe."""
    values = coco()

    def make(**changes):
        recipe = {
            "name": "tiny",
            "task": "detection",
            "epochs": 4,
            "batch": 5,
            "data": values,
            "model": {"name": "detector", "options": {"width": 8, "stages": 2, "depth": 1, "neck": 8}},
            "optim": {"name": "adamw", "lr": 0.01},
            "augment": "flip",
            "scheme": REPR,
            **changes,
        }
        return parse(Recipe, recipe).at(tmp_path)

    return make


@pytest.fixture
def questions(easy, vqa, tmp_path):  # noqa: F811
    """questions(which, **changes) -> a recipe of questions about "easy" or "vqa" pictures."""
    data = {"easy": easy(), "vqa": vqa}

    def make(which="easy", **changes):
        net = {"name": "cnet", "options": {"depth": 2, "width": 6, "batch_norm": True}}
        recipe = {
            "name": "tiny",
            "task": "vqa",
            "epochs": 4,
            "batch": 3,
            "data": {**data[which], **({"size": 8} if which == "vqa" else {})},
            "model": {"name": "vqa", "options": {"cnn": net, "hidden": 8, "embedding": 4, "mlp": 8}},
            "optim": {"name": "adam", "lr": 0.01},
            "scheme": {**REPR, "scope": "cnn"},
            **changes,
        }
        return parse(Recipe, recipe).at(tmp_path)

    return make
