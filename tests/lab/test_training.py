"""What a run is judged on, and how its weights lie in memory: settings that change nothing else of it."""

import json

import numpy as np
import pytest
import torch
from tests.lab.data.conftest import write
from tests.lab.schemes.test_resume import StopAfter, Stopped
from tests.lab.tiny import TINY, recipe

from torchreaper.lab.compare import compare
from torchreaper.lab.environment import own_random_numbers
from torchreaper.lab.errors import UserError
from torchreaper.lab.finite import checked_losses
from torchreaper.lab.progress import NullProgress
from torchreaper.lab.recipe import Recipe
from torchreaper.lab.report.page import write_page
from torchreaper.lab.run import train
from torchreaper.lab.runs import RunFailed, read_metrics
from torchreaper.lab.settings import parse
from torchreaper.lab.tasks import Classification
from torchreaper.lab.training import Run

pytestmark = pytest.mark.usefixtures("one_thread")


# --- what is judged


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with dark and bright pictures; the classes of the test images are the wrong ones, all of them."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for what, count in (("train", 40), ("test", 12)):
        labels = np.arange(count) % 2
        images = random.integers(0, 100, (count, 6, 6, 3)) + 150 * labels[:, None, None, None]
        given = 1 - labels if what == "test" else labels
        write(folder / f"{what}.parquet", list(images.astype(np.uint8)), given.tolist())
    return folder


def judging(folder, judge, **changes):
    data = {"name": "parquet", "train": "train.parquet", "test": "test.parquet", "validation": 10, "judge": judge}
    values = {**TINY, "epochs": 4, "batch": 10, "data": data, "scheme": {**TINY["scheme"], "sub": 1}, **changes}
    return parse(Recipe, values).at(folder)


@pytest.fixture
def judged(monkeypatch):
    """How many images each call judged on; 12 are the test images, 10 those of validation, 30 are trained on."""
    seen, judge = [], Classification.judge

    def watched(self, fabric, call, network, split, **how):
        seen.append(len(split))
        return judge(self, fabric, call, network, split, **how)

    monkeypatch.setattr(Classification, "judge", watched)
    return seen


def test_where_validation_judges_the_test_images_are_never_judged_and_the_others_once(pictures, tmp_path, judged):
    found = train(judging(pictures, "validation"), scheme="repr", seed=0, out=tmp_path / "seen")
    assert judged == [10, 10, 10, 10, 30]
    judged.clear()
    tested = train(judging(pictures, "test"), scheme="repr", seed=0, out=tmp_path / "tested")
    assert judged == [12, 10, 12, 10, 12, 10, 12, 10, 30]
    assert found["fingerprint"] == tested["fingerprint"]  # training is the same, bit for bit
    assert (found["judged"], tested["judged"]) == ("validation", "test")
    assert found["test_accuracy"] == found["validation_accuracy"] == tested["validation_accuracy"] > 0.9
    assert tested["test_accuracy"] < 0.1
    assert found["gap"] == found["train_accuracy"] - found["validation_accuracy"]
    for line in read_metrics(tmp_path / "seen" / "tiny" / "repr" / "seed-0"):
        assert (line["judged"], line["test_accuracy"]) == ("validation", line["validation_accuracy"])


def test_a_comparison_on_validation_images_says_so_everywhere(pictures, tmp_path):
    paper = {"unit": "accuracy %", "source": "a paper", "values": {"standard": 70.0}}
    compare(judging(pictures, "validation", published=paper), ["standard", "repr"], 2, tmp_path)
    folder = tmp_path / "tiny"
    found = json.loads((folder / "comparison.json").read_text())
    assert (found["judged"], found["published"]) == ("validation", None)
    assert found["notes"][-1] == (
        "Judged on the 10 validation images; the test images were not looked at. Published values are of test images "
        "and left out."
    )
    page = write_page(folder)[0].read_text().split('id="data"')
    for text in (page[0], page[1].split("</script>")[0], *(path.read_text() for path in folder.glob("comparison*"))):
        assert "test accuracy" not in text.lower()
        assert "test_accuracy" not in text
    assert "Validation accuracy of the last epoch" in page[0]
    assert '"validation accuracy"' in page[1]
    compare(judging(pictures, "validation", report="validation"), ["standard"], 1, tmp_path / "chosen")
    notes = json.loads((tmp_path / "chosen" / "tiny" / "comparison.json").read_text())["notes"]
    assert notes[-1].endswith("not looked at. The epoch was chosen on them too, which flatters the numbers.")


