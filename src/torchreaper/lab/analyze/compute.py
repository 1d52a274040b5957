"""The numbers of an analysis: every network measured on the same images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import torchreaper as tr
from torchreaper.analysis import (
    Agreement,
    LayerOverlap,
    agreement,
    between_runs,
    chance_cca,
    feature_maps,
    layer_overlaps,
    pairwise_cca,
)
from torchreaper.lab import data, snapshots
from torchreaper.lab.analyze.settings import MOST, ORACLE, Settings, check, resolved
from torchreaper.lab.analyze.subjects import Source, Subject, load_weights
from torchreaper.lab.errors import UserError
from torchreaper.lab.files import Json

# The widest layer whose correlations are drawn: every pair of its filters is an eigenvalue problem.
WIDEST = 256
# A filter of a layer's map needs so many samples, or two networks that share nothing seem to: noise has 0.3 of 1 then.
SAMPLES = 10
# Images at a time: the oracle makes copies of them.
BATCH = 250
# Times the share of one class, or of the way from there to all: below the lower one a network is as good as untrained.
NEAR_CHANCE, NEAR = 1.5, 0.05
DEFAULTS = Settings()
Tell = Callable[[str, int, int], None]
"""What is being done, how much of it is, and how much there is."""


@dataclass(frozen=True, eq=False)
class Look:
    """One network at one moment.

    Attributes:
        epoch: of its run; ``None`` for a checkpoint.
        accuracy: of the whole network, 0 to 1, on the images that are read.
        lost: layer -> accuracy lost (0 to 1) without each filter alone.
        scores: criterion -> layer -> score of each filter, higher = dropped earlier.
        agreement: criterion -> how it agrees with the oracle over all filters.
    """

    epoch: int | None
    accuracy: float
    lost: dict[str, Tensor]
    scores: dict[str, dict[str, Tensor]]
    agreement: dict[str, Agreement]


@dataclass(frozen=True, eq=False)
class Analysis:
    """What was found in one network.

    Attributes:
        label: of the subject it belongs to. seed, path: of the source.
        look: at the last weights. earlier: at the snapshots of full phases, in order, and the last weights.
        overlaps: of every layer.
        cca: layer -> mean canonical correlation of every two filters' feature maps. chance: what unrelated maps give.
        alike: layer -> mean canonical correlation of its maps with those of the first subject, seed by seed.
        maps: what these are taken of; not kept.
        first: the first layer's name and its filters [J, c, *kernel].
        dropped: layer -> filter -> how often it was dropped in the run.
        metrics: the run's lines.
        images, split: how many were read, and of which.
    """

    label: str
    seed: int
    path: Path
    look: Look
    earlier: tuple[Look, ...]
    overlaps: tuple[LayerOverlap, ...]
    cca: dict[str, Tensor]
    chance: dict[str, float]
    first: tuple[str, Tensor]
    dropped: dict[str, dict[int, int]]
    metrics: list[Json] = field(repr=False)
    images: int = 0
    split: str = ""
    alike: dict[str, float] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict, repr=False)


def analyze(
    subjects: Sequence[Subject],
    settings: Settings = DEFAULTS,
    *,
    tell: Tell = lambda what, done, of: None,
    note: Callable[[str], None] = lambda text: None,
) -> list[Analysis]:
    """Look at every network of every subject.

    Args:
        subjects: What to look at; all must have the same layers.
        settings: How.
        tell: Is told how far it is.
        note: Is told in a sentence what is left out, and why.

    Raises:
        UserError: Weights, data or settings that do not fit.
        ReaperError: What the method refuses.
    """
    check(settings)
    device = resolved(settings.device)
    note = _once(note)
    # Each is opened before any is measured, which takes minutes: what is wrong with the last is told at once.
    first: tuple[Path, list[tuple[Any, ...]], data.FixedBatches] | None = None
    for source in (source for subject in subjects for source in subject.sources):
        _, bank, batches = _open(source, settings, device, note)
        layers = [(layer.name, layer.filters, layer.dims, layer.ranked) for layer in bank]
        first = first or (source.path, layers, batches)
        both = f"targets: {source.path} and {first[0]}"
        if layers != first[1]:
            raise UserError(f"{both} are networks with different layers; analyse them one at a time")
        if not batches.split.same(first[2].split):
            raise UserError(
                f"{both} have different {batches.what} images; choose another split, or analyse them one at a time"
            )
    found = [
        [_analyze(subject.label, source, settings, device, tell, note) for source in subject.sources]
        for subject in subjects
    ]
    pairs = [(one, first) for group in found for one, first in zip_longest(group, found[0][: len(group)])]
    return [
        replace(one, alike={} if first is None or one is first else _alike(one, first, note), maps={})
        for one, first in pairs
    ]


def _open(
    source: Source, settings: Settings, device: torch.device, note: Callable[[str], None]
) -> tuple[int | None, tr.FilterBank, data.FixedBatches]:
    """The epoch of the last weights, the network with them, and the images."""
    epoch, weights = source.last(note)
    model = source.build()
    load_weights(model, weights, source.path)
    model.to(device)
    batches = _batches(source, settings, device)
    bank = tr.find_filters(model, next(iter(batches))[0][:2], skip=settings.skip, seed=settings.seed)
    most, count = settings.grid**2 + 1, len(batches.split)
    if batches.images <= most:
        grid = math.isqrt(max(batches.images - 2, 0))
        more = (
            f"take more than {most}" if count > most else f"there are but {count:,} {batches.what} images: take others"
        )
        raise UserError(
            f"images={batches.images}: too few for correlations on a grid of {settings.grid} x {settings.grid}; "
            f"{more}{f', or grid <= {grid}' if grid else ''}"
        )
    for layer in bank.layers:
        if layer.reason == "has one filter only":
            note(f"{layer.name}: has one filter only, so there is nothing to compare or to leave out")
    for name in settings.layers or ():
        bank[name]  # an error where there is no such layer
    return epoch, bank, batches


def _once(note: Callable[[str], None]) -> Callable[[str], None]:
    """What many networks have in common is told once."""
    told: set[str] = set()

    def tell(text: str) -> None:
        if text not in told:
            told.add(text)
            note(text)

    return tell


def _analyze(
    label: str, source: Source, settings: Settings, device: torch.device, tell: Tell, note: Callable[[str], None]
) -> Analysis:
    epoch, bank, batches = _open(source, settings, device, note)
    where = label if label.endswith(source.path.name) or not source.is_run else f"{label}, seed {source.seed}"
    # The oracle, which takes longest, comes after all that may fail.
    overlaps = tuple(layer_overlaps(bank))
    maps, cca, chance = _cca(bank, batches, settings, note)
    criteria = _criteria(settings, batches)
    scores = _scores(criteria, bank, note if settings.criteria is None else None)
    criteria = {name: criteria[name] for name in scores}
    look = _look(bank, batches, scores, epoch, f"{where}: filters left out", tell)
    first = bank.layers[0]
    tiles = first.rows.view(first.filters, -1, *first.module.kernel_size).cpu().clone()
    if not any(values.any() for values in look.lost.values()):
        note(f"{where}: no single filter changes the accuracy on {images_of(batches)}; take more, or others (split)")
    classes = len(source.dataset.classes)
    if look.accuracy < _little(classes):
        note(
            f"{where}: right on {look.accuracy:.1%} of {images_of(batches)}, little more than chance with {classes} "
            "classes: what a filter is worth says little then; are the images prepared as in its training?"
        )
    earlier = [look]
    if settings.over_time:
        earlier = [*_earlier(source, epoch, bank, batches, criteria, where, tell, note), look]
    return Analysis(
        label=label,
        seed=source.seed,
        path=source.path,
        look=look,
        earlier=tuple(earlier),
        overlaps=overlaps,
        cca=cca,
        chance=chance,
        first=(first.name, tiles),
        dropped=source.dropped(),
        metrics=source.metrics(),
        images=batches.images,
        split=batches.what,
        maps=maps,
    )


def _look(
    bank: tr.FilterBank,
    batches: data.FixedBatches,
    scores: dict[str, dict[str, Tensor]],
    epoch: int | None,
    what: str,
    tell: Tell,
) -> Look:
    accuracy, lost = tr.criteria.Oracle(batches, progress=lambda done, of: tell(what, done, of)).measured(bank)
    truth = {name: 0.0 - values for name, values in lost.items()}
    return Look(epoch, accuracy, lost, scores, {name: agreement(values, truth) for name, values in scores.items()})


def _earlier(
    source: Source,
    last: int | None,
    bank: tr.FilterBank,
    batches: data.FixedBatches,
    criteria: Mapping[str, tr.criteria.Criterion],
    where: str,
    tell: Tell,
    note: Callable[[str], None],
) -> list[Look]:
    """Snapshots of full phases: in the others part of the network was not there to be ranked.

    Those of the last epoch, which is looked at anyway, and of one that a killed run has not finished are no earlier.
    """
    looks, left_out = [], 0
    for epoch, path in source.earlier().items():
        if last is None or epoch >= last:
            continue
        try:
            snapshot = snapshots.read(path)
            if snapshot["phase"] != "full":
                left_out += 1
                continue
            load_weights(bank.model, snapshot["model"], path)
        except UserError as error:
            note(f"{error}; left out")
            continue
        scores = _scores(criteria, bank, None)
        looks.append(_look(bank, batches, scores, epoch, f"{where}, epoch {epoch}: filters left out", tell))
    if left_out:
        note(f"{where}: {left_out} snapshots of sub-network phases are left out")
    return looks


_NOT_OF_THE_FILTERS = (tr.criteria.Reversed, tr.criteria.InTurn)


def _criteria(settings: Settings, batches: data.FixedBatches) -> dict[str, tr.criteria.Criterion]:
    if settings.criteria:
        return {name: tr.criteria.make(name, batches) for name in settings.criteria}
    # Not the oracle, which the others are held against, nor a mirror image of another one, nor whose turn it is.
    found = {name: tr.criteria.make(name, batches) for name in tr.criteria.names() if name != ORACLE}
    return {name: criterion for name, criterion in found.items() if not isinstance(criterion, _NOT_OF_THE_FILTERS)}


def _scores(
    criteria: Mapping[str, tr.criteria.Criterion], bank: tr.FilterBank, note: Callable[[str], None] | None
) -> dict[str, dict[str, Tensor]]:
    """What the criteria say; with ``note``, those that this network cannot be ranked by are left out."""
    scores = {}
    for name, criterion in criteria.items():
        try:
            found = criterion.scores(bank)
        except tr.ReaperError as error:
            if note is None:
                raise
            note(f"{name}: left out ({error})")
            continue
        scores[name] = {layer.name: found[layer.name].detach().double().cpu() for layer in bank.ranked}
    return scores


def _cca(
    bank: tr.FilterBank, batches: data.FixedBatches, settings: Settings, note: Callable[[str], None]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    """The maps, the correlations of every two filters, and what unrelated maps would have; by layer."""
    layers = settings.layers if settings.layers is not None else _some_layers(bank, note)
    found = feature_maps(bank, batches, layers, grid=settings.grid)
    matrices = {name: pairwise_cca(maps) for name, maps in found.items()}
    chance = {name: chance_cca(maps, torch.Generator().manual_seed(settings.seed)) for name, maps in found.items()}
    return found, matrices, chance


def _little(classes: int) -> float:
    """The share of right answers below which a network is little better than chance; of one class all are right."""
    chance = 1 / classes
    return min(NEAR_CHANCE * chance, chance + NEAR * (1 - chance))


def _alike(one: Analysis, first: Analysis, note: Callable[[str], None]) -> dict[str, float]:
    """Layer by layer, how much the maps of two networks span the same: every position of every image is a sample."""
    found = {}
    for name in one.maps:
        both = [maps.transpose(1, 2).flatten(0, 1) for maps in (one.maps[name], first.maps[name])]
        samples, filters = both[0].shape
        if samples > SAMPLES * filters:
            found[name] = between_runs(*both)
        else:
            note(
                f"{name}: {samples} samples of {filters} filters do not tell how much two networks see the same; take "
                f"more than {SAMPLES * filters} (images)"
            )
    return found


def _some_layers(bank: tr.FilterBank, note: Callable[[str], None]) -> list[str]:
    """Up to four layers from the first to the last."""
    names = [layer.name for layer in bank.ranked if layer.filters <= WIDEST]
    if len(names) < len(bank.ranked):
        note(f"canonical correlations: layers of more than {WIDEST} filters are left out; name some in layers")
    if len(names) <= MOST:
        return names
    return [names[round(k * (len(names) - 1) / (MOST - 1))] for k in range(MOST)]


def _batches(source: Source, settings: Settings, device: torch.device) -> data.FixedBatches:
    dataset = source.dataset
    name = settings.split or ("validation" if dataset.validation else "test")
    if name == "test" and source.recipe.data.judge == "validation":
        raise UserError(
            "split='test': the recipe leaves its test images alone (data.judge: validation); use validation or train"
        )
    split = {"validation": dataset.validation, "test": dataset.test, "train": dataset.train}[name]
    if split is None:
        raise UserError(f"split={name!r}: the data have no such images; use test or train, or set data.validation")
    mean, std = dataset.mean.to(device), dataset.std.to(device)
    batches = data.FixedBatches(split.to(device), name, mean, std, BATCH)
    if settings.images >= batches.images:
        return batches
    return batches.take(settings.images, seed=data.epoch_seed(settings.seed, 0, "images"))


def images_of(batches: data.FixedBatches) -> str:
    """Such as "1,000 test images"."""
    return f"{batches.images:,} {batches.what} images"


def subjects_of(found: Sequence[Analysis]) -> dict[str, list[Analysis]]:
    """The analyses by the label of their subject, in order."""
    grouped: dict[str, list[Analysis]] = {}
    for one in found:
        grouped.setdefault(one.label, []).append(one)
    return grouped
