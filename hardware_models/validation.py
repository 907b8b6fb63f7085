"""How well the shipped profiles reproduce the published and counted figures in ``measurements/``.

``python -m hardware_models.validation`` prints one line per check. Errors are mean absolute percentages.
"""

from __future__ import annotations

import csv
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddq_search.layer_shape import LayerClass, LayerShape
from hardware_models.cmsis_nn import network_instructions, network_layer, network_weight_bytes
from hardware_models.fitting import leave_one_out
from hardware_models.pricing import Pricer
from hardware_models.profile import DeviceProfile, load_profile
from hardware_models.terms import work

MEASUREMENTS = Path(__file__).parent / "measurements"
M4, M7 = "cortex-m4-stm32l4r5-cmsis-nn", "cortex-m7-stm32h743-cmsis-nn"
NETWORKS = {"ic": "MLPerfTiny-IC ResNet8", "kws": "MLPerfTiny-KWS DS-CNN", "ad": "MLPerfTiny-AD FC-AutoEncoder"}
_EMULATED = {"M4": M4, "M7": M7}


@dataclass(frozen=True)
class Check:
    """One comparison of a profile with figures.

    Attributes:
        profile: the profile's name.
        what: what is compared with what.
        split: how the error was held out.
        samples: number of figures.
        error_pct: mean absolute percentage error.
        worst_pct: largest absolute percentage error.
    """

    profile: str
    what: str
    split: str
    samples: int
    error_pct: float
    worst_pct: float


def validate() -> list[Check]:
    """Returns all checks of the shipped profiles against the shipped figures."""
    return [m7_layers(), m4_networks(), *closed_forms()]


def m7_layers() -> Check:
    """One cycles-per-instruction constant on 26 measured layers, each predicted from the other 25."""
    rows = read("h743_layers_insn.csv")
    ratios = [float(row["measured_cycles_stm32h743"]) / float(row["emulated_instructions"]) for row in rows]
    return _check(M7, "cycles of published layers, from counted instructions", "leave one layer out", _held_out(ratios))


def m4_networks() -> Check:
    """Cycles per instruction and per weight byte on three published networks, instructions from the profile itself."""
    profile = load_profile(M4)
    rows = [row for row in read("mlperf_tiny_cmsis_nn.csv") if row["device"] == "NUCLEO-L4R5ZI"]
    cycles = {row["model"]: float(row["cycles_derived"]) for row in rows}
    counts = [[network_instructions(profile, "M4", key), network_weight_bytes(key)] for key in NETWORKS]
    errors = leave_one_out(np.array(counts), np.array([cycles[title] for title in NETWORKS.values()]))
    return _check(M4, "cycles of published networks, from the closed form", "leave one network out", errors)


def closed_forms() -> list[Check]:
    """Closed form against counted instructions of the MLPerf Tiny layers, by class and weight bits."""
    result = []
    for core, name in _EMULATED.items():
        profile = load_profile(name)
        errors: dict[tuple[LayerClass, int], list[float]] = defaultdict(list)
        for row in read("mlperf_tiny_layers_insn.csv"):
            if row["core"] == core and int(row["macs"]):
                shape, bits = network_layer(row), int(row["w_bits"])
                predicted = layer_instructions(profile, shape, bits)
                errors[shape.layer_class, bits].append(predicted / float(row["instructions"]) - 1)
        for (layer_class, bits), found in errors.items():
            result.append(_check(name, f"instructions of {layer_class} layers, {bits}-bit weights", "fitted", found))
    return result


def layer_instructions(profile: DeviceProfile, shape: LayerShape, weight_bits: int) -> float:
    """Returns the instructions that a profile predicts for one layer with 8-bit activations."""
    kernel = Pricer(profile.engine, profile.clock_hz.value).kernel_of("layer", shape, weight_bits, 8)
    return work(kernel.terms, shape, kernel)


def read(name: str) -> list[dict[str, str]]:
    """Returns the rows of a measurement file."""
    with (MEASUREMENTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def _held_out(ratios: Sequence[float]) -> list[float]:
    """Relative errors of predicting each ratio by the geometric mean of the others."""
    logs = [math.log(ratio) for ratio in ratios]
    return [math.exp((sum(logs) - log) / (len(logs) - 1) - log) - 1 for log in logs]


def _check(profile: str, what: str, split: str, errors: Iterable[float]) -> Check:
    sizes = [100 * abs(error) for error in errors]
    return Check(profile, what, split, len(sizes), sum(sizes) / len(sizes), max(sizes))


def main() -> None:
    """Writes one line per check to standard output."""
    for check in validate():
        sys.stdout.write(
            f"{check.profile}: {check.what}: {check.error_pct:.1f} % (worst {check.worst_pct:.1f} %, "
            f"{check.samples} figures, {check.split})\n"
        )


if __name__ == "__main__":
    main()
