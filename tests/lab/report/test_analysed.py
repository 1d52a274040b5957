"""The figures of an analysis: which there are, for networks of every shape."""

import dataclasses
import shutil

import pytest
import torch
from matplotlib.image import imread
from tests.lab.tiny import recipe

from torchreaper.lab.analyze import Settings, analyze, find_subjects
from torchreaper.lab.models import build_callable
from torchreaper.lab.report import analysed
from torchreaper.lab.report.analysed import draw_analysis
from torchreaper.lab.statistics import mean_correlation

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = Settings(criteria=("magnitude", "random"), images=60, split="test")
EACH = ["first-layer", "criteria", "agreement"]


def drawn(subjects, folder, settings=SETTINGS, **options):
    paths = draw_analysis(analyze(subjects, settings), folder, **options)
    assert sorted(paths) == sorted(folder.iterdir())
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        picture = imread(path)
        assert min(picture.shape[:2]) > 100
        assert picture[..., :3].std() > 0.01  # something is on it
    return [path.stem for path in paths]


def test_one_run(trained, tmp_path):
    found = drawn(find_subjects([trained / "repr" / "seed-0"]), tmp_path / "new" / "folder")
    assert found == ["oracle", "overlap", "cca", *EACH, "agreement-over-time", "overlap-over-time"]


def test_two_schemes_with_two_seeds(trained, tmp_path):
    found = drawn(find_subjects([trained]), tmp_path, name="tiny")
    each = [*EACH, "agreement-over-time"]
    assert found == [
        *("oracle", "overlap", "cca", *(f"{name}-standard" for name in each), *(f"{name}-repr" for name in each)),
        "overlap-over-time",
    ]


def test_a_run_beside_a_checkpoint_has_no_curves_over_time(trained, tmp_path):
    shutil.copy(trained / "standard" / "seed-0" / "last.pt", tmp_path / "mine.pt")
    subjects = find_subjects([trained / "repr" / "seed-0", tmp_path / "mine.pt"], recipe())
    found = drawn(subjects, tmp_path / "out", dataclasses.replace(SETTINGS, over_time=False))
    assert found == ["oracle", "overlap", "cca", *(f"{n}-{end}" for end in ("seed-0", "mine") for n in EACH)]


# One-dimensional kernels, a kernel of one pixel, a single ranked layer, one of a single filter, parts without a trace.
@pytest.mark.parametrize("name", ["Row", "alone", "narrow", "Untraceable", "make"])
def test_a_checkpoint_of_any_network(mine, name):
    torch.save(build_callable(f"mynets.nets:{name}", {}).state_dict(), mine / "net.pt")
    subjects = find_subjects([mine / "net.pt"], recipe(), f"mynets.nets:{name}")
    assert drawn(subjects, mine / "out") == ["oracle", "overlap", "cca", *EACH]


def test_a_network_whose_filters_are_all_silent(trained, tmp_path):
    shutil.copy(trained / "standard" / "seed-0" / "last.pt", tmp_path / "net.pt")
    state = torch.load(tmp_path / "net.pt", weights_only=True)["model"]
    for name, value in state.items():
        if "norm" in name and name.endswith(("weight", "bias")):
            value.fill_(-1.0 if name.endswith("bias") else 0.0)
    torch.save(state, tmp_path / "net.pt")
    found = drawn(find_subjects([tmp_path / "net.pt"], recipe()), tmp_path / "out")
    assert found == ["oracle", "overlap", "cca", *EACH]


def test_a_long_kernel_of_one_dimension(mine):
    (mine / "mynets" / "long.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(2), nn.Conv1d(1, 40, 41), nn.ReLU(), nn.Flatten(), nn.Linear(960, 10))\n"
    )
    torch.save(build_callable("mynets.long:make", {}).state_dict(), mine / "net.pt")
    subjects = find_subjects([mine / "net.pt"], recipe(), "mynets.long:make")
    assert "first-layer" in drawn(subjects, mine / "out")


def test_filters_of_other_dimensions_become_pictures():
    flat = torch.arange(14.0, dtype=torch.float64).view(2, 1, 7)
    assert torch.equal(analysed._pictures(flat), torch.stack([flat] * 3, dim=2))
    assert analysed._pictures(torch.zeros(2, 3, 1)).shape == (2, 3, 1, 1)
    image, volume = (torch.rand(2, 3, 4, *more, dtype=torch.float64) for more in ([5], [5, 6]))
    assert torch.equal(analysed._pictures(image), image)
    assert torch.equal(analysed._pictures(volume), volume.view(2, 3, 4, 30))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_filters_of_every_precision_become_pictures(dtype, tmp_path):
    figure = analysed.tiles_figure(analysed._pictures(torch.rand(4, 3, 3, 3).to(dtype)), None)
    figure.savefig(tmp_path / "tiles.png")


def test_without_correlations_or_criteria_their_figures_are_left_out(trained, tmp_path):
    (one,) = analyze(find_subjects([trained / "repr" / "seed-0"]), dataclasses.replace(SETTINGS, over_time=False))
    bare = dataclasses.replace(one, cca={}, chance={}, look=dataclasses.replace(one.look, agreement={}, scores={}))
    names = [path.stem for path in draw_analysis([bare], tmp_path)]
    assert names == ["oracle", "overlap", "first-layer", "overlap-over-time"]


def test_every_subject_has_files_of_its_own():
    assert analysed._ends(["repr", "seed 1", "a/b"]) == {"repr": "-repr", "seed 1": "-seed-1", "a/b": "-a-b"}
    # Labels that differ, but not as files.
    assert analysed._ends(["a/b", "a-b"]) == {"a/b": "-1-a-b", "a-b": "-2-a-b"}
    assert analysed._ends(["A", "a"]) == {"A": "-1-A", "a": "-2-a"}


def test_curves_over_time_are_means_of_the_seeds_that_were_looked_at(trained):
    found = analyze(find_subjects([trained / "repr"]), SETTINGS)
    series = analysed._over_time(found)
    assert list(series) == ["magnitude", "random"]
    assert list(series["magnitude"]) == [1, 4, 5]
    first = [one.earlier[0].agreement["magnitude"].spearman for one in found]
    assert series["magnitude"][1] == pytest.approx(mean_correlation(first).mean)
    means = analysed._mean_agreement(found)
    assert [row["Spearman"] for row in means.values()] == sorted((r["Spearman"] for r in means.values()), reverse=True)
