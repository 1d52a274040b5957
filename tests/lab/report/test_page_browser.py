"""The page in a real browser: complete in itself, used with a mouse, a keyboard, on a phone, in the dark, on paper."""

import base64
import json

import pytest
import yaml
from tests.lab.report.browsing import asked_for, chromium, draw_all, open_page

from torchreaper.lab.comparison import summarise, write
from torchreaper.lab.report.page import write_page

HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
# Names of schemes are names of folders, so no slash in them.
HOSTILE_NAME = "<img src=x onerror=document.title='broken'>"


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(tmp_path, made_up):
    return make(tmp_path, made_up)


def make(out, made_up, schemes=("standard", "repr"), note=None, **how):
    """The page of a comparison of made-up runs."""
    results = {scheme: {} for scheme in schemes}
    for scheme in schemes:
        for seed in range(3):
            folder = made_up.folder(out, scheme, seed, **how)
            recipe = {"name": "made-up", "epochs": 12, "scheme": {"name": scheme, "remark": note or "plain"}}
            (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
            (folder / "environment.json").write_text(json.dumps({"device": "cpu", "command": note or "reaper"}))
            results[scheme][seed] = json.loads((folder / "result.json").read_text())
    write(summarise(results, recipe="made-up"), results, out / "made-up")
    if note:
        path = out / "made-up" / "comparison.md"
        path.write_text(path.read_text() + f"- {note}\n")
    return write_page(out / "made-up")[0]


def traces(browser, kind, key="name"):
    script = "return document.getElementById(arguments[0])._fullData.map((trace) => trace[arguments[1]])"
    return browser.execute_script(script, f"c0-{kind}", key)


def click(browser, selector):
    """A real click, at the middle of the element's label."""
    label = browser.execute_script("return document.querySelector(arguments[0]).closest('label')", selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", label)
    label.click()


def test_it_opens_without_errors_and_asks_for_nothing_but_itself(browser, page):
    browser.get_log("browser"), browser.get_log("performance")
    open_page(browser, page)
    draw_all(browser)
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    urls = asked_for(browser)
    assert page.absolute().as_uri() in urls
    assert {url.partition(":")[0] for url in urls} <= {"file", "data", "blob"}
    assert [url for url in urls if url.startswith("file:")] == [page.absolute().as_uri()]
    assert browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)") == []
    plots = browser.execute_script("return [...document.querySelectorAll('.plot')].map((p) => p.dataset.kind)")
    assert plots == ["forest", "curves", "pairs", "layers", "map"]


def test_the_policy_stops_what_would_be_fetched(browser, page):
    """That nothing is fetched is no accident: a picture from outside is refused by the page itself."""
    open_page(browser, page)
    browser.get_log("browser")
    browser.execute_async_script(
        "const done = arguments[0], img = new Image(); img.onerror = () => done(); img.src = 'http://example.org/a.png';"
    )
    assert "Content Security Policy" in browser.get_log("browser")[0]["message"]


def test_the_verdict_stands_first_in_sight(browser, page):
    open_page(browser, page)
    verdict = browser.find_element("css selector", ".verdict")
    assert verdict.is_displayed()
    assert "repr" in verdict.text
    assert "points" in verdict.text
    assert verdict.location["y"] + verdict.size["height"] < 900
    assert "Failed" not in browser.find_element("tag name", "body").text


def test_the_table_of_numbers_fits_a_small_laptop_and_no_number_is_broken(browser, tmp_path, made_up):
    open_page(browser, make(tmp_path, made_up, ("standard", "repr", "standard-with-fewer-epochs")), wide=1240)
    table = browser.find_element("css selector", ".scroll")
    assert "minus standard" in table.text
    assert "\\" not in table.text, "a space that does not break is no character to be made visible"
    assert browser.execute_script("return arguments[0].scrollWidth - arguments[0].clientWidth", table) <= 0
    broken = browser.execute_script(
        """
        return [...arguments[0].querySelectorAll("td")].filter((cell) => {
          const style = getComputedStyle(cell);
          const parts = cell.textContent.split(/ (?=[[(])/).length, range = document.createRange();
          range.selectNodeContents(cell);
          return range.getBoundingClientRect().height > parts * parseFloat(style.lineHeight) + 1;
        }).map((cell) => cell.textContent)
        """,
        table,
    )
    assert broken == []


def test_a_click_in_the_legend_hides_a_scheme_and_another_brings_it_back(browser, page):
    open_page(browser, page)
    draw_all(browser)
    before = traces(browser, "curves")
    assert {"standard", "repr"} <= set(before)
    click(browser, "[name=c0-scheme][value='1']")
    assert set(traces(browser, "curves")) == {"standard", "standard, range"}
    click(browser, "[name=c0-scheme][value='1']")
    assert traces(browser, "curves") == before


def test_metric_band_and_single_seeds_are_chosen(browser, page, made_up):
    open_page(browser, page)
    draw_all(browser)
    for metric, axis in (("gap", "points"), ("loss", "training loss"), ("overlap", "O<sub>f</sub>")):
        click(browser, f"[value={metric}]")
        script = "return document.getElementById('c0-curves').layout.yaxis.title.text"
        assert axis in browser.execute_script(script)
    drawn = dict(zip(traces(browser, "curves"), traces(browser, "curves", "y")))
    lines = [made_up.metrics(seed) for seed in range(3)]
    wanted = [sum(run[epoch]["overlap_total"] for run in lines) / 3 for epoch in range(12)]
    assert drawn["repr"] == pytest.approx(wanted, rel=1e-3)
    click(browser, "[name=c0-band]")
    click(browser, "[name=c0-seeds]")
    seeds = {f"{scheme}, seed {seed}" for scheme in ("standard", "repr") for seed in range(3)}
    assert set(traces(browser, "curves")) == {"standard", "repr", *seeds}


def test_phases_are_shaded_and_the_map_shows_what_was_dropped(browser, page, made_up):
    open_page(browser, page)
    draw_all(browser)
    shapes = browser.execute_script(
        "return document.getElementById('c0-curves').layout.shapes.map((s) => [s.x0, s.x1])"
    )
    assert shapes == [[3, 5], [8, 10]]
    cells = browser.execute_script("return document.getElementById('c0-map').data[0].z.map((row) => [...row])")
    lines = made_up.metrics(0)
    wanted = [
        [int(filter in line["dropped"].get(layer, ())) for line in lines]
        for layer, count in made_up.layers.items()
        for filter in range(count)
    ]
    assert cells == wanted


def test_everything_is_reached_and_chosen_by_keyboard(browser, page):
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page)
    draw_all(browser)
    browser.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    reached = []
    for _ in range(30):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        name = browser.execute_script("return document.activeElement.name || document.activeElement.className")
        reached.append(name)
        if name == "c0-metric":
            browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
        if name == "c0-seeds":
            browser.switch_to.active_element.send_keys(Keys.SPACE)
    assert reached[0] == "skip"
    assert {"scroll", "c0-metric", "c0-band", "c0-seeds", "c0-scheme", "c0-layers", "c0-map"} <= set(reached)
    assert "points" in browser.execute_script("return document.getElementById('c0-curves').layout.yaxis.title.text")
    assert "repr, seed 2" in traces(browser, "curves")


