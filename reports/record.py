"""Reads a run directory into data frames: the one place that knows the files' formats.

Units as in the files: seconds and bytes. One row per

* ``points``: policy of the front, with its losses, scores and costs;
* ``bits``: (point, role, layer or tensor group), with its bitwidth;
* ``operations``: (point, operation in schedule order), with its latency and flash bytes;
* ``live``: (point, step of the schedule), with the bytes alive during it;
* ``history``: epoch of any phase; ``gates``: (history row, variable, candidate), with its probability;
* ``variables``: variable of the search space, with the layers or tensors it covers;
* ``baselines``: policy of another way of choosing (``kind``), with its loss, score and costs; no columns
  where none was tried; ``tried``: the kinds, those that found nothing too.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ddq_search.errors import GraphError, RunError
from ddq_search.graph import ModelGraph, from_json

FORMAT = "ddq-search front"
VERSION = 1
POINT_COLUMNS = (
    "name", "origin", "within_budgets", "on_front", "val_loss", "val_score", "test_loss", "test_score",
    "latency_s", "flash_bytes", "peak_ram_bytes", "arena_bytes",
)  # fmt: skip
REQUIRED_POINT_COLUMNS = POINT_COLUMNS[:6] + POINT_COLUMNS[8:11]
HISTORY_COLUMNS = ("phase", "point", "set", "epoch", "train_loss", "val_loss", "val_score", "seconds")


@dataclass(frozen=True)
class RunRecord:
    """Everything a run directory says, as data frames and plain dictionaries; see the module docstring."""

    path: Path
    front: Mapping[str, Any]
    points: pd.DataFrame
    bits: pd.DataFrame
    operations: pd.DataFrame
    live: pd.DataFrame
    history: pd.DataFrame
    gates: pd.DataFrame
    variables: pd.DataFrame
    unused_rules: Sequence[str]
    graph: ModelGraph
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    verifications: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    baselines: pd.DataFrame = field(default_factory=pd.DataFrame)
    tried: tuple[str, ...] = ()
    solved: bool = False

    @property
    def task(self) -> Mapping[str, Any]:
        """Metric, direction, unit and loss of the task."""
        task: Mapping[str, Any] = self.front["task"]
        return task

    @property
    def device(self) -> Mapping[str, Any]:
        """What the run recorded of the device profile."""
        device: Mapping[str, Any] = self.front["device"]
        return device

    @property
    def budgets(self) -> dict[str, float]:
        """Budgets by cost name (``latency_s``, ``flash_bytes``, ``peak_ram_bytes``), maybe none."""
        return {key: value for key, value in (self.front.get("budgets") or {}).items() if value is not None}

    @property
    def best(self) -> str | None:
        """Name of the policy that the run recommends, or None when none meets the budgets."""
        return self.front.get("best")

    @property
    def baseline_kinds(self) -> list[str]:
        """Other ways of choosing that were tried, those that found no policy within the budgets too."""
        return list(dict.fromkeys([*self.baselines.get("kind", []), *self.tried]))

    @property
    def calibrated(self) -> bool:
        """Whether the device's latency was fitted to measurements; any label that does not say so counts as not."""
        label = str(self.device.get("calibration") or "").strip().lower()
        return label.startswith(("calibrated", "measured", "fitted"))

    @property
    def title(self) -> str:
        """Model, data, device and run name in one line."""
        front = self.front
        return f"{front['model']} · {front['data']} · {self.device['name']} · {self.path.name}"


