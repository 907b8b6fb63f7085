"""What the times of a fitted runtime are made of: a sum of coefficients times counts, none negative.

    time of an operation = call + Σ coefficient x count

``moved`` pays for every element read or written by any operation; ``weight`` for every weight once per inference;
``product`` for multiply-accumulates in whole tiles of the micro-kernel (staircases); ``columns`` for gathering windows.
A form lists which coefficient multiplies which terms in which layer class; the same lists make the kernels of a
profile, so a fit and the profile written from it predict the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from ddq_search.layer_shape import LAYER_CLASSES, LayerClass, LayerShape
from hardware_models.engine import ElementCost, Engine, Figure, Kernel, Rate
from hardware_models.executions import Execution
from hardware_models.fitting import Array
from hardware_models.layers import PRICED, elements_read
from hardware_models.networks import load_network
from hardware_models.terms import TERMS

MOVED, CALL = "moved", "call"
_FREE = ("input", "output", "reshape")


@dataclass(frozen=True, eq=False)
class Form:
    """Which coefficient multiplies which terms.

    Attributes:
        name: of the runtime.
        coefficients: names; values are milliseconds per count in fits, nanoseconds in profiles.
        terms: layer class → term → coefficient that multiplies it.
        tile_pixels: output positions per tile of the micro-kernel.
        tile_channels: output channels per tile.
        k_multiple: K per step.
    """

    name: str
    coefficients: tuple[str, ...]
    terms: Mapping[LayerClass, Mapping[str, str]]
    tile_pixels: int = 4
    tile_channels: int = 8
    k_multiple: int = 4
    weight_bits: int = 8
    activation_bits: int = 8
    block: None = None

    @cache  # noqa: B019 (forms are constants of this module)
    def counts(self, network: str) -> Array:
        """Returns the count that each coefficient multiplies in one inference of a network."""
        total = dict.fromkeys(self.coefficients, 0.0)
        for execution in load_network(network):
            for coefficient, count in self._counts(execution).items():
                total[coefficient] += count
        return np.array([total[name] for name in self.coefficients])

    def design(self, networks: Sequence[str]) -> Array:
        """Returns the counts of several networks, one per row."""
        return np.array([self.counts(name) for name in networks])

    def engine(self, values: Array, source: str, call_source: str) -> Engine:
        """Returns an engine with these coefficients, given in milliseconds per count."""
        by_name = dict(zip(self.coefficients, map(_nanoseconds, values), strict=True))
        kernels = [
            Kernel(
                name=f"{layer_class}_s8",
                classes=(layer_class,),
                weight_bits=8,
                activation_bits=8,
                tile_pixels=self.tile_pixels,
                tile_channels=self.tile_channels,
                k_multiple=self.k_multiple,
                terms={term: by_name[coefficient] for term, coefficient in self.terms[layer_class].items()},
                kind="published",
                source=source,
            )
            for layer_class in LAYER_CLASSES
        ]
        return Engine(
            unit="nanoseconds",
            cycles_per_unit=Rate(value=1.0, kind="published", source="coefficients are nanoseconds"),
            combine="sum",
            call=Figure(value=by_name[CALL], kind="published", source=call_source),
            kernels=tuple(kernels),
        )

    def operations(self, values: Array, source: str) -> dict[str, ElementCost]:
        """Returns the costs of operations without weights: every element moved costs the same."""
        moved = _nanoseconds(values[self.coefficients.index(MOVED)])
        free = Figure(value=0.0, kind="static", source="an alias, or written by the application: no code runs")
        each = Figure(value=moved, kind="published", source=source)
        return {
            kind: ElementCost(per_read=free, per_output=free)
            if kind in _FREE
            else ElementCost(per_read=each, per_output=each, packed=kind in ("concat", "slice"))
            for kind in sorted(PRICED)
        }

    def _counts(self, execution: Execution) -> dict[str, float]:
        found = {CALL: 1.0}
        if isinstance(execution.work, LayerShape):
            for term, coefficient in self.terms[execution.work.layer_class].items():
                found[coefficient] = found.get(coefficient, 0.0) + TERMS[term](execution.work, self)
        else:
            found[MOVED] = float(elements_read(execution.work) + execution.work.output_elements)
        return found


def _nanoseconds(milliseconds: float) -> float:
    """Rounded to what a profile states."""
    return float(f"{1e6 * milliseconds:.4g}")


_IN_OUT = {"inputs": MOVED, "outputs": MOVED}
_PRODUCT = {"padded_macs": "product", "weights": "weight", **_IN_OUT}
_WINDOWS = {**_PRODUCT, "columns": "columns"}

PHONE = Form(
    "TFLite",
    ("product", "columns", "depthwise", MOVED, "weight", CALL),
    {
        "pointwise": _PRODUCT,
        "conv": _WINDOWS,
        "grouped": _WINDOWS,
        "depthwise": {"macs": "depthwise", **_IN_OUT},
        "linear": {"weights": "weight"},
    },
)
"""TFLite: windows are gathered into columns, then multiplied in tiles of 4 x 8 (gemmlowp, ruy)."""

INDIRECT = Form(
    "XNNPACK",
    ("product", "depthwise", MOVED, "weight", CALL),
    {
        "pointwise": _PRODUCT,
        "conv": _PRODUCT,
        "grouped": _PRODUCT,
        "depthwise": {"macs": "depthwise", **_IN_OUT},
        "linear": {"weights": "weight"},
    },
)
"""XNNPACK: indirect convolution (arXiv:1907.02129), no columns; tiles of 4 x 8."""

NCNN = Form(
    "ncnn",
    ("product", "window product", "columns", "depthwise", MOVED, "weight", "linear", CALL),
    {
        "pointwise": _PRODUCT,
        "conv": {"padded_macs": "window product", "columns": "columns", "weights": "weight", **_IN_OUT},
        "grouped": {"padded_macs": "window product", "columns": "columns", "weights": "weight", **_IN_OUT},
        "depthwise": {"macs": "depthwise", **_IN_OUT},
        "linear": {"weights": "linear"},
    },
    tile_channels=4,
    k_multiple=8,
)
"""ncnn: products of windows have kernels of their own, fully connected layers stay in floating point."""
