"""XNNPACK's published tables: coefficients shared by all boards in FP32, one scale per board; int8 by one number.

int8 was published for one network per board, so its shape is the one of FP32. Three figures say how good that is: FP32
networks left out, boards left out (the gain of int8 over FP32 taken from the others), and the same step (shape of
FP32, scale of one int8 number) on TFLite's phones, where several networks were measured in both precisions.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from hardware_models.fitting import Array
from hardware_models.published.check import Check, Point
from hardware_models.published.form import INDIRECT, PHONE
from hardware_models.published.readings import Board, Reading, read
from hardware_models.published.shared_shape import fit_ridged, fit_shared, scale_to

SUBJECT = "XNNPACK"
PROFILES = {
    "cortex-a53-rpi3-xnnpack": "RPi 3+ (BCM2837B0)",
    "cortex-a72-rpi4-xnnpack": "RPi 4 (BCM2711, ARM64)",
}
"""Profile → device that it describes."""
FP32_BAR_PCT, INT8_BAR_PCT = 7.0, 9.0
_A32_NEON = ("cortex-a7", "cortex-a53 (32-bit OS)", "cortex-a72 (32-bit OS)")


def readings(bits: int) -> list[Reading]:
    """Returns the latest reading of every board, network and precision."""
    return [reading for reading in read("xnnpack.csv") if reading.bits == bits]


def shape(of: Sequence[Reading] | None = None) -> Array:
    """Returns the coefficients of `INDIRECT` fitted to FP32 readings, up to a board's scale."""
    coefficients, _ = _fit(readings(32) if of is None else of)
    return coefficients


def int8_coefficients(reading: Reading) -> Array:
    """Returns the coefficients of a board: the shape of FP32 scaled to one int8 reading of it."""
    coefficients = shape()
    return coefficients * (reading.milliseconds / float(INDIRECT.counts(reading.network) @ coefficients))


def checks() -> list[Check]:
    """Returns the checks of FP32 and of int8."""
    return [networks_left_out(), new_board(), *int8_boards_left_out(), int8_from_one_number()]


def networks_left_out() -> Check:
    """A network left out on every board: shape and scales from the others."""
    rows = readings(32)
    points = []
    for held in sorted({row.network for row in rows}):
        coefficients, scales = _fit([row for row in rows if row.network != held])
        points += [
            _point(row, float(INDIRECT.counts(held) @ coefficients) * scales[row.board])
            for row in rows
            if row.network == held and row.board in scales
        ]
    return Check(
        SUBJECT,
        "FP32 over boards",
        "leave one network out, on all boards",
        "ms",
        tuple(points),
        FP32_BAR_PCT,
        tuple(PROFILES),
    )


def new_board() -> Check:
    """A board left out and then known by one number: mean over which of its numbers that is."""
    rows, points = readings(32), []
    for board in dict.fromkeys(row.board for row in rows):
        coefficients, _ = _fit([row for row in rows if row.board != board])
        own = [row for row in rows if row.board == board]
        for known in own:
            scale = known.milliseconds / float(INDIRECT.counts(known.network) @ coefficients)
            points += [
                _point(row, float(INDIRECT.counts(row.network) @ coefficients) * scale, f" from {known.network}")
                for row in own
                if row is not known
            ]
    return Check(SUBJECT, "FP32, a new board from any one number", "leave one board out", "ms", tuple(points))


def int8_boards_left_out() -> list[Check]:
    """An int8 number from the board's FP32 numbers and the gain of int8 on the other boards."""
    floats = {(row.board, row.network): row.milliseconds for row in readings(32)}
    rows = readings(8)
    gain = {row.board: row.milliseconds / floats[row.board, row.network] for row in rows}
    groups = {
        "int8 on Raspberry Pi, A32 with NEON": [row for row in rows if row.board.core in _A32_NEON],
        "int8 on Raspberry Pi, ARM11 without NEON and A64 among them": rows,
    }
    result = []
    for what, members in groups.items():
        points = []
        for row in members:
            others = [math.log(gain[other.board]) for other in members if other.board != row.board]
            factor = math.exp(sum(others) / len(others))
            points.append(_point(row, floats[row.board, row.network] * factor))
        asked = INT8_BAR_PCT if len(members) < len(rows) else None
        split = "leave one board out, its FP32 figure known; one network per board"
        result.append(Check(SUBJECT, what, split, "ms", tuple(points), asked, tuple(PROFILES)))
    return result


def int8_from_one_number() -> Check:
    """The step that int8 profiles of XNNPACK rest on, where it can be judged: TFLite on five phones."""
    boards: dict[Board, list[Reading]] = defaultdict(list)
    for row in read("tflite_phones.csv"):
        boards[row.board].append(row)
    points = []
    for own in boards.values():
        floats, fixed = [row for row in own if row.bits == 32], [row for row in own if row.bits == 8]
        coefficients = fit_ridged(
            PHONE.design([row.network for row in floats]), np.array([row.milliseconds for row in floats])
        )
        predicted = {row.network: float(PHONE.counts(row.network) @ coefficients) for row in fixed}
        for known in fixed:
            scale = known.milliseconds / predicted[known.network]
            points += [
                _point(row, predicted[row.network] * scale, f" from {known.network}")
                for row in fixed
                if row is not known
            ]
    return Check(
        "TFLite on phones", "int8 by the shape of FP32 and any one int8 number", "the other int8 networks", "ms",
        tuple(points), None, tuple(PROFILES),
    )  # fmt: skip


def _fit(rows: Sequence[Reading]) -> tuple[Array, dict[Board, float]]:
    boards = [row.board for row in rows]
    counts = INDIRECT.design([row.network for row in rows])
    times = np.array([row.milliseconds for row in rows])
    coefficients, _ = fit_shared(counts, times, boards)
    predicted = counts @ coefficients
    scales = {}
    for board in set(boards):
        own = np.array([other == board for other in boards])
        scales[board] = scale_to(predicted[own], times[own])
    return coefficients, scales


def _point(row: Reading, predicted: float, note: str = "") -> Point:
    return Point(f"{row.board.device}, {row.board.threads} threads", row.network + note, row.milliseconds, predicted)
