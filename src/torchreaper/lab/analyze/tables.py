"""What an analysis writes and shows: tables as CSV and Markdown, everything as JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from torchreaper.analysis import Agreement, Distribution, distributions
from torchreaper.lab.analyze.compute import Analysis, subjects_of
from torchreaper.lab.analyze.settings import Settings, resolved
from torchreaper.lab.environment import environment
from torchreaper.lab.errors import UserError
from torchreaper.lab.files import read_json, write_json, write_whole
from torchreaper.lab.foreign import as_item, in_csv, in_markdown
from torchreaper.lab.statistics import correlation_interval, decimals, mean_correlation

MEASURES = {"pearson": "Pearson, values", "pearson_ranks": "Pearson, ranks", "spearman": "Spearman"}
Rows = list[list[Any]]


def write(
    found: Sequence[Analysis],
    folder: Path,
    settings: Settings,
    notes: Sequence[str] = (),
    figures: Sequence[Path] = (),
) -> list[Path]:
    """Write `analysis.json`, `analysis.md` and the CSV files into ``folder``; each is replaced as a whole.

    Args:
        found: What was found.
        folder: Is made where it is missing.
        settings: How it was looked for; written down, with the machine and the versions.
        notes: What was left out, and why.
        figures: What was drawn into the same folder. Figures of an analysis before this one that are not among them are
            deleted: they would be taken for its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (heads, rows) in {
        "filters": _filters(found),
        "layers": _layers(found),
        "agreement": _agreement(found),
        "cca": _cca(found),
    }.items():
        path = folder / f"{name}.csv"
        write_whole(path, _csv(heads, rows).encode())
        written.append(path)
    path = folder / "analysis.json"
    about = environment(device=resolved(settings.device), precision="32-true", base=Path.cwd())
    networks = [_as_dict(one) for one in found]
    names = [figure.name for figure in figures]
    for old in _figures_before(path):
        if old not in names:
            (folder / old).unlink(missing_ok=True)
    everything = {
        "figures": names,
        "environment": about,
        "settings": asdict(settings),
        "notes": list(notes),
        "networks": networks,
    }
    write_json(path, everything)
    markdown = folder / "analysis.md"
    write_whole(markdown, _markdown(found, notes).encode())
    return [markdown, path, *written]


def _figures_before(path: Path) -> list[str]:
    """The figures that an earlier analysis wrote into the folder; plain names only."""
    try:
        before = read_json(path) or {}
    except UserError:
        return []
    names = before.get("figures", [])
    plain = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return [name for name in plain if Path(name).name == name and name.endswith(".png")]


def agreement_table(found: Sequence[Analysis]) -> tuple[list[str], list[list[str]]]:
    """Criterion by criterion, its agreement with the oracle: mean over seeds with t-interval, or over filters."""
    groups = subjects_of(found)
    heads = ["criterion", *(["network"] if len(groups) > 1 else []), "n", "filters", *MEASURES.values()]
    rows = []
    for criterion in _criteria_in_order(found):
        for label, group in groups.items():
            agreements = [one.look.agreement[criterion] for one in group if criterion in one.look.agreement]
            if agreements:
                cells = [_with_interval(agreements, measure) for measure in MEASURES]
                name = [label] if len(groups) > 1 else []
                rows.append([criterion, *name, str(len(agreements)), str(agreements[0].filters), *cells])
    return heads, rows


def layer_table(found: Sequence[Analysis]) -> tuple[list[str], list[list[str]]]:
    """Layer by layer: the overlap against random directions, the oracle, the correlations; means over seeds."""
    groups = subjects_of(found)
    heads = [
        *("layer", *(["network"] if len(groups) > 1 else []), "filters", "d", "mean overlap", "random", "ratio"),
        *("accuracy lost, points: mean", "median", "5 % to 95 %", "harmless", "CCA", "chance", "silent"),
        *([f"CCA with {next(iter(groups))}"] if len(groups) > 1 else []),
    ]
    rows = []
    for number, overlap in enumerate(found[0].overlaps):
        for label, group in groups.items():
            mine = [one.overlaps[number] for one in group]
            lost = [_distribution(one, overlap.layer) for one in group]
            rows.append(
                [
                    overlap.layer,
                    *([label] if len(groups) > 1 else []),
                    str(overlap.filters),
                    str(overlap.dims),
                    _mean([one.mean for one in mine], "{:.4f}"),
                    f"{overlap.expected:.4f}",
                    _mean([one.ratio if one.filters > one.groups else None for one in mine], "{:.3f}"),
                    *_lost_cells([one for one in lost if one is not None]),
                    _mean([_off_diagonal(one, overlap.layer) for one in group], "{:.3f}"),
                    _mean([one.chance.get(overlap.layer) for one in group], "{:.3f}"),
                    _mean([_silent(one, overlap.layer) for one in group], "{:.1f}"),
                    *([_mean([one.alike.get(overlap.layer) for one in group], "{:.3f}")] if len(groups) > 1 else []),
                ]
            )
    return heads, rows


