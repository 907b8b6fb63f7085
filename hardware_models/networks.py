"""Layer tables of published networks, as executions that a device profile prices.

The tables in ``measurements/networks/*.csv`` are written by ``benchmarks/extract_networks.py`` from the papers'
architectures; batch norms and clamping activations are folded into the layer before them, as runtimes do.
"""

from __future__ import annotations

import csv
import difflib
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

from ddq_search.errors import CostError
from ddq_search.graph import Operation
from ddq_search.layer_shape import LayerShape
from hardware_models.engine import Rate
from hardware_models.executions import Execution
from hardware_models.profile import Calibration, DeviceProfile
from hardware_models.time_parts import Anatomy

NETWORKS = Path(__file__).parent / "measurements" / "networks"
"""Folder of the shipped tables."""


def list_networks() -> list[str]:
    """Returns the names of the shipped tables, sorted."""
    return sorted(path.stem for path in NETWORKS.glob("*.csv"))


@cache
def load_network(name_or_path: str | Path) -> tuple[Execution, ...]:
    """Returns what a network executes with 8-bit codes, by the name of a shipped table or the path of a CSV file.

    Raises:
        CostError: no such table, or a row that is not a layer; the message names it.
    """
    path = Path(name_or_path)
    if path.suffix != ".csv":
        path = NETWORKS / f"{name_or_path}.csv"
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        close = difflib.get_close_matches(str(name_or_path), list_networks(), n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise CostError(f"no layer table {str(name_or_path)!r}{hint}; `list_networks` names them") from error
    return tuple(_execution(path, index, row) for index, row in enumerate(rows))


def predict(profile: DeviceProfile, network: str | Path, threads: int = 1) -> float:
    """Returns the milliseconds that a profile predicts for a network with 8-bit weights and activations.

    Profiles of several threads state them in their board: ``threads`` counts on top of what the profile describes.

    Raises:
        CostError: no such network, a layer without a price, or a number of threads without a speed-up.
    """
    anatomy = Anatomy(profile)
    seconds = math.fsum(anatomy.seconds(execution) for execution in load_network(network))
    if threads == 1:
        return 1e3 * seconds
    if threads not in profile.engine.thread_speedup:
        known = sorted({1, *profile.engine.thread_speedup})
        raise CostError(f"no measured speed-up for {threads} threads; known: {known}")
    return 1e3 * seconds / profile.engine.thread_speedup[threads].value


def scaled_to(profile: DeviceProfile, network: str | Path, milliseconds: float, source: str) -> DeviceProfile:
    """Returns the profile of a similar board, known by one measured time: every time is scaled by one factor.

    ``source`` says where the time comes from.

    Raises:
        CostError: the time is not positive.
    """
    if not milliseconds > 0 or not math.isfinite(milliseconds):
        raise CostError(f"a measured time must be positive milliseconds, not {milliseconds}")
    factor = milliseconds / predict(profile, network)
    engine = profile.engine
    changed: dict[str, Rate | None] = {
        "cycles_per_unit": _times(engine.cycles_per_unit, factor, source),
        "weight_bandwidth_bytes_per_s": _times(engine.weight_bandwidth_bytes_per_s, 1 / factor, source),
        "activation_bandwidth_bytes_per_s": _times(engine.activation_bandwidth_bytes_per_s, 1 / factor, source),
    }
    calibration = Calibration(
        status="uncalibrated",
        statement=f"{profile.name} scaled to one time, {network}: {source}; nothing was held out",
        fitted=profile.calibration.fitted,
    )
    return profile.model_copy(update={"engine": engine.model_copy(update=changed), "calibration": calibration})


def _times(rate: Rate | None, factor: float, source: str) -> Rate | None:
    return None if rate is None else Rate(value=rate.value * factor, kind="measured", source=source)


def _execution(path: Path, index: int, row: dict[str, str]) -> Execution:
    name = f"{path.stem}[{index}] {row.get('op', '')}"
    try:
        shape = _layer(row) if row["op"] in ("conv2d", "linear") else _operation(name, row)
    except (KeyError, ValueError, TypeError) as error:
        raise CostError(f"{path}, row {index + 2}: not a layer ({error})") from error
    if isinstance(shape, LayerShape) and shape.macs != int(row["macs"]):
        raise CostError(f"{path}, row {index + 2}: {shape.macs} products, but the table says {row['macs']}")
    return Execution(name, shape)


def _layer(row: dict[str, str]) -> LayerShape:
    source, target = _extent(row, "input"), _extent(row, "output")
    if row["op"] == "linear":
        return LayerShape("linear", (1, 1, math.prod(source)), target)
    kernel, groups = (int(row["kernel_height"]), int(row["kernel_width"])), int(row["groups"])
    stride, padding = int(row["stride"]), (int(row["padding_top"]), int(row["padding_left"]))
    shape = LayerShape("conv", source, target, kernel, (stride, stride), padding, groups=groups)
    if groups > 1:
        return replace(shape, layer_class="depthwise" if groups == source[2] else "grouped")
    return replace(shape, layer_class="pointwise") if kernel == (1, 1) and padding == (0, 0) else shape


def _operation(name: str, row: dict[str, str]) -> Operation:
    (height, width, channels), target = _extent(row, "input"), _extent(row, "output")
    source = (channels, height, width)
    sources: tuple[tuple[int, ...], ...] = (source,)
    if row["op"] == "add":
        sources = (source, source)
    elif row["op"] == "mul":
        sources = (source, (channels, 1, 1))
    attributes: dict[str, object] = {}
    if row["op"] in ("max_pool2d", "avg_pool2d"):
        attributes["kernel_size"] = (int(row["kernel_height"]), int(row["kernel_width"]))
    return Operation(name, row["op"], sources, (target[2], target[0], target[1]), attributes)


def _extent(row: dict[str, str], side: str) -> tuple[int, int, int]:
    return int(row[f"{side}_height"]), int(row[f"{side}_width"]), int(row[f"{side}_channels"])
