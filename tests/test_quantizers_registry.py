"""Families by name and by entry point: what is installed is found, what does not fit is named."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from ddq_search.config import load_config
from ddq_search.errors import ConfigError
from ddq_search.methods import quantizers_of
from ddq_search.quantizers import registry
from ddq_search.quantizers.conformance import check_family
from ddq_search.quantizers.registry import GROUP, Family, families, family
from ddq_search.quantizers.uniform import UniformActivations, UniformWeights

MINE = Family("mine", "ours", UniformWeights, UniformActivations)
TAKEN = Family("lsq", "ours", UniformWeights)
NOT_A_FAMILY = UniformWeights


@pytest.fixture
def installed(monkeypatch):
    """Installs entry points of this module's names for one test."""

    def install(*names):
        points = [EntryPoint(name.lower(), f"{__name__}:{name}", GROUP) for name in names]
        monkeypatch.setattr(registry, "entry_points", lambda group: points if group == GROUP else [])
        families.cache_clear()

    yield install
    families.cache_clear()


def test_a_family_of_the_users_is_found_configured_and_keeps_the_contract(installed):
    before = list(families())
    installed("MINE")
    assert list(families()) == [*before, "mine"]
    assert family("mine") is MINE
    settings = {"search.weight_quantizers": ["mine"], "search.activation_quantizers": ["mine"]}
    quantizer = quantizers_of(load_config(None, settings)).for_weights((2, 4), 3)
    assert type(quantizer) is UniformWeights
    check_family(family("mine"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MISSING", r"'missing' \(.*test_quantizers_registry:MISSING\) cannot be loaded: .*MISSING"),
        ("NOT_A_FAMILY", r"NOT_A_FAMILY of quantizer family 'not_a_family' is a ABCMeta, no Family"),
        ("TAKEN", r":TAKEN: there is a quantizer family 'lsq' already; rename yours"),
    ],
)
def test_what_cannot_be_used_is_named(installed, name, message):
    installed(name)
    with pytest.raises(ConfigError, match=message):
        families()


def test_a_name_that_is_nearly_right_gets_a_hint():
    with pytest.raises(ConfigError, match="unknown quantizer family 'power-of-to', did you mean 'power-of-two'"):
        family("power-of-to")
    with pytest.raises(ConfigError, match="unknown quantizer family 'zzz'; known: uniform, averaged"):
        family("zzz")
