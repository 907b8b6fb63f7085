"""The shipped configurations: read by this version, priced within their budgets, labelled truly as tested or not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ddq_search.cli.assembly import assemble, assemble_shape
from ddq_search.config import load_config
from ddq_search.cost import FLASH, PEAK_RAM
from ddq_search.methods import quantizers_of
from ddq_search.record import RunDirectory
from ddq_search.search import search

ROOT = Path(__file__).resolve().parent.parent
PAPERS = sorted(ROOT.glob("benchmarks/recipes/*.toml"))
RECIPES = [*PAPERS, *sorted(set(ROOT.glob("benchmarks/*/*.toml")) - set(PAPERS))]
SHAPES = {"cifar10": ("3x32x32", 10), "imagenet": ("3x224x224", 1000), "digits": ("1x8x8", 10)}
TESTED = {"resnet8-digits-ddq": 97.0, "resnet8-digits-dq": 97.0}
"""Recipe → validation accuracy in percent that it reaches at least; its header says what it reached."""


def header(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\nseed = ")[0]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_configuration(path):
    assert quantizers_of(load_config(path, {})).weights


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_recipe_of_a_paper_says_whether_it_was_run_and_how(path):
    text = header(path)
    assert bool(re.search(r"\bTested\b", text)) == (path.stem in TESTED)
    assert bool(re.search(r"\bUntested\b", text)) == (path.stem not in TESTED)
    assert f"--config benchmarks/recipes/{path.name}" in text


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_recipe_of_a_paper_is_priced_and_can_be_met(path):
    """Model, device, candidates and budgets fit together; no data are read."""
    if "torchvision:" in path.read_text(encoding="utf-8"):
        pytest.importorskip("torchvision")
    config = load_config(path, {})
    shape, classes = next(found for data, found in SHAPES.items() if data in path.stem)
    problem = assemble_shape(config, shape, classes)
    assert problem.budgets.keys() == {FLASH, PEAK_RAM}
    assert all(limit < problem.pricing.reference[cost] for cost, limit in problem.budgets.items())
    if path.stem == "resnet20-cifar10-dq":
        assert problem.budgets == {FLASH: 70 * 1024, PEAK_RAM: 8 * 1024}
        assert problem.pricing.reference[PEAK_RAM] == 16_384


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTED)
def test_what_is_labelled_tested_is_run_here(name, tmp_path):
    config = load_config(ROOT / "benchmarks" / "recipes" / f"{name}.toml", {"training.threads": 1})
    problem = assemble(config)
    front = search(problem, RunDirectory(tmp_path))
    point = next(point for point in front.points if point.policy.name == front.best)
    assert point.within_budgets
    assert point.validation.score >= TESTED[name]
    assert {bits for key, bits in point.policy.bits.items() if key.startswith("weights/")} <= set(range(2, 9))