def test_a_comparison_on_noisy_labels_says_what_its_gap_counts(tmp_path):
    noisy = recipe(data={"name": "digits", "limit": 60, "label_noise": 0.25}, epochs=1, scheme={"name": "standard"})
    compare(noisy, ["standard"], 1, tmp_path)
    notes = json.loads((tmp_path / "tiny" / "comparison.json").read_text())["notes"]
    assert any(note.startswith("0.25 of the training images have another class than theirs") for note in notes)


# --- how weights lie in memory


def plain(**changes):
    """In double precision, without Dropout; the second and third convolution have several channels to order."""
    options = {"depth": 3, "width": 6, "batch_norm": True}
    return recipe(**{"epochs": 4, "precision": "64-true", "model__options": options, **changes})


def weights(run):
    return [weight for weight in run.module.parameters() if weight.ndim == 4][1:]


@pytest.mark.parametrize("subnetwork", ["compact", "masked"])
def test_channels_last_lasts_through_a_cycle_and_changes_numbers_by_rounding_only(subnetwork):
    found = []
    for last in (False, True):
        what = plain(channels_last=last, scheme__subnetwork=subnetwork)
        with own_random_numbers(0):
            run = Run(what, what.training_spec("repr"), seed=0, device="cpu")
            phases, losses = [], []
            for epoch in range(1, 5):
                line = run.epoch(epoch, NullProgress())[0]
                phases.append(line["phase"])
                losses.append(line["train_loss"])
                for weight in weights(run):
                    for tensor in (weight, run.optimizer.state[weight]["momentum_buffer"]):
                        assert tensor.is_contiguous() is not last
                        assert tensor.is_contiguous(memory_format=torch.channels_last) is last
            narrow = [weight.shape[0] for weight in weights(run)]
        assert (phases, narrow) == (["full", "sub", "sub", "full"], [6, 6])
        found.append((losses, run.module.state_dict()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


def test_channels_last_goes_on_to_the_same_bits(tmp_path):
    what = recipe(channels_last=True, scheme__subnetwork="compact", model__options={"depth": 3, "width": 6})
    whole = train(what, scheme="repr", seed=0, out=tmp_path / "whole")
    for epoch in (2, 3):  # inside the sub-network phase, and right after the restore
        with pytest.raises(Stopped):
            train(what, scheme="repr", seed=0, out=tmp_path / "cut", progress=StopAfter(epoch))
    assert train(what, scheme="repr", seed=0, out=tmp_path / "cut")["fingerprint"] == whole["fingerprint"]


def test_channels_last_is_refused_where_it_would_do_nothing(tmp_path, mine):
    what = recipe(channels_last=True, model={"name": "mynets.nets:Row"}, scheme={"name": "standard"})
    with pytest.raises(UserError, match=r"^channels_last=True: has no effect, .* in 2 or 3 dimensions; leave it out$"):
        train(what, scheme="standard", seed=0, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_first_loss_that_is_not_finite_is_not_blamed_on_the_learning_rate():
    losses = torch.tensor([1.0, torch.nan])
    with pytest.raises(RunFailed, match=r"^epoch 1, step 1: the training loss is nan; no step was taken before it"):
        checked_losses(1, 0, losses[1:])
    for epoch, before in ((1, 1), (2, 0)):
        with pytest.raises(RunFailed, match=r"the training loss is nan; lower optim\.lr or set grad_clip"):
            checked_losses(epoch, before, losses[1:])
