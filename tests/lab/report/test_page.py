"""The page of a comparison, without a browser: what is read, what its tables and plots hold, that nothing escapes."""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from torchreaper.lab import cli
from torchreaper.lab.comparison import Failure, notes, summarise, write
from torchreaper.lab.errors import UserError
from torchreaper.lab.foreign import visible
from torchreaper.lab.report.page import reading, rendering, tables, write_page
from torchreaper.lab.report.page.curves import filter_map, layer_curves, mean_and_range, plots
from torchreaper.lab.report.page.reading import Folder, Run


@pytest.fixture
def compared(tmp_path, made_up):
    """The folder of a finished comparison, and what was found."""
    results = {scheme: {} for scheme in ("standard", "repr")}
    for scheme, runs in results.items():
        for seed in range(3):
            folder = made_up.folder(tmp_path, scheme, seed)
            (folder / "recipe.yaml").write_text(yaml.safe_dump({"epochs": 12, "scheme": {"name": scheme}}))
            (folder / "environment.json").write_text(json.dumps({"threads": 1 + (seed == 2), "command": "reaper"}))
            runs[seed] = json.loads((folder / "result.json").read_text())
    found = summarise(results, recipe="made-up", failures=[Failure("repr", 3, "loss is nan")])
    write(found, results, tmp_path / "made-up")
    return tmp_path / "made-up", found


def run(scheme="repr", seed=0, lines=(), result=None, recipe=None, environment=None):
    return Run(scheme, seed, lines, result, recipe or {}, environment or {})


# --- what is read


def test_a_comparison_is_read_as_it_was_written(compared):
    path, found = compared
    folder = reading.read(path)
    assert folder.name == "made-up"
    assert folder.notes == notes(found)
    assert folder.warnings == []
    assert [(one.scheme, one.seed) for one in folder.every] == [(s, k) for s in ("standard", "repr") for k in range(3)]
    assert folder.found == json.loads((path / "comparison.json").read_text())


def test_older_results_have_their_sentences_beside_them_or_verdicts_alone(compared):
    path, found = compared
    there = json.loads((path / "comparison.json").read_text())
    there.pop("notes", None)
    (path / "comparison.json").write_text(json.dumps(there))
    assert reading.read(path).notes == notes(found)
    (path / "comparison.md").unlink()
    assert reading.read(path).notes == [found.contrasts[0].verdict, "Failed: repr, seed 3"]


def test_an_unfinished_comparison_says_so_and_shows_what_there_is(compared):
    path, _ = compared
    (path / "comparison.json").unlink()
    late = path / "repr" / "seed-2"
    (late / "result.json").unlink()
    (late / "metrics.jsonl").write_bytes(b"".join((late / "metrics.jsonl").read_bytes().splitlines(True)[:7]) + b'{"ep')
    lines = (late / "metrics.jsonl").read_bytes()
    (late / "metrics.jsonl").write_bytes(b"")
    assert reading.read(path).warnings[0].startswith("Not finished: repr, seed 2, in epoch 1 of 12. ")
    (late / "metrics.jsonl").write_bytes(lines)
    folder = reading.read(path)
    assert folder.warnings == [
        "Not finished: repr, seed 2, at epoch 7 of 12. Finished runs alone are in the table.",
    ]
    assert [(part["scheme"], part["accuracy"]["n"]) for part in folder.found["schemes"]] == [
        ("standard", 3),
        ("repr", 2),
    ]
    assert "2 seeds" in folder.notes[0]
    drawn = plots(folder)["schemes"][1]
    assert drawn["means"]["accuracy"]["x"] == list(range(1, 13))  # a young run does not cut the others' mean
    assert [len(seed["x"]) for seed in drawn["seeds"]] == [12, 12, 7]
    html = rendering.render([folder])
    assert "test accuracy and gap: of the epochs that were judged" in html
    assert "gap and training loss: as counted\nwhile training" in html  # not the gap of the table
    assert "5 of 6 runs finished" in html
    assert "at epoch 7 of 12" in html


