"""Reads what LiteRT's ``benchmark_model --enable_op_profiling=true`` prints, and finds whose time every line is.

The profiler prints tables headed by ``===== Run Order =====``, as text with tabulators or as CSV; columns ``node type,
[start,] first, avg ms, %, cdf%, mem KB, times called, name`` (``start`` in older versions). What writes them:
`StatsCalculator` of tensorflow/core/util/stats_calculator.cc at 31ccb01. Operators of the XNNPACK delegate stand there
by their own names, such as ``Convolution (NHWC, QC8) IGEMM``; the CSV does not quote the comma in them.

Lines carry no shapes. They are matched with a network's operations in order: weighted layers one to one, other
operations kind by kind where their numbers agree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddq_search.errors import ConfigError
from ddq_search.layer_shape import LayerShape
from hardware_models.executions import Execution, Measurement

SHORTEST_MS = 0.01
"""Text shows thousandths of milliseconds: below this a time is mostly rounding and is not used."""

_NUMBER = r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
_TEXT_LINE = re.compile(rf"^\s*(?P<type>\S.*?)(?:\s+{_NUMBER})??\s+{_NUMBER}\s+(?P<ms>{_NUMBER})\s+{_NUMBER}%\s+"
                        rf"{_NUMBER}%\s+{_NUMBER}\s+(?P<calls>\d+)\s+(?P<name>\S.*)$")  # fmt: skip
_CSV_LINE = re.compile(rf"^\s*(?P<type>\S.*?)(?:,\s*{_NUMBER})??,\s*{_NUMBER},\s*(?P<ms>{_NUMBER}),\s*{_NUMBER}%,\s*"
                       rf"{_NUMBER}%,\s*{_NUMBER},\s*(?P<calls>\d+),\s*(?P<name>\S.*)$")  # fmt: skip

_LAYERS = (
    (r"depthwise_conv_2d|dwconv", "depthwise"),
    (r"fully_connected|fully connected", "linear"),
    (r"transpose_conv|deconvolution", ""),
    (r"conv_2d|convolution", "convolution"),
)
_OPERATIONS = (
    (r"^add\b", "add"),
    (r"^mul\b|^multiply\b", "mul"),
    (r"^average_pool_2d\b|^average pooling", "avg_pool2d"),
    (r"^max_pool_2d\b|^max pooling", "max_pool2d"),
    (r"^mean\b|^global average pooling", "mean"),
    (r"^concatenation\b", "concat"),
    (r"^transpose\b", "transpose"),
    (r"^depth_to_space\b|^depth to space", "pixel_shuffle"),
)


@dataclass(frozen=True)
class ProfiledNode:
    """A line of the run order: type and name as printed, milliseconds per call."""

    node_type: str
    name: str
    milliseconds: float


def is_litert_profile(text: str) -> bool:
    """Whether a text holds an operator profile."""
    return "Run Order" in text or text.lstrip().lower().startswith("node type")


def profiled_nodes(text: str, source: str) -> list[ProfiledNode]:
    """Returns the nodes of the last run order in a text: that of the regular runs, after the one of initialization.

    Raises:
        ConfigError: there is none, or a node stands for several calls whose times cannot be told apart.
    """
    _, _, table = text.rpartition("Run Order")
    nodes = []
    for line in table.splitlines()[1:] if table else []:
        if "=====" in line:
            break  # the next table sorts the same nodes by time
        found = _CSV_LINE.match(line) or _TEXT_LINE.match(line)
        if found is None:
            continue
        if int(found["calls"]) != 1:
            raise ConfigError(
                f"{source}: {found['name'].strip()!r} was called {found['calls']} times per run, so its time belongs "
                "to several layers; profile with a version that names every node (TensorFlow 2.10 or later)"
            )
        nodes.append(ProfiledNode(found["type"].strip(), found["name"].strip(), float(found["ms"])))
    if not nodes:
        raise ConfigError(
            f"{source} holds no operator profile; run benchmark_model with --enable_op_profiling=true and keep "
            "its output"
        )
    return nodes


def match(
    nodes: Sequence[ProfiledNode], executions: Sequence[Execution], source: str
) -> tuple[list[Measurement], list[str]]:
    """Returns a measurement per matched node, and what was not used: types of nodes, and lines too short to trust.

    Raises:
        ConfigError: the weighted layers of profile and network differ in number or in class.
    """
    weighted = [execution for execution in executions if isinstance(execution.work, LayerShape)]
    layers = [(node, kind) for node in nodes if (kind := _layer_kind(node)) is not None]
    if len(layers) != len(weighted):
        raise ConfigError(
            f"{source} profiles {len(layers)} weighted layers, the network has {len(weighted)}; is it the same "
            "network, and was nothing delegated as a whole?"
        )
    result = []
    for (node, kind), execution in zip(layers, weighted, strict=True):
        layer_class = execution.work.layer_class if isinstance(execution.work, LayerShape) else ""
        wanted = layer_class if layer_class in ("depthwise", "linear") else "convolution"
        # a fully connected layer may run as a 1 x 1 convolution, and the other way round
        if kind != wanted and "depthwise" in (kind, wanted):
            raise ConfigError(f"{source}: {node.node_type!r} is a {kind} layer, {execution.name!r} a {layer_class} one")
        result.append(Measurement(f"{execution.name} ({node.node_type})", node.milliseconds * 1e-3, (execution,)))
    others, unmatched = _others(nodes, executions)
    found = [*result, *others]
    used = [measurement for measurement in found if measurement.seconds >= SHORTEST_MS * 1e-3]
    if len(used) < len(found):
        unmatched.append(f"{len(found) - len(used)} lines below {SHORTEST_MS} ms")
    return used, unmatched


def read_profile(path: Path, executions: Sequence[Execution]) -> tuple[list[Measurement], list[str]]:
    """Returns the measurements of a profile file and the types of nodes left out.

    Raises:
        ConfigError: the file cannot be read or does not fit the network.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"cannot read the profile {path}: {error.strerror or error}") from error
    return match(profiled_nodes(text, str(path)), executions, str(path))


def _others(nodes: Sequence[ProfiledNode], executions: Sequence[Execution]) -> tuple[list[Measurement], list[str]]:
    found: dict[str, list[ProfiledNode]] = {}
    unmatched: dict[str, None] = {}
    for node in nodes:
        if _layer_kind(node) is None:
            kind = next((k for pattern, k in _OPERATIONS if re.search(pattern, node.node_type.lower())), None)
            if kind is None:
                unmatched[node.node_type] = None
            else:
                found.setdefault(kind, []).append(node)
    result = []
    for kind, same in found.items():
        wanted = [e for e in executions if not isinstance(e.work, LayerShape) and e.work.kind == kind]
        if len(wanted) != len(same):
            unmatched |= dict.fromkeys(node.node_type for node in same)
            continue
        for node, execution in zip(same, wanted, strict=True):
            result.append(Measurement(f"{execution.name} ({node.node_type})", node.milliseconds * 1e-3, (execution,)))
    return result, list(unmatched)


def _layer_kind(node: ProfiledNode) -> str | None:
    """Class of a weighted layer's node, ``None`` for other nodes."""
    for pattern, kind in _LAYERS:
        if re.search(pattern, node.node_type.lower()):
            return kind or None
    return None