def accuracy_lines(found: Sequence[Analysis]) -> list[str]:
    """Network by network, how many of the images it gets right: what all else is about."""
    return [
        f"{label}: {_mean([100 * one.look.accuracy for one in group], '{:.1f}')} % of {group[0].images:,} "
        f"{group[0].split} images right" + (f" (mean of {len(group)} seeds)" if len(group) > 1 else "")
        for label, group in subjects_of(found).items()
    ]


def pooled(group: Sequence[Analysis]) -> dict[str, list[float]]:
    """Layer -> accuracy lost in points, of the filters of all seeds."""
    layers = group[0].look.lost
    return {name: [100.0 * value for one in group for value in one.look.lost[name].tolist()] for name in layers}


def _lost_cells(found: Sequence[Distribution]) -> list[str]:
    if not found:
        return ["-"] * 4
    low, high = (100 * sum(getattr(one, key) for one in found) / len(found) for key in ("low", "high"))
    return [
        _mean([100 * one.mean for one in found], "{:.2f}"),
        _mean([100 * one.median for one in found], "{:.2f}"),
        f"{low:.2f} to {high:.2f}",
        _mean([100 * one.harmless for one in found], "{:.0f} %"),
    ]


def _distribution(one: Analysis, layer: str) -> Distribution | None:
    return distributions({layer: one.look.lost[layer]})[0] if layer in one.look.lost else None


def _mean(values: Sequence[float | None], form: str) -> str:
    there = [value for value in values if value is not None and not math.isnan(value)]
    return form.format(sum(there) / len(there)) if there else "-"


def _with_interval(agreements: Sequence[Agreement], measure: str) -> str:
    values = [value for one in agreements if not math.isnan(value := getattr(one, measure))]
    if not values:
        return "n/a"
    found = mean_correlation(values)
    low, high = found.low, found.high
    if len(values) == 1:
        low, high = correlation_interval(found.mean, agreements[0].filters, ranks=measure != "pearson")
    mean = decimals(found.mean)
    return mean if low is None or high is None else f"{mean} [{decimals(low)}, {decimals(high)}]"


def _criteria_in_order(found: Sequence[Analysis]) -> list[str]:
    """By their mean Spearman correlation with the oracle, best first."""
    names = dict.fromkeys(name for one in found for name in one.look.agreement)

    def mean(name: str) -> float:
        values = [one.look.agreement[name].spearman for one in found if name in one.look.agreement]
        there = [value for value in values if not math.isnan(value)]
        return sum(there) / len(there) if there else -math.inf

    return sorted(names, key=mean, reverse=True)


def _off_diagonal(one: Analysis, layer: str) -> float | None:
    """The mean correlation of two filters that are not silent; None of a layer not looked at, or without two."""
    matrix = one.cca.get(layer)
    if matrix is None:
        return None
    pairs = matrix[~torch.eye(len(matrix), dtype=torch.bool)]
    pairs = pairs[~pairs.isnan()]
    return float(pairs.mean()) if len(pairs) else None


def _silent(one: Analysis, layer: str) -> int | None:
    """How many filters have a constant feature map."""
    matrix = one.cca.get(layer)
    return None if matrix is None else int(matrix.diagonal().isnan().sum())


def _filters(found: Sequence[Analysis]) -> tuple[list[str], Rows]:
    criteria = _criteria_in_order(found)
    heads = ["network", "seed", "layer", "filter", "accuracy_lost_points", "overlap", "times_dropped", *criteria]
    rows: Rows = []
    for one in found:
        for overlap in one.overlaps:
            lost = one.look.lost.get(overlap.layer)
            for index in range(overlap.filters):
                scores = [one.look.scores.get(name, {}).get(overlap.layer) for name in criteria]
                rows.append(
                    [
                        *(one.label, one.seed, overlap.layer, index),
                        "" if lost is None else 100 * float(lost[index]),
                        float(overlap.overlap[index]),
                        one.dropped.get(overlap.layer, {}).get(index, 0),
                        *("" if values is None else float(values[index]) for values in scores),
                    ]
                )
    return heads, rows


