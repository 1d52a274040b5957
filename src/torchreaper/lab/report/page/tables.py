"""The tables of the page, as headings and rows of text.

``comparison.json`` of another version may have fewer keys, or more: what is missing leaves its cell empty, a column
without a cell is left out, and what no column shows stands in `every_number`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from torchreaper.lab.comparison import duration
from torchreaper.lab.published import percent
from torchreaper.lab.report.page.reading import Folder, Json, Run, parts
from torchreaper.lab.statistics import decimals, format_p
from torchreaper.lab.wording import measure_of, metric_of

ENVIRONMENT = {
    "device": "device", "gpu": "GPU", "cpu": "CPU", "threads": "CPU threads", "precision": "precision",
    "platform": "system", "python": "Python", "torch": "torch", "torchreaper": "torchreaper", "commit": "commit",
    "date": "begun", "command": "command", "code": "own code", "data": "data files",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table; the first column names the row."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def comparison_table(found: Json) -> Table:
    """A line per scheme: what was measured, and how it differs from the baseline."""
    baseline = str(found.get("baseline", "the baseline"))
    contrasts = {part.get("scheme"): part for part in parts(found, "contrasts")}
    epochs = {one.get("epochs") for one in parts(found, "schemes")}
    measure = measure_of(found)
    columns: list[tuple[str, Callable[[Json, Json], str]]] = [
        ("scheme", lambda one, _: str(one.get("scheme", ""))),
        ("seeds", lambda one, _: _count(_inner(one, "accuracy").get("n"))),
        (f"{measure}, %", lambda one, _: interval(one.get("accuracy"))),
        ("paper, %", lambda one, _: percent(one["published"]) if _is_number(one.get("published")) else ""),
        ("gap, points", lambda one, _: interval(one.get("gap"))),
        (f"minus {baseline}, points", lambda _, other: interval(other.get("accuracy"), signed=True)),
        ("p", lambda _, other: _p(_inner(other, "accuracy").get("p"))),
        ("p, Holm", lambda _, other: _p(other.get("p_holm"))),
        (f"gap minus {baseline}, points", lambda _, other: interval(other.get("gap"), signed=True)),
        ("to baseline, epochs", lambda one, _: _reached(_inner(one, "epochs_to_baseline"))),
        ("epochs", lambda one, _: _count(one.get("epochs")) if len(epochs) > 1 else ""),
        ("run", lambda one, _: _time(one)),
        ("time ratio", lambda _, other: _number(other.get("wall_clock"), "x {:.2f}")),
    ]
    rows = [[cell(one, contrasts.get(one.get("scheme"), {})) for _, cell in columns] for one in parts(found, "schemes")]
    kept = [number for number in range(len(columns)) if any(row[number] for row in rows)]
    epoch = "the last epoch" if found.get("report", "last") == "last" else "the epoch chosen on validation images"
    return Table(
        f"{measure[:1].upper()}{measure[1:]} of {epoch}, mean over the seeds; in brackets 95 % intervals",
        [columns[number][0] for number in kept],
        [[row[number] for number in kept] for row in rows],
    )


def parts_table(found: Json) -> Table:
    """A line per further share and scheme, as average precision of each class; no lines where there are none."""
    baseline = str(found.get("baseline", "the baseline"))
    contrasts = {part.get("scheme"): _inner(part, "parts") for part in parts(found, "contrasts")}
    schemes = {str(one.get("scheme", "")): one for one in parts(found, "schemes")}
    names = dict.fromkeys(name for one in schemes.values() for name in _inner(one, "parts"))
    rows = []
    for name in names:
        for scheme, one in schemes.items():
            here, minus = _inner(one, "parts").get(name), _inner(contrasts.get(scheme, {}), name)
            paper: Any = _inner(one, "published_parts").get(name)
            if here is not None:
                told = percent(paper) if _is_number(paper) else ""
                rows.append([name, scheme, told, interval(here), interval(minus, signed=True), _p(minus.get("p"))])
    heads = ["of it", "scheme", "paper, %", "%", f"minus {baseline}, points", "p"]
    kept = [place for place in range(len(heads)) if any(row[place] for row in rows)]
    return Table(
        "In parts, with 95 % intervals; not corrected for how many there are",
        [heads[place] for place in kept],
        [[row[place] for place in kept] for row in rows],
    )


def every_number(found: Json) -> Table:
    """All that ``comparison.json`` says of the schemes, a column for each."""
    schemes = parts(found, "schemes")
    contrasts = {part.get("scheme"): part for part in parts(found, "contrasts")}
    columns = []
    for one in schemes:
        minus = {f"minus {found.get('baseline')}": contrasts.get(one.get("scheme"), {})}
        columns.append({key: text for key, text in flat({**one, **minus}) if key.split(".")[-1] != "scheme"})
    keys = list(dict.fromkeys(key for column in columns for key in column))
    return Table(
        "Every number of comparison.json, in percent and points",
        ["number", *(str(one.get("scheme")) for one in schemes)],
        [[key, *(column.get(key, "") for column in columns)] for key in keys],
    )


def run_table(folder: Folder) -> Table:
    """A line per run, finished or not."""
    rows = []
    for run in folder.every:
        result = run.result or {}
        rows.append(
            [
                run.scheme,
                str(run.seed),
                "finished" if run.result is not None else run.where,
                _number(result.get("test_accuracy"), "{:.2f}", 100),
                _number(result.get("train_accuracy"), "{:.2f}", 100),
                _number(result.get("gap"), "{:.2f}", 100),
                duration(result["seconds"]) if _is_number(result.get("seconds")) else "",
            ]
        )
    measures = measure_of(folder.found), f"training {metric_of(folder.found)}"
    heads = ["scheme", "seed", "state", *(f"{measure}, %" for measure in measures), "gap, points", "time"]
    return Table("Every run, as it ended", heads, rows)


def environment_table(folder: Folder) -> Table:
    """Where the runs were made; where they differ, every value with the runs that had it."""
    known = [run for run in folder.every if run.environment]
    keys = dict.fromkeys([*ENVIRONMENT, *(key for run in known for key in run.environment)])
    rows = []
    for key in keys:
        values: dict[str, list[Run]] = {}
        for run in known:
            if (value := run.environment.get(key)) not in (None, "", [], {}):
                values.setdefault(_plain(key, value), []).append(run)
        if key == "date" and len(values) > 1:
            rows.append([ENVIRONMENT[key], f"{min(values)} to {max(values)}"])
        elif values:
            rows.append([ENVIRONMENT.get(key, key), _per_run(values)])
    return Table("Where and how it was run", ["what", "value"], rows)


def _plain(key: str, value: Any) -> str:
    return f"{len(value)} times" if key == "resumed" and isinstance(value, list) else _text(value)


def _per_run(values: Mapping[str, Sequence[Run]]) -> str:
    if len(values) == 1:
        return next(iter(values))
    return "; ".join(f"{value} ({', '.join(_runs_in_words(runs))})" for value, runs in values.items())


def _runs_in_words(runs: Sequence[Run]) -> list[str]:
    seeds: dict[str, list[int]] = {}
    for run in runs:
        seeds.setdefault(run.scheme, []).append(run.seed)
    return [f"{scheme} {','.join(map(str, numbers))}" for scheme, numbers in seeds.items()]


def recipe_texts(folder: Folder) -> list[tuple[str, str]]:
    """The recipe as YAML: what all schemes have in common, then what each has for itself."""
    recipes = {scheme: next(iter(runs.values())).recipe for scheme, runs in folder.runs.items()}
    recipes = {scheme: recipe for scheme, recipe in recipes.items() if recipe}
    if not recipes:
        return []
    first = next(iter(recipes.values()))
    shared = {k: v for k, v in first.items() if all(k in r and r[k] == v for r in recipes.values())}
    own = {scheme: {k: v for k, v in recipe.items() if k not in shared} for scheme, recipe in recipes.items()}
    texts = {"shared by all schemes" if len(recipes) > 1 else "recipe": shared, **own}
    return [(title, yaml.safe_dump(values, sort_keys=False)) for title, values in texts.items() if values]


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested objects as ``a.b`` and text, in their order; nulls and empty ones left out."""
    for key, inner in value.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(inner, Mapping):
            yield from flat(inner, name)
        elif inner is not None:
            yield name, _text(inner)


