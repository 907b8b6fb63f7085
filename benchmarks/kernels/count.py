"""Counts the executed instructions of our C kernels under emulation, every run checked bit for bit against NumPy.

    python benchmarks/kernels/count.py --family dsp --core cortex-m4 --core cortex-m7 -o own_kernels_cortex_m.csv

A family is a module of ``ddq_search.export.c`` that has ``KERNELS: tuple[Kernel, ...]``; adding one is writing that
module and its C file and naming it in `MODULES`. Cores are names of ``ddq_search.export.c.targets.TARGETS`` with an
emulator: bare-metal boards run under ``qemu-system-arm``, ``aarch64`` and ``aarch64-dot`` under ``qemu-aarch64``, both
with the plugin ``runtime/boards/qemu_count.c``. Shapes and widths are those of ``cases.py``; each is counted with the
first kernel of the family that executes it, or with all of them (``--all-kernels``). Counted is one call of the
kernel, with call and requantization.

Rows of a core and family that the output file already has are replaced, the others stay.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import math
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cases import MORE_WIDTHS, SHAPES, WIDTHS, WITH_MORE_WIDTHS

from ddq_search.export.c.kernels import Kernel
from ddq_search.export.c.targets import OPTIMISATION, TARGETS, compiler_version
from ddq_search.export.c.trials import Runner, Trial
from ddq_search.layer_shape import LayerShape

MODULES = {"portable": "portable", "dsp": "dsp", "helium": "helium", "neon": "neon", "neon_dot": "neon_dot"}
"""Family → module of ``ddq_search.export.c`` that lists its kernels."""

COLUMNS = (
    "core", "compiler", "flags", "family", "kernel", "case", "layer_class", "in_h", "in_w", "in_c", "out_h", "out_w",
    "out_c", "kernel_h", "kernel_w", "stride_h", "stride_w", "pad_top", "pad_left", "dilation_h", "dilation_w",
    "groups", "weight_bits", "input_bits", "output_bits", "rounding", "macs", "instructions",
)  # fmt: skip


def kernels_of(family: str) -> tuple[Kernel, ...]:
    """Returns the kernels of a family."""
    listed: tuple[Kernel, ...] = importlib.import_module(f"ddq_search.export.c.{MODULES[family]}").KERNELS
    return tuple(kernel for kernel in listed if kernel.family == family)


def executes(kernel: Kernel, shape: LayerShape, weight_bits: int, input_bits: int) -> bool:
    """Returns whether the kernel runs a layer of these widths."""
    return (
        shape.layer_class in kernel.classes
        and weight_bits in kernel.weight_bits
        and input_bits in kernel.activation_bits
        and kernel.executes(shape)
    )


def trials(kernels: tuple[Kernel, ...], *, every_kernel: bool) -> dict[str, list[Trial]]:
    """Returns the trials of each case."""
    found: dict[str, list[Trial]] = {}
    for name, shape in SHAPES.items():
        for widths in (*WIDTHS, *(MORE_WIDTHS if name in WITH_MORE_WIDTHS else ())):
            able = [kernel for kernel in kernels if executes(kernel, shape, *widths[:2])]
            found.setdefault(name, []).extend(
                Trial(kernel, shape, *widths) for kernel in (able if every_kernel else able[:1])
            )
    return found


def row(core: str, name: str, trial: Trial, instructions: int) -> dict[str, object]:
    """Returns one line of the result."""
    shape, kernel = trial.shape, trial.kernel
    values = (
        core, compiler_version(TARGETS[core]), " ".join((*TARGETS[core].flags, *OPTIMISATION)), kernel.family,
        kernel.name, name, shape.layer_class, *shape.input, *shape.output, *shape.kernel, *shape.stride,
        *shape.padding, *shape.dilation, shape.groups, trial.weight_bits, trial.input_bits, trial.output_bits,
        trial.rounding, math.prod(shape.output) * shape.row_length, instructions,
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def count(core: str, family: str, *, every_kernel: bool = False, only: str = "") -> list[dict[str, object]]:
    """Returns the counted rows of all cases whose name contains ``only``."""
    kernels = kernels_of(family)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        runner = Runner(TARGETS[core], kernels, Path(directory), count=True)
        for name, listed in trials(kernels, every_kernel=every_kernel).items():
            if listed and only in name:
                rows += [row(core, name, *pair) for pair in zip(listed, runner.run(listed), strict=True)]
                print(f"{core} {name}: {len(listed)} runs equal NumPy", file=sys.stderr)
    return rows


def write(path: Path, rows: list[dict[str, object]]) -> None:
    """Replaces the rows of the same cores and families in the file."""
    counted = {(row["core"], row["family"]) for row in rows}
    kept: list[dict[str, object]] = []
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            kept = [dict(row) for row in csv.DictReader(file) if (row["core"], row["family"]) not in counted]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", required=True, choices=sorted(MODULES))
    parser.add_argument("--core", required=True, action="append", choices=sorted(set(TARGETS) - {"host"}))
    parser.add_argument("--all-kernels", action="store_true", help="count each case with every kernel that executes it")
    parser.add_argument("--only", default="", help="cases whose name contains this; prints instead of writing")
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for core in arguments.core:
        rows += count(core, arguments.family, every_kernel=arguments.all_kernels, only=arguments.only)
    if arguments.out and not arguments.only:
        write(arguments.out, rows)
    else:
        for line in rows:
            widths = f"w{line['weight_bits']} x{line['input_bits']} y{line['output_bits']}"
            per_mac = int(str(line["instructions"])) / int(str(line["macs"]))
            print(f"{line['core']} {line['kernel']} {line['case']} {widths} {line['instructions']} {per_mac:.3f}")


if __name__ == "__main__":
    main()
