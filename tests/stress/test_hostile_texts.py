"""Names and texts of others where they are shown: the page, Markdown, CSV, figures, the terminal."""

from __future__ import annotations

import csv
import html
import io
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console
from tests.lab.conftest import LAYERS, folder, metrics, result
from tests.lab.report.browsing import asked_for, chromium, draw_all, open_page
from tests.lab.tiny import TINY, recipe
from tests.stress.recording import lengths
from typer.testing import CliRunner

from torchreaper.lab import cli, comparison, console, foreign, models
from torchreaper.lab.comparison import Failure, summarise
from torchreaper.lab.errors import UserError
from torchreaper.lab.published import Published
from torchreaper.lab.report.figures import accuracy_figure, filter_map_figure, overlap_figure
from torchreaper.lab.report.page import write_page

EVIL = [
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "'\"><svg/onload=window.pwned=1>",
    "</script><script>window.pwned=1</script>",
    "</style><script>window.pwned=1</script>",
    "--></title></textarea><script>window.pwned=1</script>",
    "<!--<script>",
    "]]><script>window.pwned=1</script>",
    "javascript:window.pwned=1",
    "[x](javascript:window.pwned=1)",
    "[x]: javascript:window.pwned=1",
    "![x](http://example.org/x.png)",
    "<http://example.org>",
    "{{ 7*7 }}{% for x in range(9) %}x{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% include '/etc/passwd' %}",
    "${window.pwned=1}",
    "\u2028window.pwned=1\u2029",
    "\u202egnp.exe\u202c\u2066\u200f",
    "a\x1b[31mred\x1b]0;title\x07\x9b2J\x08\x00",
    "<a href='javascript:window.pwned=1'>x</a>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'>",
    "<base href=//example.org>",
    "<meta http-equiv=refresh content='0;url=http://example.org'>",
    "<form action=http://example.org><input type=submit>",
    "<b>bold</b><br><sub>",
    "$\\frac{1}{0}$",
    "$x^{",
    '=HYPERLINK("http://example.org")',
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd",
    "+1+cmd",
    "&lt;script&gt;&#x3c;",
    "\\u003cscript>window.pwned=1",
    "\\<script>\\[x](y)",
    "[red]x[/red]",
    "a|b|c",
    "`x` ~~~ *y* __z__",
    "%s%n%(x)s",
    "\r\nSet-Cookie: x",
    "bell\x07 \x7f \u0085 \ufeff \udcff",
]


def for_a_folder(text):
    """As much of it as a folder can be called."""
    return text.replace("/", "|").replace("\0", "")[:80] or "x"


def encoded(text):
    """As much of it as a file of UTF-8 can hold."""
    return text.encode(errors="replace").decode()


def results(out, text):
    """A comparison with that text wherever there is any; returns its folder."""
    schemes, layers = ("standard", for_a_folder(text)), {f"{name} {text}": count for name, count in LAYERS.items()}
    found = {scheme: {} for scheme in schemes}
    known = encoded(text)
    for scheme in schemes:
        for seed in range(2):
            path = folder(out, scheme, seed, layers=layers)
            values = {"name": "made-up", "epochs": 12, known: known, "model": {"name": known}}
            (path / "recipe.yaml").write_text(yaml.safe_dump(values))
            about = {"device": text, "command": text, "date": f"{text}{seed}", text: [text]}
            (path / "environment.json").write_text(json.dumps(about))
            found[scheme][seed] = json.loads((path / "result.json").read_text())
    unfinished = folder(out, "standard", 7, finished=False, layers=layers)
    (unfinished / "recipe.yaml").write_text(yaml.safe_dump({"epochs": 99}))
    whole = out / "made-up"
    failed = [Failure(schemes[1], 9, text)]
    paper = Published(unit="accuracy %", source=known, data=known, values={"standard": 50.0})
    all_of_it = summarise(found, recipe=text, failures=failed, published=paper, remarks=[text])
    comparison.write(all_of_it, found, whole)
    told = json.loads((whole / "comparison.json").read_text())
    told["schemes"][1][text] = {text: text}
    (whole / "comparison.json").write_text(json.dumps(told))
    known = " ".join(known.split())  # a line break would be Markdown's own
    (whole / "analysis").mkdir()
    (whole / "analysis" / "analysis.md").write_text(f"# h\n\ntext {known}\n\n| a | b |\n|---|---|\n| 1 | {known} |\n")
    Image.new("L", (4, 4)).save(whole / "analysis" / f"cca-{for_a_folder(text)[:60]}.png")
    return whole


