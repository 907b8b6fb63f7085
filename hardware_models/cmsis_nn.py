"""Closed forms of the instructions that CMSIS-NN executes, fitted to kernels counted in bit-exact emulation.

A form names the counts that a kernel's loops repeat; non-negative least squares gives their coefficients. The forms of
the DSP extension (Cortex-M4, M7, M33) follow its loops: pairs of 16-bit products over columns of widened codes, copied
piece by piece (one per window row for int8 weights, one per window position inside the image for int4); pointwise
layers sum their weights in every matrix product, and a strided one calls a product per output row; depthwise windows
skip the border. Helium (Cortex-M55) multiplies 16 codes at once, so K counts in steps of 16, and its fully connected
kernels compute 4 rows at a time.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ddq_search.layer_shape import LayerClass, LayerShape
from hardware_models.fitting import Array, fit_relative, leave_one_out
from hardware_models.pricing import Pricer
from hardware_models.profile import DeviceProfile
from hardware_models.published.check import Check, Point
from hardware_models.terms import counts, work

MEASUREMENTS = Path(__file__).parent / "measurements"
ELEMENTWISE = {"ADD": "add", "AVERAGE_POOL_2D": "avg_pool2d", "RESHAPE": "reshape"}
"""Operation of the counts → kind of ours; SOFTMAX has none."""
_WINDOWS = {1: (1, 1), 9: (3, 3), 40: (10, 4)}
"""Window of a layer by its number of positions, in the networks counted."""
_ISOLATED = {"dw_48x48_16": LayerShape("depthwise", (48, 48, 16), (48, 48, 16), (3, 3), padding=(1, 1), groups=16)}
"""Layers of ``cmsis_nn_insn.csv`` that the networks lack."""


@dataclass(frozen=True)
class CountedLayer:
    """A layer whose instructions were counted.

    Attributes:
        name: where it comes from: network and index of the operation, or the case.
        shape: its geometry.
        weight_bits: 8 or 4.
        instructions: executed by one call.
        scratch_bytes: buffer that the library asked for.
    """

    name: str
    shape: LayerShape
    weight_bits: int
    instructions: float
    scratch_bytes: int


@dataclass(frozen=True)
class Form:
    """What one kernel's instructions are made of; has the attributes of a kernel that terms read.

    Attributes:
        name: the kernel's name in profiles.
        layer_class: class of layers it executes.
        weight_bits: 8 or 4.
        terms: of `hardware_models.terms.TERMS`.
        tile_channels: rows of the weight matrix computed together.
        k_multiple: K per step.
        scratch: bytes per term of `hardware_models.terms.SCRATCH_TERMS`.
        scratch_source: how those bytes were found.
    """

    name: str
    layer_class: LayerClass
    weight_bits: int
    terms: tuple[str, ...]
    tile_channels: int = 1
    k_multiple: int = 1
    scratch: Mapping[str, float] = field(default_factory=dict)
    scratch_source: str = ""
    activation_bits: int = 8
    tile_pixels: int = 1
    block: None = None


_COLUMNS = "two columns of int16"
DSP = (
    Form("conv_s8", "conv", 8, ("padded_macs", "outputs", "columns", "runs"), k_multiple=4, scratch={"row": 4},
         scratch_source=f"{_COLUMNS}, rows padded to 4 (K = 27 needs 112 bytes)"),
    Form("conv_s4", "conv", 4, ("macs", "outputs", "columns", "inside_taps"), scratch={"row": 4},
         scratch_source=f"{_COLUMNS} (K = 27 needs 108 bytes)"),
    Form("pointwise_s8", "pointwise", 8, ("macs", "outputs", "weight_passes")),
    Form("pointwise_s4", "pointwise", 4, ("macs", "outputs", "weight_passes")),
    Form("depthwise_s8", "depthwise", 8, ("macs", "inside_macs", "pixels")),
    Form("depthwise_s4", "depthwise", 4, ("macs", "inside_macs", "pixels"), scratch={"channel_rows": 2},
         scratch_source="one int16 column per channel (3x3, 64 channels: 1152 bytes)"),
    Form("linear_s8", "linear", 8, ("macs", "outputs", "pixels")),
    Form("linear_s4", "linear", 4, ("macs", "outputs", "pixels", "tail_outputs"), tile_channels=4),
)  # fmt: skip
"""Kernels for the DSP extension; for a fully connected layer ``pixels`` counts its rows of input."""

HELIUM = (
    Form("conv_s8", "conv", 8, ("padded_macs", "outputs", "runs"), k_multiple=16, scratch={"row": 4},
         scratch_source="four columns of int8, rows padded to 16 (K = 27 needs 128 bytes)"),
    Form("conv_s4", "conv", 4, ("macs", "outputs", "runs", "tail_macs"), k_multiple=16, scratch={"row": 4},
         scratch_source="four columns of int8, rows padded to 16 (K = 27 needs 128 bytes)"),
    Form("pointwise_s8", "pointwise", 8, ("padded_macs", "outputs", "weight_passes"), k_multiple=16),
    Form("pointwise_s4", "pointwise", 4, ("macs", "outputs", "weight_passes")),
    Form("depthwise_s8", "depthwise", 8, ("macs", "pixels", "weights"), scratch={"row": 496},
         scratch_source="four columns of 124 channels, 4464 bytes for every 3x3 layer counted"),
    Form("depthwise_s4", "depthwise", 4, ("macs", "pixels", "weights"), scratch={"row": 496},
         scratch_source="four columns of 124 channels, 4464 bytes for every 3x3 layer counted"),
    Form("linear_s8", "linear", 8, ("pixels", "tiles", "steps"), tile_channels=4, k_multiple=16,
         scratch={"channels": 4}, scratch_source="one int32 sum per row (128 rows: 512 bytes)"),
    Form("linear_s4", "linear", 4, ("pixels", "tiles", "steps"), tile_channels=4, k_multiple=16),
)  # fmt: skip
"""Kernels for Helium."""

DSP_BAR_PCT, HELIUM_BAR_PCT = 7.0, 12.0
"""Mean error asked of a kernel's closed form on layers it was not fitted to."""

