"""Recipes of photographs and questions that are judged on what is held out for validation."""

import json

import pytest

from torchreaper.lab.compare import compare
from torchreaper.lab.training import Run

pytestmark = pytest.mark.usefixtures("one_thread")
STANDARD = {"name": "standard"}


@pytest.mark.parametrize(("task", "of"), [("boxes", "3 validation images"), ("questions", "validation questions")])
def test_validation_stands_in_the_place_of_the_test_set(task, of, request, tmp_path):
    make = request.getfixturevalue(task)
    plain = make().data.model_dump(mode="json")
    recipe = make(epochs=1, scheme=STANDARD, data={**plain, "validation": 3, "judge": "validation"}, batch=2)
    run = Run(recipe, recipe.training_spec("standard"), seed=0, device="cpu")
    assert run.test is run.validation
    assert 0 < len(run.test) <= 3 < len(run.task.load(make().data, recipe.base).test)
    compare(recipe, ["standard"], 1, tmp_path / "out")
    folder = tmp_path / "out" / "tiny"
    result = json.loads((folder / "standard" / "seed-0" / "result.json").read_text())
    assert (result["judged"], result["test_accuracy"]) == ("validation", result["validation_accuracy"])
    (note,) = json.loads((folder / "comparison.json").read_text())["notes"][-1:]
    assert note == f"Judged on the {of}; the test {of.split()[-1]} were not looked at."
