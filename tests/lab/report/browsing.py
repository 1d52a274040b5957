"""A real Chromium without a window, without a network; tests that need one are skipped by name where there is none."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")


@contextmanager
def chromium():
    """A browser that resolves no host name and logs whatever it asks for."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium with its chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"),
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    browser.set_script_timeout(60)
    try:
        yield browser
    finally:
        browser.quit()


def open_page(browser, path, *, wide=1280, high=900, dark=False):
    """Open a file as a screen of that size shows it; its plots in view are drawn when this returns."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
    )
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": wide < 500},
    )
    browser.get(Path(path).absolute().as_uri())


def draw_all(browser):
    """Bring every plot into view, one after the other, until it is drawn."""
    browser.execute_async_script(
        """
        const done = arguments[0], places = [...document.querySelectorAll(".plot")];
        const next = () => {
          const open = places.find((place) => !place.querySelector("svg.main-svg"));
          if (!open) return done();
          open.scrollIntoView();
          requestAnimationFrame(next);
        };
        next();
        """
    )


def asked_for(browser):
    """The addresses of everything the page asked for since this was last called."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
