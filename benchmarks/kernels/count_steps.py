"""Counts the executed instructions of our C operations without weights: sums, products, means, pools, tables, moves.

    python benchmarks/kernels/count_steps.py --core cortex-m4 --core cortex-m7 -o own_steps.csv

`steps.c` runs each on images of 8 x 8, 16 x 16 and 32 x 32 with 16 channels, at 8, 4 and 2 bits; that their codes are
right is proved by the tests of the C export. Prints the instructions per element read and per output that fit them
best (least squares on relative errors), and the largest error.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from ddq_search.errors import ExportError
from ddq_search.export.c.targets import OPTIMISATION, RUNTIME, TARGETS, build, compiler_version, run
from ddq_search.export.c.trials import counting_plugin
from hardware_models.fitting import fit_relative

SOURCES = ("ddq_add.c", "ddq_multiply.c", "ddq_mean.c", "ddq_pool.c", "ddq_lookup.c", "ddq_move.c")
COLUMNS = ("core", "compiler", "flags", "operation", "input_bits", "output_bits", "read", "outputs", "instructions")


def rounding(core: str) -> str:
    """Returns the rounding of sums, products and means that a core's runtime has: one on AArch64, two on Cortex-M."""
    return "DDQ_SINGLE" if core.startswith("aarch64") else "DDQ_DOUBLE"


def count(core: str) -> list[dict[str, object]]:
    """Returns one row per operation, width and size."""
    target = TARGETS[core]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        program = Path(__file__).with_name("steps.c")
        sources = [program, *(RUNTIME / source for source in SOURCES)]
        elf = build(target, sources, directory / "steps.elf", [*OPTIMISATION, f"-DROUNDING={rounding(core)}"])
        plugin = f"{counting_plugin(target, elf, directory)},out={directory / 'counts.txt'}"
        done = run(target, elf, directory, plugin=plugin)
        if done.returncode:
            raise ExportError(f"{core}: exit status {done.returncode}\n{done.stderr}")
        counts = (directory / "counts.txt").read_text(encoding="ascii").split()
    head = (core, compiler_version(target), " ".join((*target.flags, *OPTIMISATION)))
    lines = (line.split(",") for line in done.stdout.split())
    return [dict(zip(COLUMNS, (*head, *line, n), strict=True)) for line, n in zip(lines, counts, strict=True)]


def per_element(rows: list[dict[str, object]]) -> str:
    """Returns the cost per element of each operation and width as text; a pool's two windows are fitted together."""
    grouped = defaultdict(list)
    for row in rows:
        grouped[
            str(row["core"]), str(row["operation"]).removesuffix("_2x2").removesuffix("_3x3"), row["input_bits"]
        ].append(row)
    lines = []
    for (core, operation, bits), found in grouped.items():
        counted = np.array([[float(str(row["read"])), float(str(row["outputs"])), 1.0] for row in found])
        target = np.array([float(str(row["instructions"])) for row in found])
        read, output, once = coefficients = fit_relative(counted, target)
        error = 100 * np.abs(counted @ coefficients / target - 1).max()
        lines.append(
            f"{core} {operation} {bits} bits: {read:.2f} per element read, {output:.2f} per output, {once:.0f} once; "
            f"largest error {error:.1f} %"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", required=True, action="append", choices=sorted(set(TARGETS) - {"host"}))
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [row for core in arguments.core for row in count(core)]
    with arguments.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(per_element(rows), file=sys.stdout)


if __name__ == "__main__":
    main()
