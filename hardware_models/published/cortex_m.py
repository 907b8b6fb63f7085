"""CMSIS-NN on Cortex-M boards: cycles from instructions, and instructions from closed forms.

A board has three published networks, fewer than leaving one out can bear where networks differ in kind; so beside the
split by network stands the split by board: cycles per instruction from the *other* board. What a weight byte costs is a
property of a board's flash and does not carry over.
"""

from __future__ import annotations

import csv
import math

import numpy as np

from hardware_models.cmsis_nn import closed_form_checks, network_instructions, network_weight_bytes
from hardware_models.fitting import Array, fit_relative
from hardware_models.profile import load_profile
from hardware_models.published.check import Check, Point
from hardware_models.published.readings import MEASUREMENTS

M4, M7, M33 = "cortex-m4-stm32l4r5-cmsis-nn", "cortex-m7-stm32h743-cmsis-nn", "cortex-m33-ra6m4-cmsis-nn"
PROFILES = (M4, M7, "cortex-m7-stm32f746-cmsis-nn", M33, "cortex-m55-an547-cmsis-nn")
"""Profiles that rest on these figures."""
NETWORKS = {"ic": "MLPerfTiny-IC ResNet8", "kws": "MLPerfTiny-KWS DS-CNN", "ad": "MLPerfTiny-AD FC-AutoEncoder"}
BAR_PCT = 10.0
LAYER_BAR_PCT = 7.0
_BOARDS = {M4: ("M4", "NUCLEO-L4R5ZI"), M33: ("M33", "EK-RA6M4")}


def checks() -> list[Check]:
    """Returns all checks of CMSIS-NN profiles."""
    return [m7_layers(), *(networks(name) for name in _BOARDS), *boards_left_out(), *closed_forms()]


def m7_layers() -> Check:
    """One cycles-per-instruction constant on 26 measured layers, each predicted from the other 25."""
    rows = _read("h743_layers_insn.csv")
    cycles = [float(row["measured_cycles_stm32h743"]) for row in rows]
    logs = [math.log(value / float(row["emulated_instructions"])) for value, row in zip(cycles, rows, strict=True)]
    points = []
    for index, (row, value) in enumerate(zip(rows, cycles, strict=True)):
        ratio = math.exp((sum(logs) - logs[index]) / (len(logs) - 1))
        points.append(Point("STM32H743", f"layer {index}", value, ratio * float(row["emulated_instructions"])))
    what = "cycles of published layers, from counted instructions"
    return Check(M7, what, "leave one layer out", "cycles", tuple(points), LAYER_BAR_PCT, (M7,))


def m4_networks() -> Check:
    """The networks of the Cortex-M4 board, see `networks`."""
    return networks(M4)


def networks(name: str) -> Check:
    """Constants from the board's other networks; instructions from the profile.

    They are those of the profile: cycles per instruction, and per weight byte where it has such a term.
    """
    counts, cycles = _board(name)
    streams = load_profile(name).engine.weight_bandwidth_bytes_per_s is not None
    points = []
    for index, title in enumerate(NETWORKS.values()):
        others = np.arange(len(cycles)) != index
        if streams:
            predicted = float(counts[index] @ fit_relative(counts[others], cycles[others]))
        else:
            predicted = float(counts[index, 0] * np.exp(np.log(cycles[others] / counts[others, 0]).mean()))
        points.append(Point(_BOARDS[name][1], title, float(cycles[index]), predicted))
    what = "cycles of published networks, from the closed forms"
    return Check(name, what, "leave one network out", "cycles", tuple(points), BAR_PCT, (name,))


def boards_left_out() -> list[Check]:
    """Cycles per instruction from the other board, where cycles per weight byte are fitted beside and left there."""
    result = []
    for name, other in ((M4, M33), (M33, M4)):
        counts, cycles = _board(name)
        predicted = counts[:, 0] * fit_relative(*_board(other))[0]
        points = tuple(
            Point(_BOARDS[name][1], title, float(value), float(guess))
            for title, value, guess in zip(NETWORKS.values(), cycles, predicted, strict=True)
        )
        what = "cycles of published networks, from the closed forms"
        split = f"leave one board out: cycles per instruction of {_BOARDS[other][1]}"
        result.append(Check(name, what, split, "cycles", points, BAR_PCT, (name,)))
    return result


def closed_forms() -> list[Check]:
    """Closed forms against counted instructions of every CMSIS-NN profile, each layer predicted from the others."""
    return [check for name in PROFILES for check in closed_form_checks(load_profile(name))]


def _board(name: str) -> tuple[Array, Array]:
    """Instructions and weight bytes ``[3, 2]``, and published cycles ``[3]``, of a board's networks."""
    core, device = _BOARDS[name]
    profile = load_profile(name)
    published = {
        row["model"]: float(row["cycles_derived"])
        for row in _read("mlperf_tiny_cmsis_nn.csv")
        if row["device"] == device
    }
    counts = [[network_instructions(profile, core, key), network_weight_bytes(key)] for key in NETWORKS]
    return np.array(counts), np.array([published[title] for title in NETWORKS.values()])


def _read(name: str) -> list[dict[str, str]]:
    with (MEASUREMENTS / name).open(newline="") as file:
        return list(csv.DictReader(file))
