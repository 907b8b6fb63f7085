"""The page as a file: self-contained, small enough, and every foreign name only text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from ddq_search.errors import RunError
from reports.compare import build_comparison
from reports.page import ALPHABET, build_report
from reports.record import load_run
from tests.recorded_run import LAYERS, POLICIES, write_run

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</script><b>bold</b>",
    "it's ünïcödé ✓ \u2028 日本",
    "0",
)
MEBIBYTE = 2**20


class Elements(HTMLParser):
    """Collects the elements of a page and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def own_text(page: Path) -> str:
    """Returns the page without plotly's script."""
    html = page.read_text(encoding="utf-8")
    assert html.count(get_plotlyjs()) == 1
    return html.replace(get_plotlyjs(), "")


def embedded(text: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data: dict[str, object] = json.loads(found.group(1))
    return data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_report(write_run(tmp_path_factory.mktemp("runs") / "first"))


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rename = dict(zip(LAYERS, HOSTILE, strict=True)) | {"p03": "<b>p&amp;03</b>", "u8": "u\"8'"}
    run = tmp_path_factory.mktemp("runs") / "<i>run"
    return write_run(run, model=HOSTILE[0], device=HOSTILE[1], calibration=HOSTILE[2], rename=rename)


def test_page_is_one_file_under_8_mb_without_requests(page: Path) -> None:
    assert page.name == "report.html"
    assert page.stat().st_size < 8_000_000
    text = own_text(page)
    assert "http://" not in text
    assert "https://" not in text
    assert not re.search(r"\bfetch\(|XMLHttpRequest|url\(|@import", text)
    elements = Elements()
    elements.feed(text)
    loads = [(tag, attrs[key]) for tag, attrs in elements.found for key in ("src", "href", "srcset") if key in attrs]
    assert loads == [("link", "data:,")]
    assert "default-src 'none'" in text


def test_numbers_on_the_page_equal_the_runs(page: Path) -> None:
    data = embedded(own_text(page))
    record = load_run(page.parent)
    points = {point["name"]: point for point in data["points"]}  # type: ignore[attr-defined]
    for written in record.front["points"]:
        for key in ("val_loss", "val_score", "test_score", "latency_s", "flash_bytes", "peak_ram_bytes"):
            assert points[written["name"]][key] == written[key]
        for role in ("weights", "activations"):
            part = data["policies"][role]  # type: ignore[index]
            row = [ALPHABET.index(character) for character in part["bits"][written["name"]]]
            assert dict(zip(part["names"], row, strict=True)) == written[role]
    layers = data["layers"]
    place = data["order"].index("p03")  # type: ignore[attr-defined]
    column = layers["columns"]["flash_bytes"]  # type: ignore[index]
    shipped = [
        values[ALPHABET.index(codes[place])] for codes, values in zip(column["codes"], column["values"], strict=True)
    ]
    written = [row["flash_bytes"] / 1024 for row in record.front["points"][3]["operations"]]
    assert shipped == pytest.approx(written, rel=1e-5)


def test_uncalibrated_latency_says_so_everywhere(page: Path) -> None:
    text = own_text(page)
    assert len(re.findall(r"latency, ms(?! \(uncalibrated\)|\\u003cbr\\u003e\(uncalibrated\))", text)) == 0
    assert len(re.findall(r"\d ms(?! \(uncalibrated\))", re.sub(r"budget [\d.]+ ms", "", text))) == 0


@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_hostile_names_are_only_text(hostile_run: Path, kind: str, tmp_path: Path) -> None:
    if kind == "report":
        page = build_report(hostile_run)
    else:
        page = build_comparison([hostile_run, write_run(tmp_path / "other")], tmp_path / "compare.html")
    text = own_text(page)
    elements = Elements()
    elements.feed(text)
    tags = [tag for tag, _ in elements.found]
    assert tags.count("script") == 3
    assert not {"img", "b", "i" if kind == "comparison" else "img"} & set(tags)
    assert not any(key.startswith("on") for _, attrs in elements.found for key in attrs)
    data = embedded(text)
    assert HOSTILE[2] in json.dumps(data)
    assert "alert(1)</script>" not in text
    if kind == "report":
        drawn = data["figures"]["bits"]["data"][0]["y"]  # type: ignore[index]
        assert "&lt;/script&gt;&lt;b&gt;bold&lt;/b&gt;" in drawn
        assert "0" in drawn


def test_a_large_run_stays_under_8_mb(tmp_path: Path) -> None:
    row = POLICIES[3]
    many = [(f"p{i:03d}", *row[1:4], 0.26 + i * 1e-4, 94.25 - i * 1e-3) for i in range(300)]
    assert build_report(write_run(tmp_path / "big", policies=[*many, *POLICIES[-3:]])).stat().st_size < 8_000_000


def test_a_page_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
    with pytest.raises(RunError, match="cannot be written"):
        build_comparison(runs, tmp_path / "missing" / "compare.html")
    with pytest.raises(RunError, match="at least two runs"):
        build_comparison(runs[:1], tmp_path / "compare.html")
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_run_without_history_budgets_or_baselines_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "bare", policies=POLICIES[:2])
    front = json.loads((run / "front.json").read_text())
    front |= {"budgets": {}, "float": {}}
    (run / "front.json").write_text(json.dumps(front))
    (run / "history.jsonl").write_text("")
    (run / "export" / "best" / "verification.json").unlink()
    text = own_text(build_report(run))
    assert "no uniform baseline" in text
    assert "No policy has been exported" in text
