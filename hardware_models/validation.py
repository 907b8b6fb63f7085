"""How well the shipped profiles and the models behind them reproduce published and counted figures.

``python -m hardware_models.validation`` prints one line per check, each with its split; ``--points FILE`` also writes
every figure beside its prediction as CSV. Errors are mean absolute percentages.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hardware_models.published import cortex_m, ncnn, tflite, xnnpack
from hardware_models.published.check import Check, write_points
from hardware_models.published.cortex_m import m4_networks, m7_layers

__all__ = ["Check", "checks_of", "m4_networks", "m7_layers", "validate"]


def validate() -> list[Check]:
    """Returns all checks (about five seconds: hundreds of held-out fits)."""
    return [*cortex_m.checks(), *tflite.checks(), *xnnpack.checks(), *ncnn.checks()]


def checks_of(profile_name: str) -> list[Check]:
    """Returns the checks that a shipped profile rests on; none for a profile without published figures."""
    if profile_name in ncnn.PROFILES:
        return ncnn.checks_of(profile_name)
    groups = {
        cortex_m.checks: cortex_m.PROFILES,
        tflite.checks: (tflite.PIXEL_3,),
        xnnpack.checks: tuple(xnnpack.PROFILES),
    }
    return [
        check
        for checks, profiles in groups.items()
        if profile_name in profiles
        for check in checks()
        if profile_name in check.profiles
    ]


def main() -> None:
    """Writes one line per check to standard output, and points to a file where asked."""
    parser = argparse.ArgumentParser(prog="python -m hardware_models.validation", description=__doc__)
    parser.add_argument("--points", type=Path, help="CSV file for every figure beside its prediction")
    arguments = parser.parse_args()
    checks = validate()
    for check in checks:
        sys.stdout.write(check.line + "\n")
    if arguments.points is not None:
        with arguments.points.open("w", newline="") as file:
            write_points(checks, file)


if __name__ == "__main__":
    main()
