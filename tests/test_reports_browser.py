"""The page in a real browser, opened from disk: no console error, click, axes, table, dark mode, narrow screens."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reports.compare import build_comparison
from reports.page import build_report
from tests.recorded_run import LAYERS, write_run

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    rename = {name: f"{HOSTILE}{place}" for place, name in enumerate(LAYERS)} | {"p03": HOSTILE}
    runs = {
        "plain": write_run(folder / "plain"),
        "hostile": write_run(folder / "hostile", model=HOSTILE, device=HOSTILE, rename=rename),
    }
    pages = {name: build_report(run) for name, run in runs.items()}
    return pages | {"comparison": build_comparison(list(runs.values()), folder / "compare.html")}


def load(browser: Any, page: Path, width: int = 1280, scheme: str = "light") -> None:
    """Opens a page; fails on anything that the console says."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []


def names(browser: Any) -> list[str]:
    script = (
        "return [...document.querySelectorAll('#policies tbody tr')].filter(r => !r.hidden).map(r => r.dataset.name)"
    )
    listed: list[str] = browser.execute_script(script)
    return listed


def click_point(browser: Any, name: str) -> None:
    """Clicks a point of the front with the mouse, where the page draws it."""
    script = """
        const plot = document.getElementById("front");
        plot.scrollIntoView({ block: "center" });
        for (const trace of plot._fullData) {
            const place = (trace.customdata || []).indexOf(arguments[0]);
            if (place < 0) continue;
            const box = plot.getBoundingClientRect();
            const [x, y] = [plot._fullLayout.xaxis, plot._fullLayout.yaxis];
            return [box.left + x._offset + x.d2p(trace.x[place]), box.top + y._offset + y.d2p(trace.y[place])];
        }"""
    x, y = browser.execute_script(script, name)
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, "x": x, "y": y, **button})


def text(browser: Any, id_: str) -> str:
    said: str = browser.execute_script("return document.getElementById(arguments[0]).textContent", id_)
    return said


def test_clicking_a_point_shows_its_policy(browser: Any, runs: dict[str, Path]) -> None:
    load(browser, runs["plain"])
    assert text(browser, "shown-name") == "p03"
    click_point(browser, "p00")
    browser.execute_async_script("setTimeout(arguments[0], 400)")
    assert text(browser, "shown-name") == "p00"
    assert "1.797 KiB" in text(browser, "tiles")
    bars = browser.execute_script("return [...document.getElementById('bits').data[0].x]")
    assert bars == [8, 2, 2, 2, None, None, 8]
    ring = browser.execute_script("return document.getElementById('front').data[1].x[0]")
    assert ring == pytest.approx(0.1661, abs=1e-4)
    assert browser.get_log("browser") == []


def test_arrow_keys_step_through_the_policies(browser: Any, runs: dict[str, Path]) -> None:
    load(browser, runs["plain"])
    front = browser.find_element("id", "front")
    front.send_keys("\ue014")  # right arrow: the next slower policy
    assert text(browser, "shown-name") == "p05"
    front.send_keys("\ue012\ue012")
    assert text(browser, "shown-name") == "u4"


def test_axis_switch(browser: Any, runs: dict[str, Path]) -> None:
    load(browser, runs["plain"])
    script = """
        for (const [id, value] of [["cost", "flash_bytes"], ["quality", "val_loss"]]) {
            document.getElementById(id).value = value;
            document.getElementById(id).dispatchEvent(new Event("change"));
        }
        const plot = document.getElementById("front");
        return [plot.layout.xaxis.title.text, plot.layout.yaxis.title.text, plot.data[1].x[0], plot.data[1].y[0]];"""
    assert browser.execute_script(script) == ["flash, KiB", "validation loss (cross-entropy)", 3056 / 1024, 0.26]