class Shape(HTMLParser):
    """The elements of a page and the names of their attributes, without what scripts hold."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(re.sub(r"<script>.*?</script>", "<script></script>", text, flags=re.DOTALL))

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, *(name for name, _ in attrs)))
        for name, value in attrs:
            if name in ("href", "src"):
                assert value.startswith(("#", "data:image/png;base64,")), value
            assert not name.startswith("on")

    def handle_comment(self, data):
        self.found.append(("comment", data))


@lengths(3, 60)
def test_no_text_changes_the_elements_of_the_page(times, trials, tmp_path):
    count = trials(
        "hostile files",
        "pages of reaper report with markup, scripts, templates, turned and hidden characters in every name and text: "
        "the same elements as with plain ones, nothing hidden",
        "pages",
    )
    draw = random.Random(times)
    usual = Shape(write_page(results(tmp_path / "plain", "plain"))[0].read_text()).found
    assert len(usual) > 300
    for number in range(times):
        text = EVIL[number] if number < len(EVIL) and times > 10 else "".join(draw.sample(EVIL, 1 + number % 3))
        text = text.replace("|", "/") if "\n" in text else text
        with count.one():
            page = write_page(results(tmp_path / str(number), text))[0].read_text()
            shape = Shape(page)
            assert shape.found == usual, text
            outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
            assert not {char for char in outside if not char.isprintable()} - {"\n", "\t", "\xa0"}, text


@lengths(1, 4)
def test_a_browser_runs_none_of_it(times, trials, tmp_path):
    count = trials(
        "hostile files",
        "the same pages in Chromium, with their content policy and, for the escaping alone, without it: no script in "
        "the texts ran, nothing was asked for",
        "pages",
    )
    draw = random.Random(times)
    with chromium() as browser:
        for number in range(times):
            text = "".join(draw.sample(EVIL, 4))
            path = write_page(results(tmp_path / str(number), text))[0]
            if number % 2:
                bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text())
                assert "Content-Security-Policy" not in bare
                path.write_text(bare)
            with count.one():
                browser.get_log("browser"), asked_for(browser)
                open_page(browser, path)
                browser.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
                draw_all(browser)
                browser.execute_script("document.getElementsByName('c0-seeds')[0].click()")
                browser.execute_async_script("setTimeout(arguments[0], 300)")
                assert browser.execute_script("return window.pwned === undefined"), text
                assert browser.execute_script("return document.scripts.length") == 3
                elements = (
                    "iframe, base, form, object, embed, body meta, .plot a, svg image[href^=http], img:not([src^=data])"
                )
                assert browser.execute_script(f"return document.querySelectorAll('{elements}').length") == 0, text
                assert browser.current_url == path.absolute().as_uri()
                assert {url.partition(":")[0] for url in asked_for(browser)} <= {"file", "data", "blob"}
                assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == [], text


@lengths(8, 80)
def test_numbers_that_are_none_are_refused_in_a_line(times, trials, tmp_path):
    """Files of results with texts, lists and the like where numbers belong."""
    count = trials(
        "hostile files",
        "reaper report on results in which any value is another, of any kind: a page, or one line",
        "folders",
    )
    draw = random.Random(times)
    whole = results(tmp_path, "plain")
    files = sorted([*whole.rglob("*.json"), *whole.rglob("*.jsonl")])
    kinds = ["<script>", "9" * 5000, 1e308, -1, 10**30, None, True, [], {}, [[[]]], {"a": {"b": []}}, "nan", "\udcff"]
    pages = 0
    for _ in range(times):
        path = draw.choice(files)
        before = path.read_text()
        lines = [json.loads(line) for line in (before.splitlines() if path.suffix == ".jsonl" else [before])]
        where, last = lines[draw.randrange(len(lines))], None
        while isinstance(where, dict | list) and where and (last is None or draw.random() < 0.8):
            last = where, draw.choice(list(where) if isinstance(where, dict) else range(len(where)))
            where = last[0][last[1]]
        last[0][last[1]] = draw.choice(kinds)
        path.write_text("\n".join(map(json.dumps, lines)) + "\n")
        with count.one():
            try:
                page = write_page(whole)[0]
            except UserError as error:
                said = str(error)
            else:
                said = ""
                pages += 1
                assert "<script><script>" not in page.read_text(errors="replace")
            assert "\n" not in said
        path.write_text(before)
    count.note = f"{pages} pages"


@lengths(60, 1_500)
def test_markdown_and_csv_hold_texts_only(times, trials):
    count = trials(
        "hostile files",
        "comparison.md and CSV files with names, sources and errors of any characters: no HTML, link, picture or cell "
        "more, none that a spreadsheet computes",
        "texts",
    )
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    run = result()
    texts = st.one_of(
        st.text(max_size=40), st.sampled_from(EVIL), st.lists(st.sampled_from(EVIL), max_size=3).map("".join)
    )

    @settings(max_examples=times)
    @given(texts)
    def holds(text):
        with count.one():
            found = {"standard": {0: run, 1: run}, f"x{text}": {0: run, 1: run}}
            paper = Published(unit="accuracy %", source=f"s {encoded(text)}", values={"standard": 50.0})
            one = summarise(found, recipe="r", failures=[Failure(f"x{text}", 2, text)], published=paper, remarks=[text])
            tokens = reader.parse(comparison.markdown(one))
            kinds = {token.type for token in tokens}
            inside = {child.type for token in tokens for child in token.children or ()}
            assert not {"html_block", "fence", "code_block", "blockquote_open", "hr"} & kinds, kinds
            assert not {"html_inline", "link_open", "image"} & inside, inside
            cells = [
                len(re.findall(r"(?<!\\)\|", line)) for line in comparison.markdown(one).split("\n") if line[:1] == "|"
            ]
            assert len(set(cells)) == 2, "two tables, each as wide in all its rows"
            for table in (comparison.runs_csv(found, baseline="standard"), comparison.summary_csv(one)):
                for cell in (cell for row in csv.reader(io.StringIO(table)) for cell in row):
                    assert re.fullmatch(r"[-+]?[\d.e+-]*|nan", cell) or not cell.lstrip().startswith(
                        ("=", "+", "-", "@")
                    )

    holds()


def test_a_text_keeps_what_it_says():
    assert foreign.visible("plain, äöü 日本 🙂\nnext") == "plain, äöü 日本 🙂\nnext"
    assert foreign.visible("a\x1b[0m\u202eb\r\udcff") == r"a\x1b[0m\u202eb\r\udcff"
    assert foreign.in_csv("=1+1") == "'=1+1"
    assert foreign.in_csv(" @x") == "' @x"
    assert foreign.in_csv(-1.5) == -1.5
    text = "a <b> [0.1, 0.2] (4 of 5) \\ c|d [x](y)"
    shown = MarkdownIt("commonmark").renderInline(foreign.in_markdown(text))
    assert html.unescape(shown) == text


@lengths(200, 6_000)
def test_the_terminal_gets_no_commands(times, trials, capfd):
    count = trials(
        "hostile files",
        "notes, errors, tables and lines with escape sequences, control characters and turned text: shown spelt out",
        "texts",
    )
    lines = Console(file=(screen := io.StringIO()), width=200, force_terminal=True, color_system=None, highlight=False)

    @settings(max_examples=times)
    @given(
        st.one_of(st.text(), st.sampled_from(EVIL), st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"])))
    )
    def holds(text):
        with count.one():
            screen.seek(0), screen.truncate()
            console.say(lines, text)
            console.show_table(lines, [text, "b"], [["1", text]])
            shown = re.sub(r"\x1b\[[01]m", "", screen.getvalue())  # the bold heads of tables
            assert shown.replace("\n", "").isprintable(), repr(shown)
            assert console.note_line("x", text).isprintable()
            assert foreign.line(text).isprintable()

    holds()


@lengths(1, 20)
def test_figures_draw_any_name(times, trials):
    count = trials(
        "hostile files",
        "figures with formulas, broken ones too, control characters and markup in names of recipes, schemes and "
        "layers: drawn as they are",
        "sets of figures",
    )
    draw = random.Random(times)
    for number in range(times):
        text = EVIL[number % len(EVIL)] if times > 1 else draw.choice(["$x^{", "$\\frac{1}{0}$", "a\x1b\x00\udcff"])
        layers = {f"{name}{text}": width for name, width in LAYERS.items()}
        with count.one():
            runs = {"standard": {0: metrics(0, layers=layers, cycles=0)}, f"b{text}": {0: metrics(0, layers=layers)}}
            for figure in (
                accuracy_figure(runs, name=text),
                overlap_figure(runs, name=text),
                filter_map_figure(metrics(0, layers=layers), layers, name=text),
            ):
                figure.savefig(io.BytesIO(), format="png", dpi=40)


def test_formulas_of_our_own_are_drawn_as_such():
    figure = overlap_figure({"repr": {0: metrics(0)}})
    ours = [text for text in figure.findobj(lambda one: hasattr(one, "get_parse_math")) if "$" in text.get_text()]
    assert ours
    assert all(text.get_parse_math() for text in ours)


@lengths(1, 3)
def test_an_analysis_of_a_file_of_any_name(times, trials, tmp_path, monkeypatch):
    count = trials(
        "hostile files",
        "reaper analyze on weights in a file called by markup, a formula, escapes: tables, figures, terminal hold text",
        "commands",
    )
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    model = recipe().model
    network = models.build(model.name, model.options, in_channels=1, classes=10, image_size=(8, 8), generator_seed=0)
    for number in range(times):
        name = for_a_folder(EVIL[(7 * number + 28) % len(EVIL)] + "$x^{<b>[x](javascript:1)\x1b[31m") + ".pt"
        torch.save(network.state_dict(), name)
        with count.one():
            asked = ["--recipe", "tiny.yaml", "--images", "20", "--criteria", "magnitude", "--out", f"out{number}"]
            ended = CliRunner().invoke(cli.app, ["analyze", f"./{name}", *asked])
            assert ended.exit_code == 0, (ended.stderr, ended.exception)
            assert (ended.stdout + ended.stderr).replace("\n", "").isprintable()
            text = (Path(f"out{number}") / "analysis.md").read_text()
            tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
            inside = {child.type for token in tokens for child in token.children or ()}
            assert not {"html_inline", "link_open", "image"} & inside
            assert text.replace("\n", "").isprintable()
            for path in Path(f"out{number}").glob("*.csv"):
                cells = [cell for row in csv.reader(io.StringIO(path.read_text("utf-8"))) for cell in row]
                assert all(not cell.startswith(("=", "@")) for cell in cells)
            assert len(list(Path(f"out{number}").glob("*.png"))) >= 3