FORMS = {"M4": DSP, "M7": DSP, "M33": DSP, "M55": HELIUM}
"""Core as the counts name it → its kernels."""


@dataclass(frozen=True)
class FittedForm:
    """A form with its coefficients and how well they predict layers they were not fitted to.

    Attributes:
        form: the form.
        coefficients: instructions per count, in the order of ``form.terms``.
        layers: the distinct layers fitted.
        held_out: their relative errors, each predicted by a fit to the others.
    """

    form: Form
    coefficients: tuple[float, ...]
    layers: tuple[CountedLayer, ...]
    held_out: Array

    @property
    def error_pct(self) -> float:
        """Mean absolute percentage error on held-out layers."""
        return float(100 * np.abs(self.held_out).mean())

    @property
    def worst_pct(self) -> float:
        """Largest absolute percentage error on a held-out layer."""
        return float(100 * np.abs(self.held_out).max())


def fit_form(core: str, form: Form) -> FittedForm:
    """Fits a form to the layers counted on a core; leave-one-out over *distinct* layers."""
    layers = tuple(
        layer
        for layer in counted_layers(core)
        if (layer.shape.layer_class, layer.weight_bits) == (form.layer_class, form.weight_bits)
    )
    table = np.array([[counts(form.terms, layer.shape, form)[term] for term in form.terms] for layer in layers])
    target = np.array([layer.instructions for layer in layers])
    coefficients = tuple(float(value) for value in fit_relative(table, target))
    return FittedForm(form, coefficients, layers, leave_one_out(table, target))


def closed_form_checks(profile: DeviceProfile) -> list[Check]:
    """Returns a check per kernel of a CMSIS-NN profile: every counted layer predicted from the others.

    Empty for profiles of other runtimes.
    """
    core = profile.core.removeprefix("Cortex-")
    result = []
    for form in FORMS.get(core, ()) if profile.runtime_key == "cmsis-nn" else ():
        fitted = fit_form(core, form)
        points = tuple(
            Point(profile.core, layer.name, layer.instructions, layer.instructions * (1 + float(error)))
            for layer, error in zip(fitted.layers, fitted.held_out, strict=True)
        )
        what = f"instructions of {form.layer_class} layers, {form.weight_bits}-bit weights"
        split = "leave one distinct layer out"
        bar_pct = HELIUM_BAR_PCT if FORMS[core] is HELIUM else DSP_BAR_PCT
        result.append(Check(profile.name, what, split, "instructions", points, bar_pct, (profile.name,)))
    return result


