"""Every method, family, option and accounting of papers has its place in the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from pydoc import locate
from typing import get_args

import pytest

from ddq_search.config import QuantizerConfig
from ddq_search.method_names import Method
from ddq_search.quantizers.registry import families
from hardware_models.exact_widths import PAPERS

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture(scope="module")
def text():
    return "".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("methods*.md")))


def test_everything_with_a_name_is_documented(text):
    names = [*get_args(Method), *families(), *QuantizerConfig.model_fields, *PAPERS]
    names += ["search.gates", "search.constraint", "search.coldest", "search.mode", "search.weight_quantizers"]
    missing = [name for name in names if f"`{name}`" not in text and f"`quantizers.{name}`" not in text]
    assert not missing


@pytest.mark.parametrize("paper", ["2004.05795", "2007.02017", "2005.07093", "2404.08010"])
def test_every_relaxed_method_has_its_paper_and_its_symbols(paper):
    pages = (DOCS / "methods-relaxed.md").read_text(encoding="utf-8").split("\n## ")
    (section,) = (page for page in pages if f"(arXiv {paper})" in page)
    assert "`--method " in section
    assert "| symbol | name in the code | whose |" in section


def test_names_in_the_code_are_in_the_code():
    page = (DOCS / "methods-relaxed.md").read_text(encoding="utf-8")
    modules = r"quantizers\.[a-z_]+|relaxed|mixture_training|stages|cost|feasibility|supernet"
    names = re.findall(rf"`((?:{modules})\.\w+)", page)
    assert len(names) > 15
    assert not [name for name in names if locate(f"ddq_search.{name}") is None]


def test_every_method_leads_to_its_page():
    overview = (DOCS / "methods.md").read_text(encoding="utf-8")
    for name in get_args(Method):
        row = next(line for line in overview.splitlines() if line.startswith("|") and f"`{name}`" in line)
        page = row.partition("](")[2].partition(")")[0]
        found = (DOCS / page).read_text(encoding="utf-8")
        assert f"`{name}`" in found or f"--method {name}" in found or page == f"methods-{name}.md", name