def interval(value: Any, *, signed: bool = False) -> str:
    """An estimate with its interval, such as ``+0.33 [-1.49, +2.16]``; empty for what is none."""
    if not isinstance(value, Mapping) or not _is_number(value.get("mean")):
        return ""
    form = "{:+.2f}" if signed else "{:.2f}"
    return " ".join(filter(None, [decimals(value["mean"], form), _bounds(value, form)]))


def _bounds(value: Mapping[str, Any], form: str) -> str:
    low, high = _number(value.get("low"), form), _number(value.get("high"), form)
    return f"[{low}, {high}]" if low and high else ""


def _reached(reach: Json) -> str:
    """Such as ``34 (4 of 5)``: the median epoch, and how many seeds came so far; half of them or fewer have none."""
    if not _is_number(reach.get("n")):
        return ""
    median = _count(reach.get("median")) or ("-" if reach.get("reached") else "never")
    return f"{median} ({_count(reach.get('reached'))} of {_count(reach.get('n'))})"


def _time(summary: Json) -> str:
    """A run, its teachers included."""
    seconds, teachers = (summary.get(key) for key in ("seconds", "teacher_seconds"))
    both = [float(value) for value in (seconds, teachers) if isinstance(value, (int, float))]
    return duration(sum(both)) if _is_number(seconds) else ""


def _inner(value: Mapping[str, Any], key: str) -> Json:
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}


def _p(value: Any) -> str:
    return format_p(value).removeprefix("p").strip(" =") if _is_number(value) else ""


def _number(value: Any, form: str, scale: float = 1) -> str:
    return decimals(scale * value, form) if _is_number(value) else ""


def _count(value: Any) -> str:
    return f"{value:g}" if _is_number(value) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(inner) for inner in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(inner)}" for key, inner in value.items())
    return str(value)
