"""Pages in headless Chromium: nothing fails, nothing leaves, everything fits and can be reached."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pages import HOSTILE, audit_folder, edited_folder

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, of the test extra")

from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

from nullspace_unlearn.report.page import write_page  # noqa: E402

AXE = "NSU_AXE"
"""Names the environment variable that says where axe.min.js lies; .ci/run fetches it."""


@dataclass
class Browser:
    """A window whose size, theme and traffic are known."""

    driver: Any

    def open(self, page: Path, width: int = 1200, theme: str = "light") -> list[str]:
        """Open a page; what it asked for is returned, less itself."""
        self.driver.get("about:blank")
        self.driver.get_log("performance"), self.driver.get_log("browser")
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.cdp("Emulation.setEmulatedMedia", media="screen", features=features)
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=800,
                 deviceScaleFactor=1, mobile=width < 500)  # fmt: skip
        self.driver.get(page.as_uri())
        said = (json.loads(entry["message"])["message"] for entry in
                self.driver.get_log("performance"))  # fmt: skip
        asked = [one["params"]["request"]["url"] for one in said
                 if one["method"] == "Network.requestWillBeSent"]  # fmt: skip
        return [url for url in asked if url != page.as_uri()]

    def cdp(self, command: str, **parameters: Any) -> Any:
        """A command of the browser's own protocol."""
        return self.driver.execute_cdp_cmd(command, parameters)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    @property
    def errors(self) -> list[str]:
        """What the console says."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    @property
    def overflow(self) -> int:
        """By how many pixels the page is wider than the window, everything opened."""
        self.run("for (const d of document.querySelectorAll('details')) d.open = true")
        return self.run("return document.documentElement.scrollWidth - innerWidth")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if absent := [name for name, path in found.items() if path is None]:
        pytest.skip(f"{' and '.join(absent)} not installed (Debian: chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = found["chromium"]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--disable-background-networking"):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(found["chromedriver"]))
    driver.set_page_load_timeout(60)
    yield Browser(driver)
    driver.quit()


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """An edit of hostile names and its audit: the edit's report, and the page of both."""
    root = tmp_path_factory.mktemp("page")
    report = edited_folder(root / "<b>out", HOSTILE, ("photo", "<b>sketch</b>", "ص" * 300))
    audit_folder(root / "audit", HOSTILE[1] + "b" * 10_000)
    write_page([root / "<b>out", root / "audit"], root / "page.html")
    return report, root / "page.html"


def test_nothing_fails_and_nothing_leaves_the_page(browser: Browser, page: Any, tmp_path: Path):
    _, path = page
    asked = browser.open(path)
    assert browser.errors == [] and [url for url in asked if not url.startswith("data:")] == []
    assert browser.run("return document.title").startswith("Forgetting car in photo")
    control = tmp_path / "control.html"
    control.write_text("<title>a</title><img src='absent.png'><script>throw Error('no')</script>")
    assert any(url.endswith("absent.png") for url in browser.open(control))
    assert any("Uncaught Error: no" in error for error in browser.errors)


def test_the_policy_lets_no_other_script_run(browser: Browser, page: Any, tmp_path: Path):
    text = page[1].read_text()
    assert text.count("</main>") == 1
    planted = tmp_path / "planted.html"
    planted.write_text(text.replace("</main>", "<script>document.title = 'run'</script></main>"))
    browser.open(planted)
    assert browser.run("return document.title") != "run"
    assert any("Content Security Policy" in error for error in browser.errors)


def test_cells_hold_the_numbers_of_the_run(browser: Browser, page: Any):
    report, path = page
    browser.open(path)
    shown = browser.run("""return [...document.querySelector('table.heat').tBodies[0].rows].map(
        row => [...row.querySelectorAll('td')].map(cell =>
            cell.querySelector('data') ? Number(cell.querySelector('data').value) : null))""")
    both = zip(report["before"]["accuracy"], report["after"]["accuracy"], strict=True)
    for row, (was, now) in zip(shown, both, strict=True):
        change = [None if b is None else b - a for a, b in zip(was, now, strict=True)]
        assert row == [*was, *now, *change]
    gone = browser.run("return document.querySelectorAll('table.heat td.gone').length")
    assert gone == 3 * sum(map(sum, report["forgotten"])) == 3


@pytest.mark.parametrize("width", [360, 1200])
def test_hostile_names_are_laid_out(browser: Browser, page: Any, width: int):
    browser.open(page[1], width)
    assert browser.overflow <= 0
    names = browser.run("""return [...document.querySelectorAll('table.heat tbody th')].map(
        one => one.textContent)""")
    assert names[0] == "car" and names[1] == HOSTILE[1] and len(names) == len(HOSTILE)
    widest = browser.run("""return Math.max(...[...document.querySelectorAll('table.heat th')].map(
        one => one.getBoundingClientRect().width))""")
    assert widest < 0.75 * width
    if width == 360:  # control: a page of one long word is wider
        browser.run("document.body.style.overflowWrap = 'normal'; document.querySelector('h1')"
                    ".textContent = 'a'.repeat(300)")  # fmt: skip
        assert browser.overflow > 0