LONG = {f"backbone.stages.{i}.residual_branch.depthwise.convolution": 8 for i in range(12)}


@pytest.mark.parametrize("layers", [None, LONG], ids=["short names", "long names"])
def test_a_phone_scrolls_down_only_and_reads_without_a_glass(browser, tmp_path, made_up, layers):
    schemes = ("standard", "repr", "a-scheme-with-a-name-that-goes-on-" + "and-on-" * 8)
    page = make(tmp_path, made_up, schemes, note="unbreakable" * 20, layers=layers or made_up.layers)
    open_page(browser, page, wide=375, high=812)
    browser.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    draw_all(browser)
    wide, screen = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert screen == 375
    assert wide <= screen
    small = browser.execute_script(
        """
        return [...document.querySelectorAll("body *")].filter((one) =>
          [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
          && one.getClientRects().length && !one.closest("script, legend, sub")
          && !["tspan"].includes(one.tagName) && parseFloat(getComputedStyle(one).fontSize) < 12
        ).map((one) => [one.tagName, one.textContent, getComputedStyle(one).fontSize])
        """
    )
    assert small == []
    out = browser.execute_script(
        """
        return [...document.querySelectorAll(".plot")].filter((place) => place.getBoundingClientRect().right > 375
          || place._fullLayout.width > place.clientWidth + 1).map((place) => place.id)
        """
    )
    assert out == []


