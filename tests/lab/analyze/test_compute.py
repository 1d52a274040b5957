"""The numbers of an analysis are those of the method's own functions; what cannot be measured is told before."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import torch
from tests.lab.tiny import recipe

import torchreaper as tr
from torchreaper.analysis import agreement, feature_maps, layer_overlaps, pairwise_cca
from torchreaper.criteria import base
from torchreaper.errors import ReaperError
from torchreaper.lab import data
from torchreaper.lab.analyze import Settings, analyze, compute, find_subjects, subjects_of
from torchreaper.lab.checksums import digest_of, sidecar, write_digest
from torchreaper.lab.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = Settings(criteria=("magnitude",), images=60, split="test", over_time=False)


def quick(**changes):
    return dataclasses.replace(QUICK, **changes)


def refused(targets, settings=QUICK, *how):
    with pytest.raises((UserError, ReaperError)) as error:
        analyze(find_subjects(targets, *how), settings, tell=lambda *_: pytest.fail("the oracle was asked"))
    return str(error.value)


def one(target, settings=QUICK, *how, note=lambda text: None):
    (found,) = analyze(find_subjects([target], *how), settings, note=note)
    return found


def checkpoint(folder, name, **options):
    """A file with the weights of a network of the user's own, and the arguments of ``find_subjects`` for it."""
    from torchreaper.lab.models import build_callable

    torch.manual_seed(0)
    torch.save(build_callable(f"mynets.nets:{name}", options).state_dict(), folder / f"{name}.pt")
    return folder / f"{name}.pt", QUICK, recipe(), f"mynets.nets:{name}", options


@pytest.fixture(scope="module")
def found(trained):
    """Two schemes, all criteria, over time; and what was told and noted."""
    told, notes = [], []
    settings = Settings(images=40, seed=5)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    analyses = analyze(find_subjects([trained]), settings, tell=lambda *args: told.append(args), note=notes.append)
    torch.set_num_threads(before)
    return analyses, told, notes


# --- the same numbers by hand


def by_hand(folder, settings, *, split="validation"):
    (source,) = find_subjects([folder])[0].sources
    model = source.build()
    model.load_state_dict(torch.load(folder / "last.pt", weights_only=True)["model"])
    dataset = source.dataset
    batches = data.FixedBatches(getattr(dataset, split), split, dataset.mean, dataset.std, 250)
    if settings.images < batches.images:
        batches = batches.take(settings.images, seed=data.epoch_seed(settings.seed, 0, "images"))
    bank = tr.find_filters(model, next(iter(batches))[0][:2], skip=settings.skip, seed=settings.seed)
    return bank, batches


def test_every_number_is_what_the_methods_functions_give(found, trained):
    analyses, settings = found[0], Settings(images=40, seed=5)
    assert [(each.label, each.seed) for each in analyses] == [(s, k) for s in ("standard", "repr") for k in (0, 1)]
    for each in analyses:
        bank, batches = by_hand(each.path, settings)
        lost = tr.criteria.Oracle(batches).lost(bank)
        assert list(each.look.lost) == list(lost) == ["conv1", "conv2"]
        assert all(torch.equal(each.look.lost[name], lost[name]) for name in lost)
        truth = {name: -values for name, values in lost.items()}
        assert set(each.look.scores) == set(tr.criteria.names()) - {"oracle", "orthogonality-reversed", "in-turn"}
        for name, scores in each.look.scores.items():
            by_itself = tr.criteria.make(name, batches).scores(bank)
            for layer, values in scores.items():
                torch.testing.assert_close(values, by_itself[layer].double(), msg=name)
            assert each.look.agreement[name] == agreement(scores, truth)
        for mine, theirs in zip(each.overlaps, layer_overlaps(bank), strict=True):
            assert torch.equal(mine.overlap, theirs.overlap)
            assert (mine.layer, mine.expected) == (theirs.layer, theirs.expected)
        for layer, maps in feature_maps(bank, batches, grid=4).items():
            torch.testing.assert_close(each.cca[layer], pairwise_cca(maps))
        name, tiles = each.first
        assert name == "conv1"
        assert torch.equal(tiles, bank.model.conv1.weight)
        assert (each.images, each.split) == (20, "validation")  # all there are


