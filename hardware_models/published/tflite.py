"""TFLite on phones: one fit per board and precision, each network predicted from the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hardware_models.fitting import Array
from hardware_models.published.check import Check, Point
from hardware_models.published.form import PHONE
from hardware_models.published.readings import Reading, read
from hardware_models.published.shared_shape import fit_ridged

PIXEL_3 = "cortex-a75-pixel3-tflite"
"""Profile that rests on `pixel_3`."""
SUBJECT = "Pixel 3, TFLite, 4 threads"
BAR_PCT = 6.0


def pixel_3(bits: int) -> list[Reading]:
    """Returns the readings of Pixel 3 with four threads: TFLite's hosted models."""
    return [
        reading
        for reading in read("tflite_phones.csv")
        if (reading.board.device, reading.board.threads, reading.bits) == ("Pixel 3", "4", bits)
    ]


def coefficients(readings: Sequence[Reading]) -> Array:
    """Returns the coefficients of `PHONE` fitted to readings of one board."""
    return fit_ridged(PHONE.design([reading.network for reading in readings]), _times(readings))


def checks() -> list[Check]:
    """Returns the checks of int8, and of floating point beside it."""
    result = []
    for bits, label in ((8, "int8"), (32, "FP32")):
        readings = pixel_3(bits)
        for split, key in (
            ("leave one network out", lambda reading: reading.network),
            ("leave one family and width out", family),
        ):
            points = tuple(held_out(readings, key))
            sweep = tuple(point for point in points if point.case.startswith("mobilenet_v1"))
            asked, profiles = (BAR_PCT, (PIXEL_3,)) if bits == 8 else (None, ())
            what = f"{label} networks"
            result.append(Check(SUBJECT, what, split, "ms", points, asked, profiles))
            result.append(Check(SUBJECT, f"{label} MobileNetV1 sweep among them", split, "ms", sweep, asked, profiles))
    return [*result, pixel_4()]


def pixel_4() -> Check:
    """EfficientNet-lite on Pixel 4: a core with dot products, a runtime of 2020."""
    readings = [row for row in read("tflite_phones.csv") if row.board.device == "Pixel 4" and row.bits == 8]
    points = held_out(readings, lambda reading: reading.network)
    what = "int8 EfficientNet-lite"
    return Check("Pixel 4, TFLite, 4 threads", what, "leave one network out", "ms", tuple(points))


def family(reading: Reading) -> str:
    """Returns the network without its resolution: networks that differ in resolution only are held out together."""
    return reading.network.rpartition("-")[0] or reading.network


def held_out(readings: Sequence[Reading], key: Callable[[Reading], str]) -> list[Point]:
    """Returns every reading beside its prediction from readings with another key."""
    counts, times = PHONE.design([reading.network for reading in readings]), _times(readings)
    keys = np.array([key(reading) for reading in readings])
    predicted = np.empty(len(readings))
    for held in set(keys):
        others = keys != held
        predicted[~others] = counts[~others] @ fit_ridged(counts[others], times[others])
    return [
        Point(
            f"{reading.board.device}, {reading.board.threads} threads",
            reading.network,
            reading.milliseconds,
            float(value),
        )
        for reading, value in zip(readings, predicted, strict=True)
    ]


def _times(readings: Sequence[Reading]) -> Array:
    return np.array([reading.milliseconds for reading in readings])
