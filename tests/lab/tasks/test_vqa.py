"""Networks that answer questions in the lab: trained, judged by VQA's accuracy, compared, started from others."""

import pytest
import torch
from tests.lab.schemes.test_resume import StopAfter, Stopped

from torchreaper.lab import inspection
from torchreaper.lab.compare import compare
from torchreaper.lab.data.questions import accuracy
from torchreaper.lab.errors import UserError
from torchreaper.lab.run import train
from torchreaper.lab.runs import read_events, read_metrics
from torchreaper.lab.tasks import TASKS
from torchreaper.lab.training import Run

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_tells_accuracy_by_kind_of_answer_and_goes_on_to_the_same_bits(questions, tmp_path):
    whole = train(questions(), scheme="repr", seed=0, out=tmp_path / "whole")
    assert whole["metric"] == "accuracy"
    assert whole["parts"].keys() == {"yes/no", "number", "other"}
    for epoch in (1, 2):
        with pytest.raises(Stopped):
            train(questions(), scheme="repr", seed=0, out=tmp_path / "cut", progress=StopAfter(epoch))
    again = train(questions(), scheme="repr", seed=0, out=tmp_path / "cut")
    assert (again["fingerprint"], again["parts"]) == (whole["fingerprint"], whole["parts"])
    lines = read_metrics(tmp_path / "cut" / "tiny" / "repr" / "seed-0")
    assert all(0 <= line["train_accuracy"] <= 1 for line in lines)
    (drop, _) = read_events(tmp_path / "cut" / "tiny" / "repr" / "seed-0")
    assert {name.split(".")[0] for name in drop["filters"]} == {"cnn"}


@pytest.mark.parametrize("which", ["easy", "vqa"])
def test_it_is_judged_as_vqa_does(questions, which):
    recipe = questions(which, scheme={"name": "standard"}, batch=2)
    run = Run(recipe, recipe.training_spec("standard"), seed=0, device="cpu")
    judged = run._judged(run.test, 1, "test")
    split, shares = run.test, []
    with torch.no_grad():
        for (images, asked), answers in split.read([torch.tensor([k]) for k in range(len(split))]):
            images = (images.float() / 255 - run.mean[:, None, None]) / run.std[:, None, None]
            shares.append(accuracy(run.module.eval()(images, asked).argmax(1), answers).item())
    assert judged.score == pytest.approx(sum(shares) / len(shares))
    for kind, name in enumerate(("yes/no", "number", "other")):
        of_kind = [share for share, one in zip(shares, split.kinds.tolist()) if one == kind]
        assert judged.parts.get(name, None) == (pytest.approx(sum(of_kind) / len(of_kind)) if of_kind else None)


def test_training_is_measured_as_judging_is():
    """Else the gap, training minus test, would be between two measures."""
    targets = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2, -1], [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]])
    for answer in range(3):
        outputs = torch.eye(3)[answer].expand(2, 3)
        shares = accuracy(outputs.argmax(1), targets)
        assert ((shares > 0) & (shares < 1)).any()
        assert float(TASKS["vqa"].right(outputs, targets)) == pytest.approx(shares.sum().item())


def test_the_convnet_can_be_one_that_was_trained_before_and_stays_as_it_is(questions, tmp_path):
    net = {"name": "cnet", "options": {"depth": 2, "width": 6, "batch_norm": True}}
    source = {
        "task": "classification",
        "data": {"name": "digits", "limit": 60},
        "model": net,
        "epochs": 3,
        "batch": 25,
        "into": "cnn",
        "freeze": True,
    }
    # Grey pictures first: the first layer of a network for colours does not fit.
    with pytest.raises(UserError, match=r"source: conv1\.weight \(6, 1, 3, 3\) of the first network is .* in cnn;"):
        train(questions(source=source, scheme={"name": "repr", "full": 1, "sub": 1, "cycles": 1}),
              scheme="repr", seed=0, out=tmp_path / "grey")  # fmt: skip
    source["leave"] = ["conv1", "norm1", "fc"]
    recipe = questions(source=source, scheme={"name": "repr", "full": 1, "sub": 1, "cycles": 1}, epochs=2)
    comparison = compare(recipe, ["standard", "repr"], 1, tmp_path)
    assert [list(one.parts) for one in comparison.schemes] == [["yes/no", "number", "other", "source: accuracy"]] * 2
    run = Run(recipe.first(), recipe.first().training_spec("repr"), seed=0, device="cpu")
    assert run.task.metric == "accuracy"


@pytest.mark.parametrize("criterion", ["oracle", "taylor"])
def test_criteria_read_questions_too(questions, criterion):
    scheme = {"name": "repr", "full": 1, "sub": 1, "cycles": 1, "criterion": criterion, "images": 6}
    _, preview = inspection.inspect(questions(scheme=scheme))
    assert preview.filters.keys() == {"cnn.conv2"}


def test_what_would_go_is_shown_of_it_too(questions):
    bank, preview = inspection.inspect(questions())
    assert [layer.name for layer in bank.ranked] == ["cnn.conv2"]
    assert preview.filters.keys() == {"cnn.conv2"}
    bank, _ = inspection.inspect(None, "vqa", {}, size=(3, 64, 64))
    assert {layer.name for layer in bank.layers} == {"cnn.conv1", "cnn.conv2", "cnn.conv3", "cnn.conv4"}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"augment": "flip"}, "augment='flip': cannot be used with task vqa; use none"),
        (
            {"model": {"name": "detector"}},
            "model.name='detector': is a network for detection, the recipe's task ",
        ),
        ({"scheme": {"name": "grafting"}}, "scheme='grafting': is not for the task vqa; leave it out"),
        (
            {"data": {"name": "hub", "hub": "x"}},
            "data.name='hub': is data of the task classification or detection, the recipe's is vqa; set task",
        ),
        ({"data": {"name": "vqa", "hub": "x"}}, "data.hub: unknown key"),
    ],
)
def test_what_does_not_fit_the_task_is_one_line(questions, changes, text):
    with pytest.raises(UserError) as error:
        questions(**changes)
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scheme", ["kd", "ban", "label-smoothing", "ema", "sam", "dsd", "sfp", "ol"])
def test_schemes_that_read_logits_or_weights_work_with_two_inputs(questions, scheme, tmp_path):
    options = {"kd": {"teacher": {"model": {"name": "vqa", "options": {"hidden": 9, "cnn": {"name": "cnet", "options":
               {"depth": 2, "width": 7}}}}, "epochs": 2}}}  # fmt: skip
    options["dsd"] = {"dense": 1, "sparse": 1, "cycles": 1}
    recipe = questions(schemes={scheme: options[scheme]} if scheme in options else {})
    assert train(recipe, scheme=scheme, seed=0, out=tmp_path)["metric"] == "accuracy"
