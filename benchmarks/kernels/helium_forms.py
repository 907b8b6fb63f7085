"""Closed forms of the instructions that the Helium kernels execute, fitted to their counts on an emulated Cortex-M55.

    python benchmarks/kernels/helium_forms.py            # coefficients and errors of every form
    python benchmarks/kernels/helium_forms.py --kernels  # the same as [[engine.kernels]] of a profile
    python benchmarks/kernels/helium_forms.py --count    # counts the further layers again

A form names what a kernel's loops repeat: tiles of three windows and two channels over steps of K, windows left over
with four channels at a time, gathering a window (by runs of bytes; codes of 4 and 2 bits are unpacked), blocks of 16
channels of a depthwise layer and the input columns they copy. Widths of inputs change how windows are gathered, not the
products, and widths of outputs add a cost per element: one fit per kernel covers all of them.

Networks have few small or lopsided layers, on which the fixed costs show: the fit also takes `FURTHER`.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cases import conv, depthwise, linear
from count import COLUMNS, row
from helium_terms import HELIUM_TERMS

from ddq_search.export.c.helium import KERNELS
from ddq_search.export.c.targets import TARGETS
from ddq_search.export.c.trials import Runner, Trial
from ddq_search.layer_shape import LayerClass, LayerShape
from hardware_models.fitting import Array, fit_relative, leave_one_out
from hardware_models.terms import TERMS

MEASUREMENTS = Path(__file__).resolve().parents[2] / "hardware_models" / "measurements"
COUNTS = MEASUREMENTS / "own_kernels_helium.csv"
"""Layers of `cases.py`, counted by `count.py`."""
MORE_COUNTS = MEASUREMENTS / "own_kernels_helium_more.csv"
"""Layers of `FURTHER`."""
CORE = "cortex-m55-clang"

FURTHER: Mapping[str, LayerShape] = {
    "conv_5x5_9x7_80_1": conv((9, 7), (80, 1), (5, 5)),
    "conv_3x3_5x5_128_4": conv((5, 5), (128, 4)),
    "conv_3x3s2_11x6_10_3": conv((11, 6), (10, 3), stride=2),
    "conv_3x3_4x4_8_64": conv((4, 4), (8, 64)),
    "conv_3x3_12x12_1_8": conv((12, 12), (1, 8)),
    "conv_4x4s2_9x9_6_20": conv((9, 9), (6, 20), (4, 4), stride=2),
    "conv_1x5_3x20_40_6": conv((3, 20), (40, 6), (1, 5)),
    "conv_3x3_2x2_64_64": conv((2, 2), (64, 64)),
    "conv_3x3d2_9x9_12_10": conv((9, 9), (12, 10), dilation=2),
    "pw_s2_5x24_96_16": conv((5, 24), (96, 16), (1, 1), stride=2),
    "pw_s2_8x8_16_3": conv((8, 8), (16, 3), (1, 1), stride=2),
    "pw_s2_7x7_33_40": conv((7, 7), (33, 40), (1, 1), stride=2),
    "pw_2x2_320_40": conv((2, 2), (320, 40), (1, 1)),
    "pw_1x1_200_30": conv((1, 1), (200, 30), (1, 1)),
    "pw_9x5_6_2": conv((9, 5), (6, 2), (1, 1)),
    "pw_5x4_50_7": conv((5, 4), (50, 7), (1, 1)),
    "grouped_2_6x6_16_24": conv((6, 6), (16, 24), groups=2),
    "grouped_4_9x5_24_8": conv((9, 5), (24, 8), groups=4),
    "grouped_3_5x5_9_12_1x1": conv((5, 5), (9, 12), (1, 1), groups=3),
    "grouped_2_4x4_64_4": conv((4, 4), (64, 4), groups=2),
    "dw_9x9_6": depthwise((9, 9), 6),
    "dw_4x5_37_s2": depthwise((4, 5), 37, stride=2),
    "dw_5x5_6x6_24": depthwise((6, 6), 24, kernel=5),
    "dw_2x2_48": depthwise((2, 2), 48),
    "dw_d2_9x9_16": conv((9, 9), (16, 16), groups=16, dilation=2),
    "fc_33_16": linear(33, 16),
    "fc_400_1": linear(400, 1),
    "fc_17_150": linear(17, 150),
    "fc_24_6_x5": linear(24, 6, positions=5),
    "fc_90_70_x2": linear(90, 70, positions=2),
}
"""Small and lopsided layers that networks seldom have."""


@dataclass(frozen=True)
class Form:
    """What the instructions of a kernel on some layers are made of.

    Attributes:
        name: of the form, for messages.
        kernel: the C function without its width of weights.
        executes: the layers it describes.
        products: terms that do not depend on the width of inputs.
        gathering: width of inputs → terms of bringing them into scratch.
        tile_pixels: windows per tile.
        tile_channels: channels per tile.
        k_multiple: width of weights → K per step.
    """

    name: str
    kernel: str
    executes: Callable[[LayerShape], bool]
    products: tuple[str, ...]
    gathering: Mapping[int, tuple[str, ...]]
    tile_pixels: int
    tile_channels: int
    k_multiple: Mapping[int, int]


@dataclass(frozen=True)
class Geometry:
    """The attributes of a kernel that terms read."""

    weight_bits: int
    activation_bits: int
    tile_pixels: int
    tile_channels: int
    k_multiple: int
    block: int | None = None


@dataclass(frozen=True)
class Count:
    """A counted call."""

    case: str
    kernel: str
    shape: LayerShape
    weight_bits: int
    input_bits: int
    output_bits: int
    instructions: int


PACKING = ("outputs", "stores")
"""Terms of packing outputs of 4 and 2 bits."""
_STEPS = {8: 16, 4: 32, 2: 64}
_MATRIX = (
    "once", "full_tiles", "full_steps", "full_halves", "rest_tiles", "rest_steps", "rest_halves", "passes", "moved",
)  # fmt: skip


def _dense(shape: LayerShape) -> bool:
    return shape.layer_class == "linear" or (shape.layer_class == "pointwise" and shape.stride == (1, 1))


FORMS = (
    Form(
        "dense", "ddq_helium_conv", _dense, _MATRIX,
        {8: ("columns",), 4: ("columns", "passes", "odd_runs"), 2: ("columns", "passes", "odd_runs")}, 3, 2, _STEPS,
    ),
    Form(
        "gathered", "ddq_helium_conv", lambda shape: shape.layer_class != "depthwise" and not _dense(shape), _MATRIX,
        {8: ("direct_windows", "direct_runs", "searched_windows", "searched_runs", "vectors"),
         4: ("windows", "runs", "vectors", "odd_runs"), 2: ("windows", "runs", "vectors", "odd_runs")}, 3, 2, _STEPS,
    ),
    Form(
        "depthwise", "ddq_helium_depthwise", lambda shape: shape.layer_class == "depthwise",
        ("channel_blocks", "tiles", "steps"),
        {8: ("window_rows", "window_columns"), 4: ("window_rows", "window_columns", "odd_columns"),
         2: ("window_rows", "window_columns", "odd_columns")}, 1, 16, dict.fromkeys((8, 4, 2), 1),
    ),
)  # fmt: skip


def read(path: Path) -> list[Count]:
    """Returns the counted calls of a file that `count.py` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [_count(line) for line in csv.DictReader(file)]