def test_curves_are_of_the_epochs_that_were_judged(compared):
    path, _ = compared
    for file in path.glob("*/*/metrics.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            line["test_accuracy"] = line["test_accuracy"] if line["epoch"] in (5, 10, 12) else None
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        (file.parent / "metrics.jsonl.sha256").unlink(missing_ok=True)
    for drawn in plots(reading.read(path))["schemes"]:
        for key in ("accuracy", "gap"):
            assert drawn["means"][key]["x"] == [5, 10, 12]
            assert None not in drawn["means"][key]["mean"]
        assert drawn["means"]["loss"]["x"] == list(range(1, 13))
        assert [x for x, y in zip(drawn["seeds"][0]["x"], drawn["seeds"][0]["accuracy"]) if y is not None] == [
            5,
            10,
            12,
        ]


def test_phases_are_spoken_of_where_there_are_some(compared):
    path, _ = compared
    words = "Grey: sub-network phases."
    assert words in rendering.render([reading.read(path)])
    shutil.rmtree(path / "repr")
    assert words not in rendering.render([reading.read(path)])


def test_nothing_finished_is_a_page_too(compared):
    path, _ = compared
    for file in ("comparison.json", "comparison.md", "*/*/result.json", "*/*/recipe.yaml"):
        for one in path.glob(file):
            one.unlink()
    html = rendering.render([reading.read(path)])
    assert "No verdict yet" in html
    assert "No run is finished yet." in html
    assert "standard, seed 0, at epoch 12" in html


def test_runs_that_came_after_the_comparison_are_named(compared, made_up):
    path, _ = compared
    made_up.folder(path.parent, "dsd", 0)
    assert reading.read(path).warnings == [
        "Not in the table: dsd, seed 0. Give reaper compare with these schemes and seeds to have them compared."
    ]


def test_what_holds_no_comparison_is_refused_with_the_remedy(compared, tmp_path):
    path, _ = compared
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^out=.*/no: is no folder; give the one that reaper compare wrote"):
        reading.find(tmp_path / "no")
    with pytest.raises(
        UserError, match=r"^out=.*/empty: holds no comparison; give the folder that reaper compare wrote"
    ):
        reading.find(tmp_path / "empty")
    for part in (path / "repr", path / "repr" / "seed-0"):
        with pytest.raises(UserError, match=r": is a part of a comparison; give the whole of it, .*/made-up$"):
            reading.find(part)
    assert reading.find(path) == [path]
    assert reading.find(tmp_path) == [path]


# --- the tables


def test_the_table_shows_what_there_is_of_any_version():
    old = {"baseline": "a", "schemes": [{"scheme": "a", "accuracy": {"n": 3, "mean": 50.0, "low": None, "high": None}}]}
    assert tables.comparison_table(old).heads == ["scheme", "seeds", "test accuracy, %"]
    assert tables.comparison_table(old).rows == [["a", "3", "50.00"]]
    new = {
        "baseline": "a",
        "schemes": [
            {"scheme": "a", "epochs": 10, "seconds": 60.0, "published": 72.1},
            {
                "scheme": "b", "epochs": 20, "seconds": 60.0, "teacher_seconds": 3.0,
                "epochs_to_baseline": {"median": 34.0, "reached": 4, "n": 5},
            },
            {"scheme": "c", "epochs": 20, "epochs_to_baseline": {"median": None, "reached": 0, "n": 5}},
            {"scheme": "d", "epochs": 20, "epochs_to_baseline": {"median": None, "reached": 1, "n": 2}},
        ],
        "contrasts": [
            {
                "scheme": "b", "accuracy": {"mean": -1.5, "low": -2.0, "high": -1.0, "p": 0.012}, "p_holm": 0.024,
                "bootstrap": {"low": -1.9, "high": -1.1}, "wall_clock": 1.05,
            }
        ],
    }  # fmt: skip
    table = tables.comparison_table(new)
    assert dict(zip(table.heads, table.rows[1])) == {
        "scheme": "b",
        "paper, %": "",
        "minus a, points": "-1.50 [-2.00, -1.00]",
        "p": "0.012",
        "p, Holm": "0.024",
        "to baseline, epochs": "34 (4 of 5)",
        "epochs": "20",
        "run": "63.0 s",
        "time ratio": "x 1.05",
    }
    assert dict(zip(table.heads, table.rows[0]))["paper, %"] == "72.1"
    assert dict(zip(table.heads, table.rows[2]))["to baseline, epochs"] == "never (0 of 5)"
    assert dict(zip(table.heads, table.rows[3]))["to baseline, epochs"] == "- (1 of 2)"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["scheme", "accuracy", "gap", "bootstrap", "p_holm", "epochs_to_baseline", "published", "wall_clock", "seconds"]


@given(
    schemes=st.lists(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6), max_size=3),
    contrasts=st.lists(
        st.dictionaries(st.sampled_from([k for k in KEYS if k != "scheme"]), JSON, max_size=6), max_size=2
    ),
)
def test_no_content_of_another_version_breaks_a_table(schemes, contrasts):
    found = {
        "baseline": "a",
        "schemes": [{**one, "scheme": str(number)} for number, one in enumerate(schemes)],
        "contrasts": [{**one, "scheme": str(number)} for number, one in enumerate(contrasts)],
    }
    for table in (tables.comparison_table(found), tables.every_number(found)):
        assert all(len(row) == len(table.heads) for row in table.rows)
        assert all(isinstance(cell, str) for row in table.rows for cell in row)


