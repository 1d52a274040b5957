"""Networks that start from the weights of another one, trained before, by the scheme."""

import json

import pytest
import torch
from tests.lab.schemes.test_resume import StopAfter, Stopped
from tests.lab.tiny import TINY
from torch import nn

from torchreaper.lab import inspection, settings
from torchreaper.lab.compare import compare
from torchreaper.lab.errors import UserError
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.run import train, try_out
from torchreaper.lab.runs import folder_of, read_events, read_metrics
from torchreaper.lab.sections import SourceSpec
from torchreaper.lab.sources import frozen_mode, last_layer, move
from torchreaper.loading import load

pytestmark = pytest.mark.usefixtures("one_thread")
#: Five digits first, the other five later.
SOURCE = {"data": {"name": "digits", "limit": 60, "classes": ["0", "1", "2", "3", "4"]}, "epochs": 4}


def recipe(**changes):
    values = {
        **TINY,
        "data": {"name": "digits", "limit": 50, "classes": ["5", "6", "7", "8", "9"]},
        "scheme": {"name": "repr", "full": 1, "sub": 1, "cycles": 1, "fraction": 0.4},
        "source": SOURCE,
        **changes,
    }
    return settings.parse(Recipe, values)


def weights(folder):
    return load(folder / "last.pt")["model"]


def first_of(what, scheme, out, seed=0):
    return folder_of(out / what.name, what.first().name, scheme, seed)


def test_the_scheme_trains_the_first_network_and_the_second_is_trained_the_standard_way(tmp_path):
    what = recipe(epochs=2)
    result = train(what, scheme="repr", seed=0, out=tmp_path)
    first, second = first_of(what, "repr", tmp_path), tmp_path / "tiny" / "repr" / "seed-0"
    assert [event["kind"] for event in read_events(first)] == ["drop", "restore"]
    assert read_events(second) == []
    assert [line["phase"] for line in read_metrics(second)] == ["full"] * 2
    before = json.loads((first / "result.json").read_text())
    assert result["parts"] == {"source: accuracy": before["test_accuracy"]}
    assert result["source_seconds"] == before["seconds"]
    assert (result["scheme"], before["scheme"]) == ("repr", "repr")


def test_it_starts_from_all_weights_but_the_last_layers_which_are_those_of_its_own_seed(tmp_path):
    still = {"name": "sgd", "lr": 1e-12}
    what = recipe(epochs=1, optim=still, source={**SOURCE, "optim": TINY["optim"]})
    train(what, scheme="repr", seed=3, out=tmp_path)
    alone = recipe(epochs=1, optim=still, source=None, scheme={"name": "standard"}, name="alone")
    train(alone, scheme="standard", seed=3, out=tmp_path)
    started, fresh = weights(tmp_path / "tiny" / "repr" / "seed-3"), weights(tmp_path / "alone" / "standard" / "seed-3")
    before = weights(first_of(what, "repr", tmp_path, 3))
    for name, value in started.items():
        if value.is_floating_point() and "running" not in name:
            torch.testing.assert_close(value, (fresh if name.startswith("fc.") else before)[name], rtol=0, atol=1e-8)
    assert not torch.equal(before["fc.weight"], fresh["fc.weight"])


def test_frozen_weights_and_statistics_do_not_move_and_the_rest_does(tmp_path):
    what = recipe(epochs=2, source={**SOURCE, "freeze": True})
    train(what, scheme="standard", seed=0, out=tmp_path)
    before, after = weights(first_of(what, "standard", tmp_path)), weights(tmp_path / "tiny" / "standard" / "seed-0")
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == {"fc.weight", "fc.bias"}


def test_a_run_killed_at_any_place_goes_on_to_the_same_bits(tmp_path):
    whole = train(recipe(epochs=3), scheme="repr", seed=0, out=tmp_path / "whole")
    for epochs in (2, 3, 1):  # twice in the first training, the last time after the first epoch of the second
        with pytest.raises(Stopped):
            train(recipe(epochs=3), scheme="repr", seed=0, out=tmp_path / "cut", progress=StopAfter(epochs))
    again = train(recipe(epochs=3), scheme="repr", seed=0, out=tmp_path / "cut")
    assert again["fingerprint"] == whole["fingerprint"]


def test_a_comparison_trains_each_first_network_once_and_tells_both_accuracies(tmp_path):
    what = recipe(epochs=2)
    comparison = compare(what, ["standard", "repr"], 2, tmp_path)
    assert [summary.parts["source: accuracy"].n for summary in comparison.schemes] == [2, 2]
    (contrast,) = comparison.contrasts
    first = [
        [json.loads((first_of(what, one, tmp_path, k) / "result.json").read_text())["test_accuracy"] for k in (0, 1)]
        for one in ("standard", "repr")
    ]
    difference = 50 * sum(b - a for a, b in zip(*first))
    assert contrast.parts["source: accuracy"].mean == pytest.approx(difference)
    text = (tmp_path / "tiny" / "comparison.md").read_text()
    assert "## In parts" in text
    assert "| source: accuracy | repr |" in text
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("last.pt")}
    compare(what, ["standard", "repr"], 2, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("last.pt")} == stamps