def test_cells_are_read_out_by_the_keyboard(browser: Browser, page: Any):
    report, path = page
    browser.open(path)
    stops = browser.run("return document.querySelectorAll('table.heat td[tabindex=\"0\"]').length")
    assert stops == 1  # one stop of the tab key, whatever the number of cells
    cell = browser.driver.find_element("css selector", "table.heat td[tabindex='0']")
    readout = browser.driver.find_element("css selector", ".readout")
    assert "before" not in readout.text
    cell.send_keys(Keys.ARROW_RIGHT)
    cell = browser.driver.switch_to.active_element
    cell.send_keys(Keys.ARROW_DOWN)
    was, now = (report[which]["accuracy"][1][1] for which in ("before", "after"))
    assert f"before {was:.2f}, after {now:.2f}" in readout.text and "3 images" in readout.text
    assert readout.text.startswith(HOSTILE[1]) and "to be forgotten" not in readout.text
    browser.driver.switch_to.active_element.send_keys(Keys.ARROW_UP)
    browser.driver.switch_to.active_element.send_keys(Keys.HOME)
    assert "to be forgotten" in readout.text


def test_a_thousand_classes_stay_usable(browser: Browser, tmp_path: Path):
    classes = [f"class {i}" for i in range(1000)]
    edited_folder(tmp_path / "out", classes, ("photo", "sketch"), each=1, draws=0)
    write_page([tmp_path / "out"], tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 3e6
    browser.open(tmp_path / "page.html", 360)
    first, whole = browser.driver.find_elements("css selector", "table.heat")
    rows = [len(one.find_elements("css selector", "tbody tr")) for one in (first, whole)]
    assert rows == [24, 1000] and first.is_displayed() and not whole.is_displayed()
    assert first.find_element("css selector", "tbody th").text == "class 0"  # what was forgotten
    height = browser.run("return document.documentElement.scrollHeight")
    assert browser.overflow <= 0
    assert browser.run("return document.documentElement.scrollHeight") < height + 40_000
    box = "arguments[0].closest('.scroll')"
    browser.run(f"{box}.scrollTop = 9999; {box}.scrollLeft = 50", whole)
    top, head, corner, side = browser.run(
        f"""const box = {box}.getBoundingClientRect(), of = one => one.getBoundingClientRect();
        const rows = arguments[0].tHead.rows;
        return [box.top, of(rows[0].cells[1]).top, of(rows[1].cells[0]).left - box.left,
                of(arguments[0].tBodies[0].rows[500].cells[0]).left - box.left]""",
        whole,
    )  # fmt: skip
    assert abs(head - top) < 3 and abs(corner) < 3 and abs(side) < 3  # heads stay in sight


def violations(browser: Browser, axe: str) -> list[str]:
    browser.run(axe)
    found = browser.driver.execute_async_script(
        "const done = arguments[arguments.length - 1]; axe.run().then(done, e => done(String(e)))"
    )
    assert isinstance(found, dict), found
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found["violations"]]


@pytest.mark.parametrize(("theme", "width"), [("light", 1200), ("dark", 360)])
def test_the_accessibility_checker_finds_nothing(
    browser: Browser, page: Any, theme: str, width: int, tmp_path: Path
):
    file = os.environ.get(AXE, "")
    if not Path(file).is_file():
        pytest.skip(f"no axe-core: {AXE} says where axe.min.js lies")
    axe = Path(file).read_text(encoding="utf-8")
    browser.open(page[1], width, theme)
    assert browser.overflow <= 0  # and everything is open, to be checked
    assert violations(browser, axe) == []
    (tmp_path / "bad.html").write_text(
        "<html><img src='data:,'><p style='color:#999'>pale words</p></html>"
    )
    browser.open(tmp_path / "bad.html", width, theme)
    assert {"image-alt", "html-has-lang", "color-contrast"} <= {
        one.partition(":")[0] for one in violations(browser, axe)
    }


def test_both_themes_and_paper_have_colours_of_their_own(browser: Browser, page: Any):
    def colours() -> Sequence[str]:
        return browser.run("""return [document.body, document.querySelector('table.heat td')].map(
            one => getComputedStyle(one).backgroundColor)""")

    browser.open(page[1])
    light = colours()
    browser.open(page[1], theme="dark")
    dark = colours()
    assert all(one != other for one, other in zip(light, dark, strict=True))
    browser.cdp("Emulation.setEmulatedMedia", media="print", features=[])
    assert colours()[1] == light[1] and colours()[0] == "rgb(255, 255, 255)"
    folded = browser.run("""dispatchEvent(new Event('beforeprint'));
        const n = document.querySelectorAll('details:not([open]):not(.large)').length;
        dispatchEvent(new Event('afterprint'));
        return [n, document.querySelectorAll('details:not([open]):not(.large)').length > 0]""")
    assert folded == [0, True]