def _count(line: Mapping[str, str]) -> Count:
    number = {name: int(text) for name, text in line.items() if text.isdigit()}
    kernel, stride, dilation = ((number[f"{name}_h"], number[f"{name}_w"]) for name in ("kernel", "stride", "dilation"))
    source, output = ((number[f"{name}_h"], number[f"{name}_w"], number[f"{name}_c"]) for name in ("in", "out"))
    padding = number["pad_top"], number["pad_left"]
    kind = cast("LayerClass", line["layer_class"])
    shape = LayerShape(kind, source, output, kernel, stride, padding, dilation, number["groups"])
    weights, inputs, outputs = (number[f"{name}_bits"] for name in ("weight", "input", "output"))
    return Count(line["case"], line["kernel"], shape, weights, inputs, outputs, number["instructions"])


def columns(form: Form) -> list[tuple[str, int | None]]:
    """Returns the fitted columns: (term, width of inputs it is for) and (term, width of packed outputs)."""
    gathering = [(term, bits) for bits, terms in form.gathering.items() for term in terms]
    return [
        *((term, None) for term in form.products),
        *gathering,
        ("outputs", 4),
        ("outputs", 2),
        ("stores", 4),
        ("stores", 2),
    ]


def matrix(form: Form, counts: Sequence[Count]) -> Array:
    """Returns ``[calls, columns]`` counts."""
    result = np.zeros((len(counts), len(columns(form))))
    for index, count in enumerate(counts):
        kernel = Geometry(
            count.weight_bits,
            count.input_bits,
            form.tile_pixels,
            form.tile_channels,
            form.k_multiple[count.weight_bits],
        )
        for column, (term, bits) in enumerate(columns(form)):
            if bits in (None, count.output_bits if term in PACKING else count.input_bits):
                result[index, column] = (HELIUM_TERMS[term] if term in HELIUM_TERMS else TERMS[term])(
                    count.shape, kernel
                )
    return result