def test_looks_at_snapshots_are_those_of_full_phases_and_end_with_the_last_weights(found):
    analyses, _, notes = found
    for each in analyses:
        epochs = [look.epoch for look in each.earlier]
        assert epochs == ([1, 4, 5] if each.label == "repr" else [1, 2, 3, 4, 5])
        assert each.earlier[-1] is each.look
        bank, batches = by_hand(each.path, Settings(seed=5))
        bank.model.load_state_dict(torch.load(each.path / "snapshots/epoch-0001.pt", weights_only=True)["model"])
        lost = tr.criteria.Oracle(batches).lost(bank)
        assert all(torch.equal(each.earlier[0].lost[name], lost[name]) for name in lost)
    assert notes == [f"repr, seed {seed}: 2 snapshots of sub-network phases are left out" for seed in (0, 1)]


def test_how_far_it_is_is_told_of_every_look(found):
    told = found[1]
    whats = list(dict.fromkeys(what for what, _, _ in told))
    assert whats[:2] == ["standard, seed 0: filters left out", "standard, seed 0, epoch 1: filters left out"]
    assert len(whats) == 2 * 5 + 2 * 3
    assert [(done, of) for what, done, of in told if what == whats[0]] == [(6, 12), (12, 12)]


def test_analyses_are_grouped_by_subject(found):
    groups = subjects_of(found[0])
    assert {label: [one.seed for one in group] for label, group in groups.items()} == {
        "standard": [0, 1], "repr": [0, 1]
    }  # fmt: skip


def test_an_analysis_again_gives_the_same_numbers(trained):
    target, settings = trained / "repr" / "seed-0", Settings(criteria=("random", "gradient"), images=40, split="test")
    first, second = one(target, settings), one(target, settings)
    for a, b in zip(first.earlier, second.earlier, strict=True):
        assert a.agreement == b.agreement
    torch.manual_seed(9)
    assert one(target, settings).look.agreement == first.look.agreement


# --- images


def images_of(source, settings):
    batches = compute._batches(source, settings, torch.device("cpu"))
    pairs = list(batches)
    return torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])


def test_images_are_as_many_of_each_class_and_depend_on_the_seed_alone(trained):
    runs = [find_subjects([trained / name])[0].sources[0] for name in ("repr/seed-0", "standard/seed-1")]
    images, labels = images_of(runs[0], quick(images=50))
    assert torch.bincount(labels).tolist() == [5] * 10
    again, same = images_of(runs[1], quick(images=50))
    assert torch.equal(images, again)
    assert torch.equal(labels, same)
    assert not torch.equal(images, images_of(runs[0], quick(images=50, seed=1))[0])


