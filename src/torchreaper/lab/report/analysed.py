"""The figures of an analysis, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from torchreaper.lab.analyze import Analysis, pooled, subjects_of
from torchreaper.lab.analyze.tables import MEASURES
from torchreaper.lab.report.analysis import agreement_figure, agreement_over_time_figure, scatter_figure
from torchreaper.lab.report.figures import overlap_figure, sub_spans
from torchreaper.lab.report.layers import cca_figure, layer_overlap_figure, oracle_figure, tiles_figure
from torchreaper.lab.report.saving import save
from torchreaper.lab.statistics import mean_correlation

FEW = 3
"""Epochs from which on curves over time are drawn."""


def draw_analysis(found: Sequence[Analysis], folder: Path, *, name: str = "") -> list[Path]:
    """Draw the figures of ``found`` into ``folder`` and return their paths.

    Filters of several seeds are pooled in the distributions; single filters (scatter, correlations, pictures) are those
    of the first seed.
    """
    groups = subjects_of(found)
    firsts = {label: group[0] for label, group in groups.items()}
    figures = {
        "oracle": oracle_figure({label: pooled(group) for label, group in groups.items()}, name=name),
        "overlap": layer_overlap_figure(
            {label: _overlaps(group) for label, group in groups.items()},
            {layer.layer: (layer.expected, layer.spread) for layer in found[0].overlaps},
            name=name,
        ),
    }
    cca = {
        _first_of(label, groups[label]): {layer: matrix.numpy() for layer, matrix in one.cca.items()}
        for label, one in firsts.items()
    }
    if any(cca.values()):
        figures["cca"] = cca_figure(cca, chance=_chance(list(firsts.values())), name=name)
    ends = _ends(list(groups)) if len(groups) > 1 else dict.fromkeys(groups, "")
    for label, group in groups.items():
        end = ends[label]
        mine, one = ", ".join(filter(None, [name, label])), group[0]
        alone = ", ".join(filter(None, [name, _first_of(label, group)]))
        layer, weight = one.first
        figures[f"first-layer{end}"] = tiles_figure(_pictures(weight), one.dropped.get(layer), name=f"{alone}, {layer}")
        if not one.look.agreement:
            continue
        figures[f"criteria{end}"] = scatter_figure(
            {c: {k: v.tolist() for k, v in layers.items()} for c, layers in one.look.scores.items()},
            pooled([one]),
            correlations={c: value.spearman for c, value in one.look.agreement.items()},
            name=alone,
        )
        figures[f"agreement{end}"] = agreement_figure(_mean_agreement(group), name=mine)
        if min(len(each.earlier) for each in group) >= FEW:
            series = _over_time(group)
            if series:
                figures[f"agreement-over-time{end}"] = agreement_over_time_figure(
                    series, measure=MEASURES["spearman"], name=mine, phases=sub_spans(one.metrics)
                )
    runs = {label: {one.seed: one.metrics for one in group if one.metrics} for label, group in groups.items()}
    if all(runs.values()):
        figures["overlap-over-time"] = overlap_figure(runs, name=name)
    return [save(figure, folder / f"{key}.png") for key, figure in figures.items()]


def _first_of(label: str, group: Sequence[Analysis]) -> str:
    """The label of a figure that shows one network of several seeds."""
    return f"{label}, seed {group[0].seed}" if len(group) > 1 else label


def _pictures(weight: Tensor) -> Tensor:
    """Filters of any number of dimensions as [J, c, high, wide]; of one dimension as stripes, or none would be seen."""
    weight = weight.double()  # numpy knows no bfloat16
    if weight.ndim == 3:
        return weight.unsqueeze(2).repeat_interleave(-(-weight.shape[2] // 3), dim=2)
    return weight.flatten(3)


def _overlaps(group: Sequence[Analysis]) -> dict[str, list[float]]:
    return {
        layer.layer: [value for one in group for value in one.overlaps[number].overlap.tolist()]
        for number, layer in enumerate(group[0].overlaps)
    }


def _mean_agreement(group: Sequence[Analysis]) -> dict[str, dict[str, float]]:
    """Means over seeds, best first."""
    names = [name for name in group[0].look.agreement if all(name in one.look.agreement for one in group)]
    means = {
        name: {
            title: _mean([getattr(one.look.agreement[name], key) for one in group]) for key, title in MEASURES.items()
        }
        for name in names
    }

    def by_rank(item: tuple[str, dict[str, float]]) -> float:
        value = item[1][MEASURES["spearman"]]
        return -math.inf if math.isnan(value) else value

    return dict(sorted(means.items(), key=by_rank, reverse=True))


def _mean(values: Sequence[float]) -> float:
    """NaN where there is nothing but NaN."""
    there = [value for value in values if not math.isnan(value)]
    return mean_correlation(there).mean if there else math.nan


def _chance(firsts: Sequence[Analysis]) -> dict[str, float] | None:
    """What unrelated maps would have, layer by layer: the mean of what is drawn side by side."""
    return {layer: _mean([one.chance[layer] for one in firsts]) for layer in firsts[0].chance}


def _over_time(group: Sequence[Analysis]) -> dict[str, dict[int, float]]:
    """Criterion -> epoch -> mean Spearman correlation over the seeds that were looked at then."""
    series: dict[str, dict[int, list[float]]] = {}
    for one in group:
        for look in one.earlier:
            for name, value in look.agreement.items():
                series.setdefault(name, {}).setdefault(look.epoch or 0, []).append(value.spearman)
    means = {name: {e: _mean(v) for e, v in sorted(epochs.items())} for name, epochs in series.items()}
    known = {name: {e: v for e, v in epochs.items() if not math.isnan(v)} for name, epochs in means.items()}
    return {name: epochs for name, epochs in known.items() if epochs}


def _ends(labels: Sequence[str]) -> dict[str, str]:
    """What the names of their files end in; with a number where two labels would have the same."""
    plain = ["".join(c if c.isalnum() or c in "._+-" else "-" for c in label) for label in labels]
    if len({text.casefold() for text in plain}) < len(plain):
        plain = [f"{number}-{text}" for number, text in enumerate(plain, 1)]
    return {label: f"-{text}" for label, text in zip(labels, plain)}
