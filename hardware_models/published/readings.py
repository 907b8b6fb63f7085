"""Published times of whole networks, as read from ``measurements/*.csv``."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

MEASUREMENTS = Path(__file__).parents[1] / "measurements"


@dataclass(frozen=True)
class Board:
    """What one calibrated scale belongs to.

    Attributes:
        device: as the source names it.
        core: annotation of the source's device.
        threads: number of threads, or the source's words for it.
        setting: power setting of the source, which chooses the cores; empty where it has none.
    """

    device: str
    core: str
    threads: str
    setting: str = ""


@dataclass(frozen=True)
class Reading:
    """One published time.

    Attributes:
        board: where it was measured.
        network: name of a layer table.
        bits: of weights and activations; 32: floating point.
        milliseconds: latency of one inference.
        source: repository, file and commit.
    """

    board: Board
    network: str
    bits: int
    milliseconds: float
    source: str


def read(file_name: str) -> list[Reading]:
    """Returns the readings of a measurement file."""
    with (MEASUREMENTS / file_name).open(newline="") as file:
        return [
            Reading(
                Board(row["device"], row["core"], row["threads"], row.get("powersave", "")),
                row["network"],
                int(row["weight_bits"]),
                float(row["latency_ms"]),
                row["source"],
            )
            for row in csv.DictReader(file)
        ]