def test_a_comparison_says_which_network_is_compared(tmp_path):
    found = compare(recipe(epochs=1), ["standard"], 1, tmp_path)
    (remark,) = [one for one in found.remarks if "another network" in one]
    assert remark.startswith("The schemes trained another network before (cnet on digits, classification; its scores ")
    assert "What is compared is cnet on digits, which starts from its weights" in remark
    plain = compare(settings.parse(Recipe, TINY), ["standard"], 1, tmp_path / "plain")
    assert not any("another network" in one for one in plain.remarks)


def test_the_schemes_epochs_are_those_of_the_first_training():
    recipe(epochs=1, source={**SOURCE, "epochs": 3})
    with pytest.raises(UserError, match=r"need 2 epochs and at least one more"):
        recipe(epochs=9, source={**SOURCE, "epochs": 2})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"epochs": 0}, "source.epochs=0: must be at least 1"),
        ({"dta": {}}, "source.dta: unknown key; did you mean source.data?"),
        ({"data": {"name": "digitz"}}, "source: data.name='digitz': unknown data; did you mean 'digits'?"),
        ({"data": []}, "source.data=[]: must be a mapping"),
        (
            {"data": {"name": "digits", "validation": 9, "judge": "validation"}},
            "source.data.judge='validation': must be 'test' as data.judge is; set both alike",
        ),
        ({"source": {}}, "source.source: unknown key; known: task, data, "),
        ({"leave": 3}, "source.leave=3: must be the name of a module or a list of names"),
        ({"leave": [3]}, "source.leave=[3]: must be the name of a module or a list of names"),
        ({"model": {"name": "cnet", "options": {"depth": -1}}}, "source: model.options.depth=-1: must be "),
    ],
)
def test_what_makes_no_recipe_is_named_in_full(source, text):
    with pytest.raises(UserError) as error:
        recipe(source=source)
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"task": "detection"}, "source.data, source.model: are missing; the task detection needs its own"),
        ({"task": "vqa", "data": {"name": "easy-vqa"}}, "source.model: is missing; the task vqa needs its own"),
        (
            {"task": "detection", "model": {"name": "detector"}},
            "source.data: is missing; the task detection needs its own",
        ),
    ],
)
def test_a_first_training_of_another_task_has_sections_of_its_own(source, text):
    with pytest.raises(UserError) as error:
        recipe(source=source)
    assert str(error.value) == text


def test_a_network_of_ones_own_may_be_for_both_tasks():
    data = {"name": "digits", "limit": 50}
    with pytest.raises(UserError, match=r"^source\.data: is missing; the task detection needs its own$"):
        recipe(data=data, model={"name": "some.module:network"}, source={"task": "detection"})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"data": {"name": "digits", "limit": 4, "classes": ["0", "1", "2", "3", "4"]}}, "data.limit=4: fewer than "),
        ({"data": {"name": "digits", "classes": ["0", "x"]}}, "data.classes: there is no class 'x'; "),
        ({"data": {"name": "folder", "train": "nowhere", "test": "nowhere"}}, "data.train='nowhere': no such folder"),
        ({**SOURCE, "batch": 1000}, "batch=1000: "),
    ],
)
def test_what_the_first_training_refuses_is_told_to_be_of_the_source(source, text, tmp_path):
    what = recipe(source={**SOURCE, **source})
    for work in (
        lambda: try_out(what, "repr"),
        lambda: train(what, scheme="repr", seed=0, out=tmp_path),
        lambda: compare(what, ["standard", "repr"], 1, tmp_path),
    ):
        with pytest.raises(UserError) as error:
            work()
        assert str(error.value).startswith(f"source: {text}")
    assert not list(tmp_path.rglob("*.pt"))


def test_what_is_wrong_with_the_recipes_own_data_is_not_told_to_be_of_the_source(tmp_path):
    with pytest.raises(UserError, match=r"^batch=1000: "):
        train(recipe(batch=1000, source={**SOURCE, "batch": 25}), scheme="repr", seed=0, out=tmp_path)


def test_a_first_training_whose_files_were_changed_is_told_to_be_of_the_source_once(tmp_path):
    what = recipe(epochs=2)
    train(what, scheme="repr", seed=0, out=tmp_path)
    for file in first_of(what, "repr", tmp_path).glob("*.pt*"):
        file.unlink()
    with pytest.raises(UserError, match=r"^source: /.* its checkpoint is gone; delete that folder"):
        train(recipe(epochs=2, name="tiny", seeds=1), scheme="repr", seed=0, out=tmp_path, resume=False)


