"""The page as text: a jinja2 template that escapes whatever comes from files, and a policy that lets nothing in or out.

The scripts are the only ones that may run: the policy names their checksums, so that markup in a scheme's name would
do nothing even where an escape was missing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from importlib import resources
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from torchreaper.lab.foreign import visible
from torchreaper.lab.report.page import curves, tables
from torchreaper.lab.report.page.reading import Folder, parts
from torchreaper.lab.wording import measure_of

PACKAGE = "torchreaper.lab.report.page"
#: What the pictures of an analysis show, by how their names begin; longer beginnings first.
PICTURES = {
    "overlap-over-time": "Overlap of the filters over the epochs, its sum and layer by layer",
    "agreement-over-time": "How well each criterion agrees with the oracle, epoch by epoch",
    "agreement": "How well each criterion agrees with the oracle at the end: correlation coefficients",
    "criteria": "The score of every filter by each criterion, against what the oracle says it is worth",
    "first-layer": "The filters of the first layer as pictures; dropped ones are marked",
    "cca": "Canonical correlation between the feature maps of every two filters, layer by layer",
    "oracle": "How much accuracy is lost without each single filter: its distribution",
    "overlap": "Overlap of the filters at the end, layer by layer, beside that of random filters",
}


def render(folders: Sequence[Folder]) -> str:
    """The page of these comparisons, one after the other."""
    sections = [_section(number, folder) for number, folder in enumerate(folders)]
    scripts = [_script(code) for code in (plotly(), _own("page.js"))]
    environment = Environment(
        loader=PackageLoader(PACKAGE, "."),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    return environment.get_template("page.html").render(
        folders=sections,
        style=Markup(_own("page.css")),
        scripts=[Markup(code) for code in scripts],
        policy=_policy(scripts),
        data=embedded([section["plots"] for section in sections]),
        version=version("torchreaper"),
        written=_now().strftime("%Y-%m-%d %H:%M UTC"),
    )


def _section(number: int, folder: Folder) -> Mapping[str, Any]:
    verdicts = [str(part.get("verdict")) for part in parts(folder.found, "contrasts")]
    failures = [note for note in folder.notes if note.startswith("Failed: ")]
    drawn = curves.plots(folder)
    phases = [number for number, scheme in enumerate(drawn["schemes"]) if scheme["spans"]]
    return {
        "id": f"c{number}",
        "number": number,
        "folder": folder,
        "baseline": str(folder.found.get("baseline", "")),
        "measure": measure_of(folder.found),
        "metrics": (metrics := curves.named(measure_of(folder.found), drawn)),
        "gap": any(metric.key == "gap" for metric in metrics),
        "verdicts": [note for note in folder.notes if note in verdicts],
        "failures": failures,
        "notes": [note for note in folder.notes if note not in {*verdicts, *failures}],
        "facts": facts(folder),
        "table": tables.comparison_table(folder.found),
        "parts": tables.parts_table(folder.found),
        "numbers": tables.every_number(folder.found),
        "runs": tables.run_table(folder),
        "environment": tables.environment_table(folder),
        "recipes": tables.recipe_texts(folder),
        "plots": drawn,
        "first_with_phases": phases[0] if phases else 0,
        "pictures": [(describe(name), _picture(data)) for name, data in folder.pictures.items()],
        "analysis": markdown(folder.analysis),
    }


def facts(folder: Folder) -> str:
    """What was compared, in a line: network, data, epochs, runs."""
    recipe = next((run.recipe for run in folder.every if run.recipe), {})
    model, data = (recipe.get(key) or {} for key in ("model", "data"))
    finished = sum(run.result is not None for run in folder.every)
    runs = f"{finished} of {len(folder.every)} runs finished" if finished < len(folder.every) else f"{finished} runs"
    options = model.get("options")
    options = options if isinstance(options, dict) else {}
    shape = ", ".join(f"{key} {options[key]}" for key in ("depth", "width") if key in options)
    network = f"{model.get('name')} ({shape})" if shape else model.get("name")
    epochs = f"{recipe['epochs']} epochs" if recipe.get("epochs") else None
    return " · ".join(str(part) for part in (network, data.get("name"), epochs, runs) if part)


def describe(name: str) -> str:
    """What a picture of an analysis shows, in words, with what its file name says beyond that."""
    stem = name.rsplit(".", 1)[0]
    for start, words in PICTURES.items():
        if stem == start or stem.startswith(f"{start}-"):
            rest = stem.removeprefix(start).strip("-")
            return f"{words} ({rest})" if rest else words
    return stem


def markdown(text: str) -> Markup:
    """Headings, paragraphs, lists and tables of Markdown as HTML; anything else, HTML above all, stays text."""
    reader = MarkdownIt("zero", {"html": False}).enable(["heading", "list", "table", "escape"])
    reader.add_render_rule(
        "table_open", lambda *_: '<div class="scroll" tabindex="0" role="group" aria-label="table"><table>'
    )
    reader.add_render_rule("table_close", lambda *_: "</table></div>")
    tokens = reader.parse(visible(text))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 3)}"
    return Markup(reader.renderer.render(tokens, reader.options, {}))  # escaped by the reader


def embedded(value: Any) -> Markup:
    """JSON that can stand in a script element: no character in it ends the element or begins a comment."""
    text = json.dumps(_seen(value), separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _shown(value: Any) -> Any:
    """What is put into the page: our own markup as it is, texts with nothing hidden in them."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _unbroken(cell: str) -> Markup:
    """A cell that breaks only between a number and what stands in brackets behind it, where there is little room."""
    return Markup(re.sub(r" (?![\[(])", "&nbsp;", str(escape(visible(cell)))))


def _seen(value: Any) -> Any:
    """As `_shown`, of every text in nested values."""
    if isinstance(value, Mapping):
        return {_seen(key): _seen(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_seen(inner) for inner in value]
    return _shown(value)


@cache
def plotly() -> str:
    """The code of plotly.js, as the plotly package ships it."""
    return resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")


def _own(name: str) -> str:
    return resources.files(PACKAGE).joinpath(name).read_text(encoding="utf-8")


def _script(code: str) -> str:
    """Code that does not end its own element."""
    return code.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _policy(scripts: Sequence[str]) -> str:
    sums = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in scripts]
    allowed = " ".join(f"'sha256-{checksum}'" for checksum in sums)
    allowing = ("default-src 'none'", f"script-src {allowed}", "style-src 'unsafe-inline'", "img-src data: blob:")
    return "; ".join((*allowing, "base-uri 'none'", "form-action 'none'"))  # blob: is for saving a plot as a picture


def _picture(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _now() -> datetime:
    """Now, or the time that builds meant to be repeated to the byte give in SOURCE_DATE_EPOCH."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(given), timezone.utc) if given.isdigit() else datetime.now(timezone.utc)