def test_test_images_that_a_recipe_leaves_alone_are_not_looked_at(trained):
    checkpoint = trained / "repr" / "seed-0" / "last.pt"
    (source,) = find_subjects([checkpoint], recipe(data__judge="validation"))[0].sources
    assert compute._batches(source, Settings(), torch.device("cpu")).what == "validation"
    with pytest.raises(UserError, match=r"^split='test': the recipe leaves its test images alone \(data\.judge"):
        compute._batches(source, Settings(split="test"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("validation", "split", "expected"), [(20, None, "validation"), (0, None, "test"), (20, "train", "train")]
)
def test_the_split_is_validation_where_there_is_one_else_test(trained, validation, split, expected):
    (source,) = find_subjects([trained / "repr" / "seed-0" / "last.pt"], recipe(data__validation=validation))[0].sources
    batches = compute._batches(source, Settings(split=split), torch.device("cpu"))
    assert batches.what == expected
    there = getattr(source.dataset, expected)
    assert batches.images == min(1000, len(there))
    assert compute.images_of(batches) == f"{batches.images:,} {expected} images"


def test_more_images_than_there_are_is_all_of_them(trained):
    found = one(trained / "repr" / "seed-0", quick(images=10**6, split="train"))
    assert (found.images, found.split) == (60, "train")


# --- what is chosen


def test_settings_choose_criteria_layers_and_what_is_skipped(trained):
    target = trained / "repr" / "seed-0"
    found = one(target, quick(criteria=("magnitude", "apoz"), layers=("conv2",), skip="first"))
    assert list(found.look.scores) == ["magnitude", "apoz"]
    assert list(found.cca) == list(found.chance) == ["conv2"]
    assert list(found.look.lost) == ["conv2"]
    assert [layer.layer for layer in found.overlaps] == ["conv1", "conv2"]
    assert list(one(target, quick(skip=("conv2",))).look.lost) == ["conv1"]
    assert [look.epoch for look in found.earlier] == [5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 0}, r"images=0: must be a whole number of at least 1"),
        (
            {"criteria": ("magnitude", "oracle")},
            r"criteria='oracle': has no effect, it is what the others are compared",
        ),
        ({"criteria": ("magic",)}, r"criteria='magic': unknown; choose from activation-correlation, apoz, "),
        ({"criteria": ()}, r"criteria: none named; name at least one, or leave it out"),
        ({"criteria": ("apoz", "random", "apoz")}, r"criteria: apoz is named twice"),
        ({"layers": ()}, r"layers: none named"),
        ({"layers": ("conv2", "conv2")}, r"layers: conv2 is named twice"),
        ({"layers": tuple("abcde")}, r"layers=a,b,c,d,e: must be 1 to 4 layers"),
        ({"layers": ("conv9",)}, r"layer='conv9': no such layer; the layers are conv1, conv2"),
        ({"skip": ("conv9",)}, r"conv9"),
        ({"skip": ("conv1", "conv2")}, r"no convolution to rank"),
        ({"split": "tests"}, r"split='tests': unknown; choose one of validation, test, train"),
        ({"device": "warp"}, r"device='warp': unknown; choose one of auto, cpu"),
        (
            {"images": 10},
            r"images=10: too few for correlations on a grid of 4 x 4; take more than 17, or grid <= 2$",
        ),
        ({"images": 2}, r"images=2: too few for correlations on a grid of 4 x 4; take more than 17$"),
        (
            {"grid": 100},
            r"on a grid of 100 x 100; there are but 797 test images: take others, or grid <= 7$",
        ),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_what_cannot_be_measured_is_told_before_the_oracle_is_asked(trained, changes, message):
    assert re.search(message, refused([trained / "repr" / "seed-0"], quick(**changes)))


def test_a_split_that_the_data_do_not_have_is_told(trained):
    file = trained / "repr" / "seed-0" / "last.pt"
    message = refused([file], quick(split="validation"), recipe(data__validation=0))
    assert message.startswith("split='validation': the data have no such images; use test or train, or set data.valid")