@pytest.mark.parametrize("leave", ["fc", ["fc"]])
def test_one_module_to_leave_or_a_list_of_them(leave):
    assert recipe(source={**SOURCE, "leave": leave}).source.leave == ("fc",)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"into": "cnn"}, r"source\.into='cnn': the network has no such module; .*known: conv1"),
        ({"leave": ["head"]}, r"source\.leave='head': the first network has no such module; .*known: conv1"),
        (
            {"model": {"name": "cnet", "options": {"depth": 2, "width": 9}}},
            r"source: conv1\.weight \(9, 1, 3, 3\) of the first network is \(6, 1, 3, 3\) in this one; give ",
        ),
        (
            {"model": {"name": "cnet", "options": {"depth": 3, "width": 6, "batch_norm": True}}},
            r"source: conv3\.weight \(6, 6, 3, 3\) of the first network is not there in this one",
        ),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_trained(source, text, tmp_path):
    what = recipe(source={**SOURCE, **source})
    for work in (
        lambda: train(what, scheme="repr", seed=0, out=tmp_path),
        lambda: compare(what, ["standard", "repr"], 1, tmp_path),
    ):
        with pytest.raises(UserError, match=text):
            work()
    assert not list(tmp_path.rglob("*.pt"))


def test_a_part_of_the_network_can_be_the_first_one():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.cnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
            self.head = nn.Linear(4, 7)

    network = Two()
    head = network.head.weight.clone()
    assert last_layer(first.state_dict()) == "3"
    moved = move(network, first.state_dict(), SourceSpec(into="cnn", freeze=True))
    assert moved.left == ("3.weight", "3.bias")
    assert moved.taken[0] == "cnn.0.weight"
    assert torch.equal(network.cnn[0].weight, first[0].weight)
    assert torch.equal(network.head.weight, head)
    assert [p.requires_grad for p in network.parameters()] == [False] * 4 + [True] * 2
    assert moved.frozen == (network.cnn,)


def test_a_part_taken_over_whole_stays_as_in_evaluation_its_dropout_too():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.cnn = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
            self.head = nn.Linear(4, 7)

    first = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3))
    network = Two().train()
    frozen_mode(move(network, first.state_dict(), SourceSpec(into="cnn", freeze=True)).frozen)
    assert torch.equal(network.cnn(torch.ones(1, 4)), network.cnn(torch.ones(1, 4)))
    assert network.head.training
    # Of a whole network, a Dropout in front of the fresh layer is that layer's.
    again = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    frozen_mode(move(again, {**again.state_dict()}, SourceSpec(freeze=True)).frozen)
    assert [module.training for module in again] == [False, False, False, True, True]


def test_in_double_precision_not_a_bit_of_the_first_network_is_lost(tmp_path):
    what = recipe(epochs=1, precision="64-true", source={**SOURCE, "freeze": True})
    train(what, scheme="standard", seed=0, out=tmp_path)
    before, after = weights(first_of(what, "standard", tmp_path)), weights(tmp_path / "tiny" / "standard" / "seed-0")
    assert torch.equal(before["conv2.weight"], after["conv2.weight"])
    assert after["conv2.weight"].dtype == torch.float64


def test_what_was_spent_before_is_told(tmp_path):
    teacher = {"model": {"name": "cnet", "options": {"depth": 2, "width": 8}}, "epochs": 2}
    what = recipe(epochs=2, schemes={"kd": {"teacher": teacher}, "longer": {}})
    taught = train(what, scheme="kd", seed=0, out=tmp_path)
    assert (taught["epochs"], taught["source_epochs"]) == (2, 4)
    assert taught["teacher_seconds"] > 0
    comparison = compare(what, ["standard", "longer"], 1, tmp_path)
    assert [one.epochs for one in comparison.schemes] == [6, 2 + 8]
    assert "Budgets are not equal." in (tmp_path / "tiny" / "comparison.md").read_text()


def test_snapshots_are_of_both_trainings_and_change_no_name(tmp_path):
    what = recipe(epochs=2, snapshots=2)
    assert what.first().name == recipe(epochs=2).first().name
    train(what, scheme="standard", seed=0, out=tmp_path)
    assert len(list(first_of(what, "standard", tmp_path).glob("snapshots/*.pt"))) == 2
    assert len(list((tmp_path / "tiny" / "standard" / "seed-0").glob("snapshots/*.pt"))) == 1


def test_what_would_go_is_that_of_the_first_network():
    what = recipe(source={**SOURCE, "model": {"name": "cnet", "options": {"depth": 3, "width": 6, "batch_norm": True}}})
    bank, _ = inspection.inspect(what)
    assert [layer.name for layer in bank.layers] == ["conv1", "conv2", "conv3"]


def test_teachers_of_older_versions_keep_their_names():
    """The last characters are a checksum of their recipe: keys that came later must not change it."""
    old = {"name": "kd", "teacher": {"model": {"name": "resnet20"}}}
    what = settings.parse(Recipe, {**TINY, "scheme": old})
    assert what.teacher(old["teacher"]).name == "teacher-resnet20-acf736a5"
    other = settings.parse(Recipe, {**TINY, "data": {**TINY["data"], "classes": ["3", "4"]}, "scheme": old})
    assert other.teacher(old["teacher"]).name != what.teacher(old["teacher"]).name
