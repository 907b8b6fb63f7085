"""Closed forms of what our kernels execute, fitted to their counts, and the profile entries that they make.

    python benchmarks/kernels/fit.py --family dsp --core cortex-m4            # coefficients and errors
    python benchmarks/kernels/fit.py --family dsp --core cortex-m4 --toml     # [[engine.kernels]] of a profile
    python benchmarks/kernels/fit.py --family dsp --core cortex-m4 --count    # counts the family's further layers

A family is a module with ``FORMS`` (what the kernels' loops repeat), ``TERMS`` (counts beside those of
`hardware_models.terms`), ``FURTHER`` (small and lopsided layers, on which fixed costs show) and the names of its two
files of counts. A form is fitted once per core and width of weights, over all layers and widths of inputs and outputs:
those change how windows are gathered and outputs stored, not the products. Least squares on relative errors,
coefficients not negative.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import itertools
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from count import COLUMNS, executes, kernels_of, row

from ddq_search.export.c.targets import TARGETS
from ddq_search.export.c.trials import Runner, Trial
from ddq_search.layer_shape import LayerClass, LayerShape
from hardware_models.fitting import Array, fit_relative, leave_one_out
from hardware_models.terms import TERMS, Term

MEASUREMENTS = Path(__file__).resolve().parents[2] / "hardware_models" / "measurements"
MODULES = {
    "portable": "portable_forms",
    "dsp": "dsp_forms",
    "helium": "helium_forms",
    "neon": "neon_forms",
    "neon_dot": "neon_dot_forms",
}
"""Family → module with its forms."""
PACKED = (4, 2)
"""Widths of outputs that are packed, at a cost per output."""


@dataclass(frozen=True)
class Form:
    """What the instructions of a kernel on some layers are made of.

    Attributes:
        name: of the form, for messages.
        kernels: width of weights → C function.
        entries: classes of layers that get one profile entry each, as they share terms.
        executes: the layers it describes.
        shared: terms whose cost does not depend on the width of inputs.
        by_input: width of inputs → terms that do.
        tile_pixels: windows per tile.
        tile_channels: channels per tile.
        k_multiple: width of weights → K per step.
        condition: line of the entry that says which layers it executes, if the classes do not.
        packing: terms of storing outputs of packed widths.
    """

    name: str
    kernels: Mapping[int, str]
    entries: tuple[tuple[LayerClass, ...], ...]
    executes: Callable[[LayerShape], bool]
    shared: tuple[str, ...]
    by_input: Mapping[int, tuple[str, ...]]
    tile_pixels: int
    tile_channels: int
    k_multiple: Mapping[int, int]
    condition: str = ""
    packing: tuple[str, ...] = ("outputs",)


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


@dataclass(frozen=True)
class Fit:
    """A form fitted to counted calls; errors are relative, one per call."""

    form: Form
    weight_bits: int
    calls: list[Count]
    coefficients: Array
    errors: Array
    left_out: Array

    def of(self, classes: Sequence[str], input_bits: int) -> list[int]:
        """Returns which calls are of these classes and inputs: those with outputs of 8 bits, if there are any."""
        found = [
            index
            for index, call in enumerate(self.calls)
            if call.shape.layer_class in classes and call.input_bits == input_bits
        ]
        return [index for index in found if self.calls[index].output_bits == 8] or found


def read(path: Path, core: str) -> list[Count]:
    """Returns the counted calls of one core in a file that `count.py` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [_count(line) for line in csv.DictReader(file) if line["core"] == core]


def _count(line: Mapping[str, str]) -> Count:
    number = {name: int(text) for name, text in line.items() if text.isdigit()}
    kernel, stride, dilation = ((number[f"{name}_h"], number[f"{name}_w"]) for name in ("kernel", "stride", "dilation"))
    source, output = ((number[f"{name}_h"], number[f"{name}_w"], number[f"{name}_c"]) for name in ("in", "out"))
    kind, padding = cast("LayerClass", line["layer_class"]), (number["pad_top"], number["pad_left"])
    shape = LayerShape(kind, source, output, kernel, stride, padding, dilation, number["groups"])
    widths = (number[f"{name}_bits"] for name in ("weight", "input", "output"))
    return Count(line["case"], line["kernel"], shape, *widths, number["instructions"])


def columns(form: Form) -> list[tuple[str, int | None]]:
    """Returns the fitted columns: (term, width of inputs it is for, None for all); at last outputs of packed widths."""
    by_input = [(term, bits) for bits, terms in form.by_input.items() for term in terms]
    return [*((term, None) for term in form.shared), *by_input, *itertools.product(form.packing, PACKED)]


def geometry(form: Form, weight_bits: int, input_bits: int) -> Geometry:
    """Returns what terms read of the kernel."""
    return Geometry(weight_bits, input_bits, form.tile_pixels, form.tile_channels, form.k_multiple[weight_bits])


def matrix(form: Form, calls: Sequence[Count], terms: Mapping[str, Term]) -> Array:
    """Returns ``[calls, columns]`` counts."""
    listed = columns(form)
    result = np.zeros((len(calls), len(listed)))
    for index, call in enumerate(calls):
        kernel = geometry(form, call.weight_bits, call.input_bits)
        for column, (term, bits) in enumerate(listed):
            packing = column >= len(listed) - len(PACKED) * len(form.packing)
            if bits in (None, call.output_bits if packing else call.input_bits):
                result[index, column] = terms[term](call.shape, kernel)
    return result