def test_a_mirror_image_is_left_out_whatever_its_name(trained, monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    tr.criteria.register("upside-down", lambda: tr.criteria.Reversed("magnitude"))
    tr.criteria.register("not-reversed", tr.criteria.Magnitude)
    folder = trained / "standard" / "seed-0"
    assert set(one(folder, quick(criteria=None)).look.scores) & {"upside-down", "not-reversed"} == {"not-reversed"}
    assert "upside-down" in one(folder, quick(criteria=("upside-down",))).look.scores


def test_criteria_that_cannot_apply_are_left_out_of_all_and_refused_by_name(mine):
    target, _, *how = checkpoint(mine, "make", norm=False)
    notes = []
    found = one(target, quick(criteria=None), *how, note=notes.append)
    without = {"oracle", "batchnorm-scale", "orthogonality-reversed", "in-turn"}
    assert set(found.look.scores) == set(tr.criteria.names()) - without
    (note,) = [note for note in notes if "left out" in note]
    assert note.startswith("batchnorm-scale: left out (layer '0': has filters that no norm")
    assert "no norm with a weight" in refused([target], quick(criteria=("magnitude", "batchnorm-scale")), *how)


def test_criteria_that_need_a_gradient_are_left_out_where_there_is_none(mine):
    target, _, *how = checkpoint(mine, "NoGradient")
    notes = []
    found = one(target, quick(criteria=None), *how, note=notes.append)
    assert {"gradient", "taylor", "hessian"}.isdisjoint(found.look.scores)
    assert {"apoz", "oracle-loss", "magnitude"} <= found.look.scores.keys()
    assert sum("cannot be differentiated" in note for note in notes) == 3


def test_layers_are_four_from_the_first_to_the_last_without_wide_ones(trained, monkeypatch):
    class Layer:
        ranked, filters = True, 8

        def __init__(self, name, filters=8):
            self.name, self.filters = name, filters

    class Bank:
        ranked = [Layer(f"c{k}") for k in range(10)] + [Layer("wide", 300)]

    notes = []
    assert compute._some_layers(Bank, notes.append) == ["c0", "c3", "c6", "c9"]
    assert notes == ["canonical correlations: layers of more than 256 filters are left out; name some in layers"]
    # A network of wide layers alone has none.
    monkeypatch.setattr(compute, "WIDEST", 3)
    found = one(trained / "repr" / "seed-0", quick(), note=notes.append)
    assert (found.cca, found.chance) == ({}, {})


def test_a_network_that_needs_no_single_filter_is_noted(trained, monkeypatch):
    notes = []
    nothing = lambda self, bank: (0.12, {x.name: torch.zeros(6) for x in bank.ranked})  # noqa: E731
    monkeypatch.setattr(tr.criteria.Oracle, "measured", nothing)
    found = one(trained / "repr" / "seed-0", quick(), note=notes.append)
    assert found.look.accuracy == 0.12
    assert notes[1].startswith("repr/seed-0: right on 12.0% of 60 test images, little more than chance with 10 classes")
    assert notes[0].startswith("repr/seed-0: no single filter changes the accuracy on 60 test images; take mor")


@pytest.mark.parametrize(
    ("classes", "little", "more"),
    [(1, 0.0, 1.0), (2, 0.51, 0.6), (3, 0.35, 0.45), (10, 0.12, 0.15), (100, 0.012, 0.04)],
)
def test_what_is_little_more_than_chance(classes, little, more):
    """Two classes have half of the images by chance; all of one class's are right."""
    assert little < compute._little(classes) <= more


# --- several networks


def test_maps_of_too_few_samples_are_not_compared(trained):
    """With ten samples a filter, networks that share nothing have a correlation of 0.3; with three, 0.5."""
    found = one(trained / "repr" / "seed-0", quick())
    few = dataclasses.replace(found, maps={"conv1": torch.randn(15, 6, 4), "conv2": torch.randn(16, 6, 4)})
    notes = []
    assert list(compute._alike(few, few, notes.append)) == ["conv2"]
    assert notes == [
        "conv1: 60 samples of 6 filters do not tell how much two networks see the same; take more than 60 (images)"
    ]


def test_networks_with_other_layers_are_not_put_side_by_side(trained, tmp_path, mine):
    file, _, *_ = checkpoint(mine, "make", width=5)
    with_five = find_subjects([file], recipe(), "mynets.nets:make", {"width": 5})
    torch.save(with_five[0].sources[0].build().state_dict(), tmp_path / "five.pt")
    other = find_subjects([tmp_path / "five.pt"], recipe(), "mynets.nets:make", {"width": 5})
    for first in (find_subjects([trained / "repr"]), _four(mine)):
        with pytest.raises(UserError, match=r"five\.pt and .* are networks with different layers; analyse them one"):
            analyze([*first, *other], QUICK, tell=lambda *_: pytest.fail("the oracle was asked"))


def _four(folder):
    """The same layers by name, but of another width."""
    file, *_ = checkpoint(folder, "make")
    return find_subjects([file], recipe(), "mynets.nets:make")


def test_networks_that_would_see_other_images_are_not_put_side_by_side(trained):
    run, file = trained / "repr" / "seed-0", trained / "repr" / "seed-1" / "last.pt"
    other = recipe(data__validation=30)
    message = refused([run, file], quick(split=None), other)
    assert message.endswith("have different validation images; choose another split, or analyse them one at a time")
    assert len(analyze(find_subjects([run, file], other), QUICK)) == 2  # their test images are the same


def test_what_is_wrong_with_the_last_is_told_before_the_first_is_measured(trained, tmp_path):
    file = tmp_path / "broken.pt"
    state = torch.load(trained / "repr" / "seed-0" / "last.pt", weights_only=True)["model"]
    state["conv2.weight"][0] = torch.nan
    torch.save(state, file)
    message = refused([trained / "repr", file], QUICK, recipe())
    assert message == f"{file}: conv2.weight is not finite, training has diverged; take an earlier checkpoint"


def test_what_many_networks_have_in_common_is_noted_once(mine):
    files = []
    for seed in range(2):
        target, _, *how = checkpoint(mine, "make", norm=False)
        files.append(target.rename(mine / f"net-{seed}.pt"))
    notes = []
    analyze(find_subjects(files, *how), quick(criteria=None), note=notes.append)
    assert len([note for note in notes if note.startswith("batchnorm-scale")]) == 1


# --- snapshots


def copied(trained, tmp_path):
    return Path(shutil.copytree(trained / "standard" / "seed-0", tmp_path / "run"))


@pytest.mark.parametrize("damage", [b"", b"damaged", {"epoch": 2}, {"phase": "full", "model": 3}, [1]], ids=str)
@pytest.mark.parametrize("checksum", [True, False])
def test_a_damaged_snapshot_is_left_out_with_a_note(trained, tmp_path, damage, checksum):
    folder, notes = copied(trained, tmp_path), []
    file = folder / "snapshots" / "epoch-0002.pt"
    file.write_bytes(damage) if isinstance(damage, bytes) else torch.save(damage, file)
    if not checksum:  # as older versions left it
        sidecar(file).unlink()
    found = one(folder, quick(over_time=True), note=notes.append)
    assert [look.epoch for look in found.earlier] == [1, 3, 4, 5]
    why = "damaged, it does not agree with its checksum" if checksum else "cannot be read"
    assert notes[0] == f"{file}: {why}; left out"


@pytest.mark.parametrize("change", [lambda x: x[:3], lambda x: x * torch.inf], ids=["shape", "infinite"])
def test_a_snapshot_of_other_weights_is_left_out_with_a_note(trained, tmp_path, change):
    folder, notes = copied(trained, tmp_path), []
    file = folder / "snapshots" / "epoch-0003.pt"
    snapshot = torch.load(file, weights_only=True)
    snapshot["model"]["conv2.weight"] = change(snapshot["model"]["conv2.weight"])
    torch.save(snapshot, file)
    write_digest(file, digest_of(file.read_bytes()))
    found = one(folder, quick(over_time=True), note=notes.append)
    assert [look.epoch for look in found.earlier] == [1, 2, 4, 5]
    assert re.match(rf"{file}: .*(its weights do not fit|conv2.weight is not finite).*; left out$", notes[0])


def test_snapshots_beyond_the_last_checkpoint_are_not_earlier(trained, tmp_path):
    folder, notes = copied(trained, tmp_path), []
    shutil.copy(folder / "previous.pt", folder / "last.pt")
    shutil.copy(folder / "previous.pt.sha256", folder / "last.pt.sha256")  # as of epoch 4, in which it was killed
    found = one(folder, quick(over_time=True), note=notes.append)
    assert found.look.epoch == 4
    assert [look.epoch for look in found.earlier] == [1, 2, 3, 4]


def test_the_final_numbers_are_of_the_last_weights_although_snapshots_were_looked_at(trained):
    folder = trained / "repr" / "seed-0"
    with_snapshots, without = one(folder, quick(over_time=True)), one(folder)
    assert torch.equal(with_snapshots.first[1], without.first[1])
    for a, b in zip(with_snapshots.overlaps, without.overlaps, strict=True):
        assert torch.equal(a.overlap, b.overlap)
    assert all(torch.equal(with_snapshots.cca[name], without.cca[name]) for name in without.cca)
    assert with_snapshots.look.agreement == without.look.agreement


# --- networks of the user's own


@pytest.mark.parametrize("name", ["make", "Wrapped", "Untraceable", "Row", "narrow", "alone"])
def test_checkpoints_of_ones_own_networks_are_measured(mine, name):
    found = one(*checkpoint(mine, name))
    assert (found.label, found.look.epoch, found.metrics, found.dropped) == (name, None, [], {})
    assert all(torch.isfinite(values).all() for values in found.look.lost.values())
    assert list(found.cca) == list(found.look.lost)
    assert found.first[1].shape[0] == found.overlaps[0].filters
