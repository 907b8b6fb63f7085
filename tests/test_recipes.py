"""The shipped configurations are read by this version, and say whether anybody ran them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddq_search.config import load_config
from ddq_search.methods import quantizers_of

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted([*ROOT.glob("benchmarks/recipes/*.toml"), *ROOT.glob("benchmarks/*/*.toml")])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_configuration(path):
    config = load_config(path, {})
    assert quantizers_of(config).weights
    if path.parent.name == "recipes":
        header = path.read_text(encoding="utf-8").partition("seed")[0].lower()
        assert "tested" in header
