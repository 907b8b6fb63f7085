"""Reads measured times from CSV files: per layer, as the benchmark of the C export prints them, or per network.

Per layer, columns: ``layer, kernel, layer_class, in_h, in_w, in_c, out_h, out_w, out_c, kernel_h, kernel_w, stride_h,
stride_w, pad_top, pad_left, dilation_h, dilation_w, groups, weight_bits, input_bits, output_bits, macs, value, unit``
with unit s, ms, us, ns, nanoseconds, cycles or instructions. ``macs`` is checked against the geometry; ``kernel`` may
be empty: then the layer counts as run on the kernel that the profile prices it on.

Per network, columns: ``model, weight_bits, act_bits, latency_ms``. A model is a graph written by ``ddq-search inspect
--json``, a table of layers with the columns above (without ``value`` and ``unit``), the name of a table shipped with
the profiles (``mobilenet_v1-0.25-160``), or what a resolver makes of it; the optional column ``input`` (CxHxW) is
passed to that resolver. Paths are relative to the file.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ddq_search.errors import ConfigError, DDQError
from ddq_search.graph import ModelGraph, from_json
from ddq_search.layer_shape import LAYER_CLASSES, LayerShape
from hardware_models.executions import Execution, Measurement, executions_of
from hardware_models.networks import list_networks, load_network
from hardware_models.profile import DeviceProfile

GEOMETRY = (
    "layer", "layer_class", "in_h", "in_w", "in_c", "out_h", "out_w", "out_c", "kernel_h", "kernel_w", "stride_h",
    "stride_w", "pad_top", "pad_left", "dilation_h", "dilation_w", "groups",
)  # fmt: skip
PER_LAYER = (*GEOMETRY, "weight_bits", "input_bits", "output_bits", "value", "unit")
PER_NETWORK = ("model", "weight_bits", "act_bits", "latency_ms")
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "nanoseconds": 1e-9}

Resolver = Callable[[str, str], ModelGraph]
"""(name of a model, input as CxHxW or empty) → its graph."""


def read_measurements(path: Path, profile: DeviceProfile, resolve: Resolver) -> list[Measurement]:
    """Returns the measurements of a CSV file.

    Args:
        path: the file.
        profile: whose clock turns cycles into seconds.
        resolve: finds the graph of a model that is not a file.

    Raises:
        ConfigError: the file cannot be read, or a row is wrong; names file, line and column.
    """
    rows = _rows(path)
    columns = set(rows[0][1])
    if set(PER_LAYER) <= columns:
        return [_layer(place, row, profile) for place, row in rows]
    if set(PER_NETWORK) <= columns:
        return [_network(place, row, path, resolve) for place, row in rows]
    per_layer, per_network = sorted(set(PER_LAYER) - columns), sorted(set(PER_NETWORK) - columns)
    raise ConfigError(
        f"{path}: neither a file of layers (lacks columns {', '.join(per_layer)}) "
        f"nor of networks (lacks {', '.join(per_network)})"
    )


def network_executions(
    model: str, folder: Path, size: str, weight_bits: int, act_bits: int, resolve: Resolver
) -> tuple[Execution, ...]:
    """Returns what a network executes.

    ``model`` is a .json graph, a .csv table of layers, one of `hardware_models.networks`, or for the resolver.
    """
    path = folder / model
    if path.suffix == ".json":
        try:
            graph = from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the graph {path}: {error.strerror or error}") from error
        return executions_of(graph, weight_bits, act_bits)
    if path.suffix == ".csv":
        return tuple(
            Execution(row["layer"], _shape(place, row), weight_bits, act_bits, act_bits) for place, row in _rows(path)
        )
    if model in list_networks():
        return tuple(
            replace(execution, weight_bits=weight_bits, input_bits=act_bits, output_bits=act_bits)
            for execution in load_network(model)
        )
    return executions_of(resolve(model, size), weight_bits, act_bits)


def _rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Rows with the place they stand at, for messages."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(line for line in file if line.strip() and not line.startswith("#")))
    except OSError as error:
        raise ConfigError(f"cannot read the measurements {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is not a CSV file: {error}") from error
    if not rows:
        raise ConfigError(f"{path} holds no measurements")
    result = []
    for number, row in enumerate(rows, start=1):
        place = f"{path}, row {number}"
        if None in row or None in row.values():
            raise ConfigError(f"{place}: has {'more' if None in row else 'fewer'} fields than the header")
        result.append((place, {key.strip(): value.strip() for key, value in row.items()}))
    return result


def _layer(place: str, row: Mapping[str, str], profile: DeviceProfile) -> Measurement:
    shape, unit, value = _shape(place, row), row["unit"].lower(), _number(place, row, "value")
    if row.get("macs") and int(_number(place, row, "macs")) != shape.macs:
        raise ConfigError(f"{place}: macs is {row['macs']}, but the geometry has {shape.macs}")
    clock_hz = profile.clock_hz.value
    if unit in _SECONDS:
        seconds = value * _SECONDS[unit]
    elif unit == "cycles":
        seconds = value / clock_hz
    elif unit == "instructions" and profile.engine.unit == "instructions":
        seconds = value * profile.engine.cycles_per_unit.value / clock_hz
    else:
        hint = "; this profile does not count instructions" if unit == "instructions" else ""
        raise ConfigError(f"{place}: unit is {row['unit']!r}; known: {', '.join(_SECONDS)}, cycles, instructions{hint}")
    weights, inputs, outputs = (_whole(place, row, f"{name}_bits") for name in ("weight", "input", "output"))
    execution = Execution(row["layer"], shape, weights, inputs, outputs, row.get("kernel") or None)
    return Measurement(row["layer"], seconds, (execution,), timed=unit != "instructions")


def _network(place: str, row: Mapping[str, str], path: Path, resolve: Resolver) -> Measurement:
    weight_bits, act_bits = _whole(place, row, "weight_bits"), _whole(place, row, "act_bits")
    try:
        executions = network_executions(row["model"], path.parent, row.get("input", ""), weight_bits, act_bits, resolve)
    except DDQError as error:
        raise ConfigError(f"{place}: {error}") from error
    name = f"{row['model']} w{weight_bits}a{act_bits}"
    return Measurement(name, _number(place, row, "latency_ms") * 1e-3, executions)


def _shape(place: str, row: Mapping[str, str]) -> LayerShape:
    if missing := [name for name in GEOMETRY if name not in row]:
        raise ConfigError(f"{place}: lacks columns {', '.join(missing)}")
    if row["layer_class"] not in LAYER_CLASSES:
        raise ConfigError(f"{place}: layer_class is {row['layer_class']!r}; known: {', '.join(LAYER_CLASSES)}")

    def triple(side: str) -> tuple[int, int, int]:
        height, width, channels = (_whole(place, row, f"{side}_{axis}") for axis in "hwc")
        return height, width, channels

    def pair(name: str, axes: tuple[str, str] = ("h", "w"), least: int = 1) -> tuple[int, int]:
        first, second = (_whole(place, row, f"{name}_{axis}", least) for axis in axes)
        return first, second

    groups = _whole(place, row, "groups")
    layer_class = row["layer_class"]
    shape = LayerShape(
        layer_class, triple("in"), triple("out"), pair("kernel"), pair("stride"),
        pair("pad", ("top", "left"), 0), pair("dilation"), groups,
    )  # fmt: skip
    if shape.input_channels % groups or shape.channels % groups:
        raise ConfigError(
            f"{place}: {groups} groups do not divide {shape.input_channels} and {shape.channels} channels"
        )
    return shape


def _number(place: str, row: Mapping[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{place}: {column} is {row[column]!r}, not a number")
    return value


def _whole(place: str, row: Mapping[str, str], column: str, least: int = 1) -> int:
    value = _number(place, row, column)
    if value != int(value) or value < least:
        raise ConfigError(f"{place}: {column} is {row[column]!r}, expected a whole number of at least {least}")
    return int(value)