def test_every_number_of_the_comparison_stands_in_the_last_table(compared):
    path, found = compared
    rows = {row[0]: row[1:] for row in tables.every_number(reading.read(path).found).rows}
    assert rows["accuracy.sd"] == [f"{one.accuracy.sd:.5g}" for one in found.schemes]
    assert rows["minus standard.accuracy.low"] == ["", f"{found.contrasts[0].accuracy.low:.5g}"]
    assert rows["minus standard.verdict"] == ["", found.contrasts[0].verdict]


def test_the_environment_says_which_runs_differ(compared):
    path, _ = compared
    rows = dict(tables.environment_table(reading.read(path)).rows)
    assert rows["command"] == "reaper"
    assert rows["CPU threads"] == "1 (standard 0,1, repr 0,1); 2 (standard 2, repr 2)"


def test_the_recipe_is_parted_into_what_is_shared_and_what_is_not():
    recipes = {"a": {"epochs": 3, "scheme": {"name": "a"}}, "b": {"epochs": 3, "scheme": {"name": "b"}, "more": 1}}
    runs = {name: {0: run(name, recipe=recipe)} for name, recipe in recipes.items()}
    texts = dict(tables.recipe_texts(Folder("x", {}, [], [], runs, {}, "")))
    assert {title: yaml.safe_load(text) for title, text in texts.items()} == {
        "shared by all schemes": {"epochs": 3},
        "a": {"scheme": {"name": "a"}},
        "b": {"scheme": {"name": "b"}, "more": 1},
    }


# --- the numbers of the plots


@given(
    st.lists(st.dictionaries(st.integers(1, 6), st.none() | st.floats(-1e3, 1e3), min_size=1), min_size=1, max_size=4)
)
def test_means_lie_in_their_range_at_the_epochs_all_have(curves):
    seeds = [[{"epoch": epoch, "v": value} for epoch, value in sorted(curve.items())] for curve in curves]
    drawn = mean_and_range(seeds, lambda line: line["v"])
    assert drawn["x"] == sorted(set.intersection(*map(set, curves)))
    for epoch, mean, low, high in zip(drawn["x"], drawn["mean"], drawn["low"], drawn["high"]):
        values = [curve[epoch] for curve in curves]
        if None in values:
            assert mean is low is high is None
        else:
            assert mean == pytest.approx(sum(values) / len(values), rel=1e-3, abs=1e-9)
            assert low == pytest.approx(min(values), rel=1e-3, abs=1e-9)
            assert high == pytest.approx(max(values), rel=1e-3, abs=1e-9)


def test_the_map_says_when_each_filter_was_dropped(made_up):
    lines = made_up.metrics(full=3, sub=2, cycles=2)
    drawn = filter_map(run(lines=lines), made_up.layers)
    assert [(first, last) for first, last, _ in drawn["spans"]] == [(4, 5), (9, 10)]
    for first, _, dropped in drawn["spans"]:
        assert dropped == lines[first - 1]["dropped"]
    assert drawn["layers"] == list(made_up.layers.items())
    assert filter_map(run(lines=made_up.metrics(cycles=0)), made_up.layers) is None


def test_the_map_of_an_unfinished_run_alone_has_the_layers_it_knows_of(made_up):
    lines = made_up.metrics()
    drawn = filter_map(run(lines=lines), {})
    assert set(dict(drawn["layers"])) == {name for line in lines for name in line["dropped"]}