def _layers(found: Sequence[Analysis]) -> tuple[list[str], Rows]:
    lost = ("mean", "median", "low", "high", "least", "most")
    heads = [
        *("network", "seed", "layer", "filters", "dims", "ranked", "overlap_mean", "overlap_sum", "random_mean"),
        *("ratio", "sigmas", *(f"lost_points_{key}" for key in lost), "harmless", "cca_mean", "cca_chance", "silent"),
        "cca_with_first",
    ]
    rows: Rows = []
    for one in found:
        for layer in one.overlaps:
            oracle = _distribution(one, layer.layer)
            rows.append(
                [
                    *(one.label, one.seed, layer.layer, layer.filters, layer.dims, layer.ranked),
                    *(layer.mean, layer.total, layer.expected, layer.ratio, layer.sigmas),
                    *("" if oracle is None else 100 * getattr(oracle, key) for key in lost),
                    "" if oracle is None else oracle.harmless,
                    *(_off_diagonal(one, layer.layer), one.chance.get(layer.layer), _silent(one, layer.layer)),
                    one.alike.get(layer.layer),
                ]
            )
    return heads, rows


def _agreement(found: Sequence[Analysis]) -> tuple[list[str], Rows]:
    rows: Rows = []
    for one in found:
        for look in one.earlier:
            for name, value in look.agreement.items():
                epoch = "" if look.epoch is None else look.epoch
                rows.append([one.label, one.seed, epoch, name, value.filters, *(getattr(value, k) for k in MEASURES)])
    return ["network", "seed", "epoch", "criterion", "filters", *MEASURES], rows


def _cca(found: Sequence[Analysis]) -> tuple[list[str], Rows]:
    rows: Rows = []
    for one in found:
        for layer, matrix in one.cca.items():
            values = matrix.tolist()
            pairs = ((f, g) for f in range(len(values)) for g in range(f + 1, len(values)))
            rows += [[one.label, one.seed, layer, f, g, values[f][g]] for f, g in pairs]
    return ["network", "seed", "layer", "filter", "other", "correlation"], rows


def _as_dict(one: Analysis) -> dict[str, Any]:
    overlaps = {layer.layer: {"overlap": layer.overlap.tolist(), "random": layer.expected} for layer in one.overlaps}
    return {
        "network": one.label,
        "seed": one.seed,
        "path": str(one.path),
        "images": one.images,
        "split": one.split,
        "epoch": one.look.epoch,
        "accuracy": one.look.accuracy,
        "overlap": overlaps,
        "accuracy_lost": {name: values.tolist() for name, values in one.look.lost.items()},
        "scores": {c: {name: v.tolist() for name, v in layers.items()} for c, layers in one.look.scores.items()},
        "agreement": [
            {"epoch": look.epoch, "criterion": name, **vars(value)}
            for look in one.earlier
            for name, value in look.agreement.items()
        ],
        "cca": {name: matrix.tolist() for name, matrix in one.cca.items()},
        "cca_chance": one.chance,
        "cca_with_first": one.alike,
        "times_dropped": one.dropped,
    }


def _csv(heads: Sequence[str], rows: Rows) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_cell(value) for value in row] for row in [heads, *rows])
    return text.getvalue()


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else in_csv(value)


def _markdown(found: Sequence[Analysis], notes: Sequence[str]) -> str:
    labels = list(subjects_of(found))
    agreement, layers = agreement_table(found), layer_table(found)
    seeds = {len(group) for group in subjects_of(found).values()}
    several, first = max(seeds) > 1, in_markdown(labels[0])
    interval = "Mean over n seeds and its 95 % t-interval" if several else "In brackets, a 95 % interval over filters"
    if several and 1 in seeds:
        interval += "; where n is 1, a 95 % interval over filters"
    return "\n".join(
        [
            f"# {in_markdown(', '.join(labels))}",
            "",
            *map(as_item, accuracy_lines(found)),
            "",
            "## Which criterion agrees with the greedy oracle?",
            "",
            *_table(*agreement),
            "",
            "Correlation of the scores with minus the accuracy lost when each filter alone is left out, over all "
            f"filters. {interval}.",
            "",
            "## Layer by layer",
            "",
            *_table(*layers),
            "",
            "Overlap: mean O_f of the filters, and what random directions would have in that layer. Accuracy lost: by "
            "leaving out one filter. Harmless: share of filters whose absence costs nothing. CCA: mean canonical "
            "correlation of the feature maps of two filters, and of unrelated maps. Silent: filters with a constant "
            "map, which correlate with none."
            + (f" CCA with {first}: of the layer's maps as a whole, seed by seed." if len(labels) > 1 else "")
            + (" Means over seeds." if several else ""),
            "",
            *map(as_item, notes),
            *([""] if notes else []),
        ]
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    first, *others = ("| " + " | ".join(map(in_markdown, row)) + " |" for row in (heads, *rows))
    return [first, "|" + "---|" * len(heads), *others]