def counted_by(form: Form, weight_bits: int, counts: Sequence[Count]) -> list[Count]:
    """Returns the calls that a form describes."""
    kernel = f"{form.kernel}_w{weight_bits}"
    return [count for count in counts if count.kernel == kernel and form.executes(count.shape)]


def fitted(form: Form, weight_bits: int, counts: Sequence[Count]) -> tuple[list[Count], Array, Array, Array]:
    """Returns the calls of a form, its coefficients, the relative errors, and those of leaving each call out."""
    own = counted_by(form, weight_bits, counts)
    counted, target = matrix(form, own), np.array([count.instructions for count in own], dtype=np.float64)
    coefficients = fit_relative(counted, target)
    return own, coefficients, counted @ coefficients / target - 1, leave_one_out(counted, target)


def kernels(form: Form, weight_bits: int, coefficients: Array) -> str:
    """Returns the form as kernels of a profile, one per width of inputs."""
    parts = []
    for bits in form.gathering:
        terms: dict[str, float] = {}
        for (term, width), value in zip(columns(form), coefficients, strict=True):
            if width in (None, bits) and term not in PACKING and value > 0:
                terms[term] = terms.get(term, 0.0) + float(value)
        listed = ", ".join(f"{term} = {value:.4g}" for term, value in terms.items())
        parts.append(
            f'[[engine.kernels]]  # {form.name}\nname = "{form.kernel}_w{weight_bits}"\nweight_bits = {weight_bits}\n'
            f"activation_bits = {bits}\ntile_pixels = {form.tile_pixels}\ntile_channels = {form.tile_channels}\n"
            f"k_multiple = {form.k_multiple[weight_bits]}\nterms = {{ {listed} }}\n"
        )
    return "\n".join(parts)


def count_further() -> None:
    """Counts the layers of `FURTHER` with every width of weights and inputs and writes them."""
    with tempfile.TemporaryDirectory() as directory, MORE_COUNTS.open("w", encoding="utf-8", newline="") as file:
        runner = Runner(TARGETS[CORE], KERNELS, Path(directory), count=True)
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for name, shape in FURTHER.items():
            trials = [
                Trial(kernel, shape, kernel.weight_bits[0], input_bits)
                for kernel, input_bits in itertools.product(KERNELS, (8, 4, 2))
                if shape.layer_class in kernel.classes and kernel.executes(shape)
            ]
            counted = zip(trials, runner.run(trials), strict=True)
            writer.writerows(row(CORE, name, trial, instructions) for trial, instructions in counted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--count", action="store_true")
    arguments = parser.parse_args()
    if arguments.count:
        count_further()
        return
    counts = [*read(COUNTS), *read(MORE_COUNTS)]
    for form in FORMS:
        for weight_bits in form.k_multiple:
            own, coefficients, errors, held_out = fitted(form, weight_bits, counts)
            if arguments.kernels:
                print(kernels(form, weight_bits, coefficients))
                continue
            worst = own[int(np.abs(errors).argmax())]
            listed = ", ".join(
                f"{term}{'' if bits is None else f'@{bits}'} {value:.3g}"
                for (term, bits), value in zip(columns(form), coefficients, strict=True)
                if value > 0
            )
            print(
                f"{form.name} w{weight_bits}: {len(own)} calls, error mean {100 * np.abs(errors).mean():.1f} %, "
                f"largest {100 * np.abs(errors).max():.1f} % ({worst.case} x{worst.input_bits} y{worst.output_bits}), "
                f"left out mean {100 * np.abs(held_out).mean():.1f} %, median {100 * np.median(np.abs(held_out)):.1f} %"
                f"\n    {listed}"
            )


if __name__ == "__main__":
    main()