def test_layers_have_curves_in_their_order(made_up):
    drawn = layer_curves([made_up.metrics(seed) for seed in range(2)])
    assert [one["name"] for one in drawn] == list(made_up.layers)
    assert drawn[0]["y"][0] == pytest.approx(made_up.metrics()[0]["overlap"]["conv1"], rel=1e-3)


def test_a_large_comparison_stays_below_ten_megabytes(made_up):
    layers = {f"layer{stage}.{block}.conv{c}": 64 for stage in range(1, 4) for block in range(9) for c in (1, 2)}
    runs = {
        f"scheme-{number}": {
            seed: run(
                f"scheme-{number}", seed, made_up.metrics(seed, epochs=200, full=20, sub=10, cycles=3, layers=layers)
            )
            for seed in range(5)
        }
        for number in range(10)
    }
    html = rendering.render([Folder("large", {}, [], [], runs, {}, "")])
    assert len(html.encode()) < 10e6


# --- nothing escapes


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text of those whose text is not markup."""

    def __init__(self, html):
        super().__init__()
        self.found, self.text, self.inside = [], [], None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(name for name, _ in attrs)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text.append(data)


def folder_of_strings(text):
    """A folder in which every string is this one, made such that each part of the page shows it."""
    result = {"test_accuracy": 0.5, "train_accuracy": 0.6, "gap": 0.1, "seconds": 1.0, "layers": {text: 4}}
    line = {"epoch": 1, "phase": "sub", "test_accuracy": 0.5, "train_accuracy": 0.6, "train_loss": 1.0,
            "overlap": {text: 0.1}, "overlap_total": 0.1, "dropped": {text: [1]}}  # fmt: skip
    runs = {
        name: {0: run(name, 0, [line], result, {"epochs": 1, "model": {"name": text}, "s": name}, {"device": text})}
        for name in (text, f"{text}2")
    }
    found = {
        "baseline": text,
        "schemes": [{"scheme": name, "accuracy": {"n": 1, "mean": 1.0}, "odd": text} for name in runs],
        "contrasts": [{"scheme": f"{text}2", "accuracy": {"n": 1, "mean": 1.0, "p": 0.5}, "verdict": text}],
    }
    return Folder(text, found, [text, f"Failed: {text}", f"{text} more"], [text], runs, {f"{text}.png": b"x"}, text)


PIECES = (
    *(
        "<script>",
        "</script>",
        "<!--",
        "-->",
        "<img src=x onerror=alert(1)>",
        "\"'",
        "&lt;",
        "{{ 1 }}",
        "{% raw %}",
        "]]>",
    ),
    *(
        "</style>",
        "</pre>",
        "${x}",
        "\\u003c",
        "![x](http://a/b)",
        "[x](javascript:y)",
        "| a |\n|---|\n",
        "# ",
        "\u2028",
    ),
)
NASTY = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=4).map("".join)


@pytest.fixture(scope="module")
def plain():
    """The elements of the page where every string is a harmless one."""
    return Elements(rendering.render([folder_of_strings("harmless")])).found


def spelt_out(value):
    """Nested values with every text as the page shows it."""
    if isinstance(value, dict):
        return {visible(key): spelt_out(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [spelt_out(inner) for inner in value]
    return visible(value) if isinstance(value, str) else value


@settings(max_examples=40, deadline=None)
@given(text=NASTY)
def test_no_string_of_a_file_becomes_markup(plain, text):
    folder = folder_of_strings(text)
    quiet = Folder(folder.name, folder.found, folder.notes, folder.warnings, folder.runs, folder.pictures, "harmless")
    page = rendering.render([quiet])
    if text:  # an empty one leaves parts out
        assert [tag for tag, _ in Elements(page).found] == [tag for tag, _ in plain]
        assert set(Elements(page).found) == set(plain)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert json.loads(data) == [spelt_out(json.loads(json.dumps(plots(quiet))))]
    assert not set("<>&") & set(data)


@given(text=NASTY)
def test_the_text_of_an_analysis_becomes_harmless_markup_only(text):
    allowed = {"p", "h4", "h5", "h6", "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td", "div"}
    for tag, attributes in Elements(str(rendering.markdown(text))).found:
        assert tag in allowed
        assert set(attributes) <= {"class", "tabindex", "role", "aria-label", "style", "start"}


def test_the_policy_names_the_scripts_of_the_page(compared):
    path, _ = compared
    page = rendering.render([reading.read(path)])
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 2
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)[1].replace("&#39;", "'")
    for code in scripts:
        assert base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() in policy
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy


# --- the command


def reaper(*args):
    return CliRunner().invoke(cli.app, [str(arg) for arg in args], prog_name="reaper")


def test_the_command_writes_the_page_and_says_where(compared):
    path, _ = compared
    done = reaper("report", path)
    assert (done.exit_code, done.output) == (0, f"{path / 'report.html'}\n")
    assert "<title>made-up: comparison</title>" in (path / "report.html").read_text()
    done = reaper("report", path.parent, "--out", path.parent / "new" / "all.html")
    assert done.exit_code == 0, done.output
    assert (path.parent / "new" / "all.html").stat().st_size > 1e6


def test_the_commands_errors_are_one_line_with_the_remedy(compared):
    path, _ = compared
    done = reaper("report", path, "--out", path)
    assert done.exit_code == 2
    assert done.output == f"error: out={path}: is a folder; name a file, such as {path / 'report.html'}\n"
    (path / "repr" / "seed-0" / "result.json").write_text("{")
    done = reaper("report", path)
    assert done.exit_code == 2
    assert re.fullmatch(r"error: .*seed-0/result.json: is damaged .*; delete the folder and run again\n", done.output)


def test_a_page_that_cannot_be_written_leaves_the_old_one(compared, monkeypatch):
    path, _ = compared
    write_page(path)
    before = (path / "report.html").read_bytes()
    (path / "comparison.json").write_text("[]")
    with pytest.raises(UserError, match="is damaged"):
        write_page(path)
    assert (path / "report.html").read_bytes() == before


def test_an_analysis_is_on_the_page(compared):
    path, _ = compared
    (path / "analysis").mkdir()
    (path / "analysis" / "cca.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really a picture")
    (path / "analysis" / "first-layer-repr.png").write_bytes(b"\x89PNG\r\n\x1a\nnor this")
    (path / "analysis" / "other.png").write_bytes(b"a file that only has such a name")
    (path / "analysis" / "analysis.md").write_text("# standard\n\n| a | b |\n|---|---|\n| 1 | x <i>y |\n")
    page = rendering.render([reading.read(path)])
    assert 'alt="Canonical correlation between the feature maps of every two filters, layer by layer"' in page
    assert "dropped ones are marked (repr)" in page
    assert base64.b64encode(b"\x89PNG\r\n\x1a\nnot really a picture").decode() in page
    assert base64.b64encode(b"a file that only has such a name").decode() not in page
    assert "<td>x &lt;i&gt;y</td>" in page
    assert "<h4>standard</h4>" in page


# --- what is not judged by accuracy


def test_another_metric_is_called_by_its_name_and_has_its_parts(compared):
    path, _ = compared
    results = {}
    for file in sorted(path.glob("*/*/result.json")):
        one = {**json.loads(file.read_text()), "metric": "mAP", "parts": {"AP <b>": 0.25}}
        file.write_text(json.dumps(one))
        results.setdefault(one["scheme"], {})[one["seed"]] = one
        lines = [json.loads(line) for line in (file.parent / "metrics.jsonl").read_text().splitlines()]
        text = "".join(json.dumps({**line, "metric": "mAP", "train_accuracy": None}) + "\n" for line in lines)
        (file.parent / "metrics.jsonl").write_text(text)
    found = summarise({scheme: results[scheme] for scheme in ("standard", "repr")}, recipe="made-up")
    write(found, results, path)
    folder = reading.read(path)
    html = rendering.render([folder])
    for text in ("Test mAP", "test mAP (%)", "test mAP, %", "In parts", "AP &lt;b&gt;"):
        assert text in html, text
    shown = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert "est accuracy" not in shown
    assert 'value="gap"' not in html  # there is none to be drawn
    assert tables.parts_table(folder.found).rows[0][:3] == ["AP <b>", "standard", "25.00"]
    assert tables.parts_table({}).rows == []
