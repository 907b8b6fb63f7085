"""Quantizer families by name: our own, and the user's by entry point.

    [project.entry-points."ddq_search.quantizers"]
    mine = "my_package.quantizers:FAMILY"

Every family passes the same tests: `ddq_search.quantizers.conformance`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points

from ddq_search.errors import ConfigError
from ddq_search.quantizers.contract import ActivationQuantizer, WeightQuantizer

GROUP = "ddq_search.quantizers"
"""Group of the entry points."""

_MODULES = ("uniform", "levels", "calibrations", "multipoint", "lsq", "pact", "dorefa", "dq")
"""Modules of this package that define ``FAMILIES``."""


@dataclass(frozen=True)
class Family:
    """One algorithm of quantizing.

    Attributes:
        name: what the configuration calls it.
        source: the paper, or ``ours``; a few words on what is special.
        weights: called with ``(candidates, rows)``; None where the algorithm is for activations only.
        activations: called with ``(candidates, nonnegative)``; None where it is for weights only.
        codebook: weight codes are indices into int8 levels, which are stored with them.
        points: number of further points of multipoint weights (`ddq_search.discrete.Point`), each of the same bits; the
            option ``further_points``, where the family has it, is another number.
        uniform_activations: activations lie on an affine grid, so integer programs can run them.
        trained: steps or levels are learned; otherwise calibration alone sets them.
        options: class attributes of its quantizers that a configuration may set (`ddq_search.config.QuantizerConfig`);
            its quantizers are classes then.
        exceptions: laws of `ddq_search.quantizers.conformance` that do not hold, with the reason.
    """

    name: str
    source: str
    weights: Callable[[tuple[int, ...], int], WeightQuantizer] | None = None
    activations: Callable[[tuple[int, ...], bool], ActivationQuantizer] | None = None
    codebook: bool = False
    points: int = 0
    uniform_activations: bool = True
    trained: bool = True
    options: tuple[str, ...] = ()
    exceptions: Mapping[str, str] = field(default_factory=dict)


@cache
def families() -> dict[str, Family]:
    """Returns all families by name, the user's after ours.

    Raises:
        ConfigError: an entry point cannot be loaded, is no family, or takes a name that is there already.
    """
    found: dict[str, Family] = {}
    for module in _MODULES:
        for family in importlib.import_module(f"ddq_search.quantizers.{module}").FAMILIES:
            assert family.name not in found, family.name
            found[family.name] = family
    for point in entry_points(group=GROUP):
        try:
            loaded = point.load()
        except Exception as error:
            raise ConfigError(f"quantizer family {point.name!r} ({point.value}) cannot be loaded: {error}") from error
        if not isinstance(loaded, Family):
            raise ConfigError(
                f"{point.value} of quantizer family {point.name!r} is a {type(loaded).__name__}, no Family"
            )
        if loaded.name in found:
            raise ConfigError(f"{point.value}: there is a quantizer family {loaded.name!r} already; rename yours")
        found[loaded.name] = loaded
    return found


def family(name: str) -> Family:
    """Returns the family of that name.

    Raises:
        ConfigError: there is none.
    """
    known = families()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, 1)
    hint = f", did you mean {close[0]!r}?" if close else ";"
    raise ConfigError(f"unknown quantizer family {name!r}{hint} known: {', '.join(known)}")
