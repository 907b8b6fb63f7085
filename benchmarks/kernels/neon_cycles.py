"""Closed forms of the NEON kernels' static cycles, and the profile entries that they make.

    python benchmarks/kernels/neon_cycles.py --core cortex-a53            # errors and coefficients
    python benchmarks/kernels/neon_cycles.py --core cortex-a53 --toml     # [[engine.kernels]], in cycles

Fitted like the counts of instructions (`fit.py`), to ``neon_layers_mca.csv``, which `mca.py` writes.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import tempfile
from pathlib import Path

from fit import MEASUREMENTS, MODULES, Count, describe, fitted, profile_names, read, toml
from mca import FAMILIES

from hardware_models.terms import TERMS

SOURCE = "neon_layers_mca.csv"


def cycles(core: str) -> list[Count]:
    """Returns the layers of a core with their static cycles in the place of instructions."""
    with (MEASUREMENTS / SOURCE).open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / SOURCE
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(line | {"instructions": str(round(float(line["cycles"])))} for line in lines)
        return read(path, core)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", required=True, choices=sorted(FAMILIES))
    parser.add_argument("--toml", action="store_true")
    arguments = parser.parse_args()
    family = importlib.import_module(MODULES[FAMILIES[arguments.core]])
    terms, calls = {**TERMS, **family.TERMS}, cycles(arguments.core)
    names = profile_names(FAMILIES[arguments.core], family)
    for form in family.FORMS:
        for weight_bits in form.kernels:
            fit = fitted(form, weight_bits, calls, terms)
            print(toml(fit, terms, names, arguments.core) if arguments.toml else f"{arguments.core} {describe(fit)}")


if __name__ == "__main__":
    main()