def test_table_sorts_and_filters(browser: Any, runs: dict[str, Path]) -> None:
    load(browser, runs["plain"])
    header = browser.find_element("css selector", "th[data-key=flash_bytes] button")
    header.send_keys("\n")
    assert names(browser)[:3] == ["u2", "p00", "p01"]
    header.send_keys("\n")
    assert names(browser)[:3] == ["u8", "p05", "p03"]
    browser.find_element("id", "filter").send_keys("UNI")
    assert names(browser) == ["u8", "u4", "u2"]
    assert text(browser, "count") == "3 of 9 policies"
    browser.execute_script("document.getElementById('only-budget').click()")
    assert names(browser) == ["u4", "u2"]


def test_downloads_hold_the_visible_rows(browser: Any, runs: dict[str, Path]) -> None:
    load(browser, runs["plain"])
    script = """
        const saved = [];
        URL.createObjectURL = (blob) => { saved.push(blob); return "blob:none"; };
        HTMLAnchorElement.prototype.click = () => {};
        document.getElementById("only-front").click();
        document.getElementById("csv").click();
        document.getElementById("json").click();
        Promise.all(saved.map((blob) => blob.text())).then(arguments[0]);"""
    table, listed = browser.execute_async_script(script)
    assert table.splitlines()[0].startswith("name,origin,within_budgets,on_front,val_loss")
    assert len(table.splitlines()) == 1 + 5
    assert '"block.conv1": 4' in listed


def test_dark_mode_follows_the_system_and_the_button(browser: Any, runs: dict[str, Path]) -> None:
    load(browser, runs["plain"], scheme="dark")
    state = "return [document.documentElement.dataset.theme, document.getElementById('front').layout.font.color]"
    assert browser.execute_script(state) == ["dark", "#e6e8eb"]
    browser.find_element("id", "theme").click()
    assert browser.execute_script(state) == ["light", "#23262b"]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", ["plain", "hostile", "comparison"])
def test_no_sideways_scrolling_and_nothing_overlaps(browser: Any, runs: dict[str, Path], page: str, width: int) -> None:
    load(browser, runs[page], width)
    script = """
        const height = (e) => e.getBoundingClientRect().height;
        const small = [...document.querySelectorAll(".plot")].filter((p) => p.querySelector(".main-svg"))
            .filter((p) => height(p.querySelector(".main-svg")) > height(p) + 1);
        const wide = [...document.querySelectorAll("main *, header *")].filter((e) => !e.closest(".scroll, svg, .plot"))
            .filter((e) => e.getBoundingClientRect().right > innerWidth).map((e) => e.tagName + "#" + e.id);
        return [document.documentElement.scrollWidth <= innerWidth, wide, small.map((p) => p.id)];"""
    assert browser.execute_script(script) == [True, [], []]


@pytest.mark.parametrize("page", ["hostile", "comparison"])
def test_hostile_names_run_nothing(browser: Any, runs: dict[str, Path], page: str) -> None:
    load(browser, runs[page])
    assert browser.title != "broken"
    assert browser.execute_script("return document.images.length") == 0
    if page == "hostile":
        assert text(browser, "shown-name") == HOSTILE
        ticks = browser.execute_script(
            "return [...document.querySelectorAll('#bits .ytick text')].map((tick) => tick.textContent)"
        )
        assert "…" + f"{HOSTILE}0"[-25:] in ticks


def test_comparison_diff_and_limit(browser: Any, runs: dict[str, Path]) -> None:
    load(browser, runs["comparison"])
    assert "plain" in text(browser, "limit-rows")
    script = """
        const right = document.getElementById("right");
        right.value = "0";
        right.dispatchEvent(new Event("change"));
        const rows = [...document.querySelectorAll("#diff-rows tr")];
        return rows.map((row) => [...row.cells].map((cell) => cell.textContent));"""
    rows = browser.execute_script(script)
    assert ["block.conv1", "weights", "4", "2", "−2"] in rows
    assert text(browser, "diff-count") == "8 of 13 differ"