def counted_layers(core: str) -> list[CountedLayer]:
    """Returns the distinct weighted layers counted on a core, both weight widths.

    Networks repeat layers; a repetition would let a held-out layer be predicted from itself, so each is kept once.
    """
    found: dict[tuple[LayerShape, int], CountedLayer] = {}
    for row in _read("mlperf_tiny_layers_insn.csv"):
        if row["core"] == core and int(row["macs"]):
            shape, bits = network_layer(row), int(row["w_bits"])
            name = f"{row['model']} {row['op_index']}"
            found.setdefault((shape, bits), _counted(name, shape, bits, row))
    for row in _read("cmsis_nn_insn.csv"):
        if row["core"] == core and row["kernel_case"] in _ISOLATED:
            shape, bits = _ISOLATED[row["kernel_case"]], int(row["w_bits"])
            found.setdefault((shape, bits), _counted(row["kernel_case"], shape, bits, row))
    return list(found.values())


def network_layer(row: Mapping[str, str]) -> LayerShape:
    """Returns the geometry of a weighted row of ``mlperf_tiny_layers_insn.csv`` (channel-last, "same" padding)."""
    inputs, outputs = _sizes(row["in_shape"]), _sizes(row["out_shape"])
    length = int(row["macs"]) // math.prod(outputs)
    if row["op"] == "FULLY_CONNECTED":
        return LayerShape("linear", (1, 1, length), (1, 1, outputs[-1]))
    source, target = (inputs[1], inputs[2], inputs[3]), (outputs[1], outputs[2], outputs[3])
    depthwise = row["op"] == "DEPTHWISE_CONV_2D"
    window = _WINDOWS[length if depthwise else length // source[2]]
    stride = (round(source[0] / target[0]), round(source[1] / target[1]))
    padding = (_before(source, target, window, stride, 0), _before(source, target, window, stride, 1))
    layer_class: LayerClass = "depthwise" if depthwise else ("pointwise" if window == (1, 1) else "conv")
    groups = source[2] if depthwise else 1
    return LayerShape(layer_class, source, target, window, stride, padding, groups=groups)


def _before(
    source: tuple[int, ...], target: tuple[int, ...], window: tuple[int, int], stride: tuple[int, int], axis: int
) -> int:
    """Padding before the image where its total is shared as TensorFlow's "same" does."""
    return max((target[axis] - 1) * stride[axis] + window[axis] - source[axis], 0) // 2


def _counted(name: str, shape: LayerShape, bits: int, row: Mapping[str, str]) -> CountedLayer:
    assert shape.macs == int(row["macs"]), f"{name}: {shape} has {shape.macs} products, counted {row['macs']}"
    return CountedLayer(name, shape, bits, float(row["instructions"]), int(row["scratch_bytes"]))


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x"))


def _read(name: str) -> list[dict[str, str]]:
    with (MEASUREMENTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def network_instructions(profile: DeviceProfile, core: str, network: str) -> float:
    """Returns the instructions that a profile predicts for one 8-bit MLPerf Tiny network (ic, kws, vww, ad)."""
    pricer, total = Pricer(profile.engine, 1.0), 0.0
    for row in _read("mlperf_tiny_layers_insn.csv"):
        if (row["core"], row["model"], row["w_bits"]) != (core, network, "8"):
            continue
        if int(row["macs"]):
            shape = network_layer(row)
            kernel = pricer.kernel_of(f"{network} {row['op_index']}", shape, 8, 8)
            total += work(kernel.terms, shape, kernel)
        elif row["op"] in ELEMENTWISE:
            cost = profile.operations[ELEMENTWISE[row["op"]]]
            total += cost.per_read.value * math.prod(_sizes(row["in_shape"]))
            total += cost.per_output.value * math.prod(_sizes(row["out_shape"]))
        else:
            total += float(row["instructions"])  # SOFTMAX: not an operation of ours
    return total


def network_weight_bytes(network: str) -> int:
    """Returns the bytes of the 8-bit weights of an MLPerf Tiny network."""
    rows = _read("mlperf_tiny_layers_insn.csv")
    return sum(int(r["weight_bytes"]) for r in rows if (r["core"], r["model"], r["w_bits"]) == ("M4", network, "8"))