def test_it_is_dark_where_the_system_is_and_follows_it(browser, page):
    def lightness():
        return browser.execute_script(
            """
            const light = (colour) => colour.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + +part, 0) / 765;
            const body = getComputedStyle(document.body), plot = document.querySelector("#c0-curves .main-svg");
            return [body.backgroundColor, body.color, getComputedStyle(plot).backgroundColor].map(light);
            """
        )

    open_page(browser, page)
    draw_all(browser)
    paper, ink, plot = lightness()
    assert paper == plot == 1
    assert ink < 0.2
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    browser.execute_async_script("setTimeout(arguments[0], 500)")
    paper, ink, plot = lightness()
    assert paper == pytest.approx(plot)
    assert paper < 0.15
    assert ink > 0.8


def test_paper_shows_everything_on_white(browser, page):
    open_page(browser, page, dark=True)
    browser.execute_script(
        """
        window.before = null;
        addEventListener("beforeprint", () => { window.before = {
          open: document.querySelectorAll("details:not([open])").length,
          paper: getComputedStyle(document.body).backgroundColor,
          drawn: document.querySelectorAll(".plot svg.main-svg").length > 0,
        }; });
        """
    )
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 20_000
    assert browser.execute_script("return window.before") == {"open": 0, "paper": "rgb(255, 255, 255)", "drawn": True}
    assert browser.execute_script("return document.documentElement.dataset.paper || null") is None


def test_markup_in_names_notes_and_recipes_is_shown_not_run(browser, tmp_path, made_up):
    page = make(tmp_path, made_up, ("standard", HOSTILE_NAME), note=HOSTILE)
    browser.get_log("browser")
    open_page(browser, page)
    browser.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    draw_all(browser)
    click(browser, "[name=c0-seeds]")
    assert browser.title == "made-up: comparison"
    assert browser.execute_script("return document.images.length") == 0
    assert browser.execute_script("return document.scripts.length") == 3
    assert browser.execute_script("return document.querySelectorAll('.plot a').length") == 0
    text = browser.find_element("tag name", "body").text
    assert HOSTILE in text
    assert HOSTILE_NAME in text
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def test_several_comparisons_have_an_index_whose_links_lead_to_them(browser, tmp_path, made_up):
    make(tmp_path, made_up)
    (tmp_path / "made-up").rename(tmp_path / "first")
    make(tmp_path, made_up, ("standard",))
    open_page(browser, write_page(tmp_path)[0])
    links = browser.find_elements("css selector", "nav a")
    assert [link.get_attribute("href").partition("#")[2] for link in links] == ["c0", "c1"]
    assert [link.text for link in links] == ["first", "made-up"]
    links[0].click()
    browser.execute_async_script("setTimeout(arguments[0], 500)")
    top = browser.execute_script("return document.getElementById('c0').getBoundingClientRect().top")
    assert abs(top) < 2
    browser.execute_script("scrollTo(0, 0)")
    links[1].click()
    browser.execute_async_script("setTimeout(arguments[0], 500)")
    top = browser.execute_script("return document.getElementById('c1').getBoundingClientRect().top")
    assert abs(top) < 2
    heads = browser.execute_script("return [...document.querySelectorAll('h1, h2, h3')].map((h) => +h.tagName[1])")
    assert heads[0] == 1
    assert heads.count(1) == 1
    assert heads.count(2) == 2