def load_run(path: Path | str) -> RunRecord:
    """Returns the record of a finished run.

    Raises:
        RunError: a file is missing, cannot be parsed or belongs to another version; the message names it.
    """
    path = Path(path).resolve()
    if not path.is_dir():
        raise RunError(f"{path} is not a run directory; `ddq-search search --out {path}` makes one")
    front = _read(path / "front.json", json.loads)
    _check_front(path / "front.json", front)
    space = _read(path / "space.json", json.loads)
    rows = _read(path / "history.jsonl", _json_lines)
    try:
        graph = _read(path / "graph.json", from_json)
    except GraphError as error:
        raise _broken(path / "graph.json", str(error)) from error
    try:
        points, config = _points(front["points"]), _read(path / "config.toml", tomllib.loads)
        return RunRecord(
            path=path,
            front=front,
            points=points,
            bits=_bits(front["points"]),
            operations=_operations(front["points"]),
            live=_live(front["points"]),
            history=_history(rows),
            variables=_variables(space),
            gates=_gates(rows, space),
            unused_rules=[str(rule) for rule in space.get("unused_rules") or []],
            graph=graph,
            config=config,
            environment=_read(path / "environment.json", json.loads),
            verifications={
                file.parent.name: _read(file, json.loads) for file in sorted(path.glob("export/*/verification.json"))
            },
            **_baselines(path / "baselines.json", config),
            solved=(path / "solved.json").exists(),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        detail = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(
            f"{path}: its files do not fit together ({detail}); run the search again or restore it"
        ) from error


def _read(file: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(
            f"{file} is missing; the search has not finished: run it again with the same settings and --resume"
        ) from error
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}; check the path and its permissions") from error
    except GraphError:
        raise
    except ValueError as error:  # JSON, TOML and UTF-8 errors are ValueErrors
        raise _broken(file, str(error)) from error


def _broken(file: Path, detail: str) -> RunError:
    return RunError(f"{file} is broken: {detail}; restore the file or run the search again")


def _check_front(file: Path, front: Any) -> None:
    if not isinstance(front, dict) or front.get("format") != FORMAT:
        raise _broken(file, f'expected "format": "{FORMAT}"')
    if front.get("version") != VERSION:
        raise RunError(
            f"{file} has version {front.get('version')!r}, this ddq-search reads version {VERSION}; "
            "use the ddq-search that wrote it, or run the search again"
        )
    absent = [key for key in ("model", "data", "task", "device", "float", "points") if key not in front]
    if absent:
        raise _broken(file, f"no {', '.join(absent)}")
    if not front["points"]:
        raise _broken(file, "it has no points")
    for place, point in enumerate(front["points"]):
        missing = [key for key in REQUIRED_POINT_COLUMNS if point.get(key) is None]
        if missing:
            raise _broken(file, f"point {point.get('name', place)!r} has no {', '.join(missing)}")
    names = [point["name"] for point in front["points"]]
    if len(set(names)) != len(names):
        raise _broken(file, "two points have the same name")
    if front.get("best") is not None and front["best"] not in names:
        raise _broken(file, f"best policy {front['best']!r} is not among the points")


def _baselines(file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a record about baselines."""
    if not file.exists():
        return {}
    document = _read(file, json.loads)
    columns = ("name", "kind", "val_loss", "val_score", "latency_s", "flash_bytes", "peak_ram_bytes")
    points = pd.DataFrame([{key: point[key] for key in columns} for point in document["points"]], columns=columns)
    # files of older versions do not say which kinds found nothing: those of the configuration
    tried = document.get("kinds", config.get("search", {}).get("baselines", []))
    return {"baselines": points, "tried": tuple(str(kind) for kind in tried)}


def _json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _points(points: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame([{key: point.get(key) for key in POINT_COLUMNS} for point in points])
    numbers = list(POINT_COLUMNS[4:])
    frame[numbers] = frame[numbers].astype(float)
    return frame


def _bits(points: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    rows = [
        (point["name"], role, name, int(bits))
        for point in points
        for role in ("weights", "activations")
        for name, bits in point[role].items()
    ]
    return pd.DataFrame(rows, columns=["point", "role", "name", "bits"])


def _operations(points: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    rows = [
        (point["name"], place, row["name"], row["latency_s"], row["flash_bytes"])
        for point in points
        for place, row in enumerate(point["operations"])
    ]
    return pd.DataFrame(rows, columns=["point", "position", "operation", "latency_s", "flash_bytes"])


def _live(points: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    rows = [
        (point["name"], row["step"], row["operation"], row["bytes"])
        for point in points
        for row in point.get("live_bytes") or []
    ]
    return pd.DataFrame(rows, columns=["point", "step", "operation", "bytes"])


def _history(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    flat = []
    for row in rows:
        flat.append({key: row.get(key) for key in HISTORY_COLUMNS})
        for kind in ("expected", "target"):
            flat[-1] |= {f"{kind}_{cost}": value for cost, value in (row.get(kind) or {}).items()}
    frame = pd.DataFrame(flat, columns=None if flat else list(HISTORY_COLUMNS))
    numbers = [column for column in frame.columns if column not in ("phase", "point")]
    frame[numbers] = frame[numbers].astype(float)
    return frame


def _variables(space: Mapping[str, Any]) -> pd.DataFrame:
    rows = [
        (variable["name"], variable["role"], [int(bits) for bits in variable["candidates"]], list(variable["members"]))
        for variable in space["variables"]
    ]
    return pd.DataFrame(rows, columns=["name", "role", "candidates", "members"])


def _gates(rows: Sequence[Mapping[str, Any]], space: Mapping[str, Any]) -> pd.DataFrame:
    candidates = {variable["name"]: variable["candidates"] for variable in space["variables"]}
    flat: list[tuple[Any, ...]] = []
    for place, row in enumerate(rows):
        for name, probabilities in (row.get("gates") or {}).items():
            for bits, probability in zip(candidates[name], probabilities, strict=True):
                flat.append((place, row.get("set"), row.get("epoch"), name, int(bits), float(probability)))
    return pd.DataFrame(flat, columns=["row", "set", "epoch", "variable", "bits", "probability"])