def fitted(form: Form, weight_bits: int, calls: Sequence[Count], terms: Mapping[str, Term]) -> Fit:
    """Fits a form to the calls that it describes."""
    own = [
        call
        for call in calls
        if call.kernel == form.kernels[weight_bits] and call.weight_bits == weight_bits and form.executes(call.shape)
    ]
    counted, target = matrix(form, own, terms), np.array([call.instructions for call in own], dtype=np.float64)
    coefficients = fit_relative(counted, target)
    errors = counted @ coefficients / target - 1
    return Fit(form, weight_bits, own, coefficients, errors, leave_one_out(counted, target))


def toml(fit: Fit, terms: Mapping[str, Term], names: Mapping[str, str], core: str) -> str:
    """Returns the entries of a profile: one per group of classes and width of inputs that was counted.

    ``names``: term → its name in a profile.
    """
    form, parts = fit.form, []
    packed = len(PACKED) * len(form.packing)
    listed = columns(form)[:-packed]
    pack: dict[int, dict[str, float]] = {bits: {} for bits in PACKED}
    for (term, bits), value in zip(columns(form)[-packed:], fit.coefficients[-packed:], strict=True):
        pack[cast("int", bits)][names[term]] = float(value)
    for classes, input_bits in itertools.product(form.entries, form.by_input):
        rows = fit.of(classes, input_bits)
        if not rows:
            continue
        kernel = geometry(form, fit.weight_bits, input_bits)
        values: dict[str, float] = {}
        for (term, bits), value in zip(listed, fit.coefficients, strict=False):
            used = any(terms[term](fit.calls[index].shape, kernel) for index in rows)
            if bits in (None, input_bits) and value > 0 and used:
                values[names[term]] = values.get(names[term], 0.0) + float(value)
        errors, left_out = np.abs(fit.errors[rows]), np.abs(fit.left_out[rows])
        quoted = ", ".join(f'"{name}"' for name in classes)
        parts.append(
            f'[[engine.kernels]]\nname = "{form.kernels[fit.weight_bits]}"\nclasses = [{quoted}]\n'
            f"weight_bits = {fit.weight_bits}\nactivation_bits = {input_bits}\n{form.condition}"
            f"tile_pixels = {form.tile_pixels}\ntile_channels = {form.tile_channels}\n"
            f'k_multiple = {kernel.k_multiple}\nkind = "emulated"\n'
            f'source = "{len(rows)} calls counted on {core}: error mean {100 * errors.mean():.1f} %, largest '
            f'{100 * errors.max():.1f} %, left out mean {100 * left_out.mean():.1f} %"\n'
            f"terms = {_inline(values)}\npack = {{ {', '.join(f'{b} = {_inline(pack[b])}' for b in PACKED)} }}\n"
        )
    return "\n".join(parts)


def _inline(values: Mapping[str, float]) -> str:
    return f"{{ {', '.join(f'{term} = {value:.4g}' for term, value in values.items())} }}"


def profile_names(name: str, family: ModuleType) -> dict[str, str]:
    """Returns term → its name in a profile: those of a family's own loops carry its first word."""
    own = {term: f"{name.partition('_')[0]}_{term}" for term in family.TERMS}
    return {**{term: term for term in TERMS}, **own}


def describe(fit: Fit) -> str:
    """Returns the errors and coefficients of a fit as text."""
    worst = fit.calls[int(np.abs(fit.errors).argmax())]
    listed = ", ".join(
        f"{term}{'' if bits is None else f'@{bits}'} {value:.3g}"
        for (term, bits), value in zip(columns(fit.form), fit.coefficients, strict=True)
        if value > 0
    )
    errors, left_out = 100 * np.abs(fit.errors), 100 * np.abs(fit.left_out)
    return (
        f"{fit.form.name} w{fit.weight_bits}: {len(fit.calls)} calls, error mean {errors.mean():.1f} %, largest "
        f"{errors.max():.1f} % ({worst.case} x{worst.input_bits} y{worst.output_bits}), left out mean "
        f"{left_out.mean():.1f} %, largest {left_out.max():.1f} %\n    {listed}"
    )


def count_further(family: ModuleType, name: str, cores: Sequence[str]) -> None:
    """Counts the family's further layers with every width of weights and inputs and writes them."""
    kernels = kernels_of(name)
    with (MEASUREMENTS / family.MORE_COUNTS).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for core in cores:
            with tempfile.TemporaryDirectory() as directory:
                runner = Runner(TARGETS[core], kernels, Path(directory), count=True)
                for case, shape in family.FURTHER.items():
                    trials = [
                        Trial(kernel, shape, weight_bits, input_bits)
                        for kernel in kernels
                        for weight_bits, input_bits in itertools.product((8, 4, 2), (8, 4, 2))
                        if executes(kernel, shape, weight_bits, input_bits)
                    ]
                    counts = zip(trials, runner.run(trials), strict=True)
                    writer.writerows(row(core, case, trial, value) for trial, value in counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="dsp", choices=sorted(MODULES))
    parser.add_argument("--core", action="append", required=True)
    parser.add_argument("--toml", action="store_true")
    parser.add_argument("--count", action="store_true")
    arguments = parser.parse_args()
    family = importlib.import_module(MODULES[arguments.family])
    if arguments.count:
        count_further(family, arguments.family, arguments.core)
        return
    terms = {**TERMS, **family.TERMS}
    names = profile_names(arguments.family, family)
    for core in arguments.core:
        calls = [call for name in {family.COUNTS, family.MORE_COUNTS} for call in read(MEASUREMENTS / name, core)]
        for form in family.FORMS:
            for weight_bits in form.kernels:
                fit = fitted(form, weight_bits, calls, terms)
                print(toml(fit, terms, names, core) if arguments.toml else f"{core} {describe(fit)}")


if __name__ == "__main__":
    main()
