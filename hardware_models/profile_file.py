"""Writes a device profile as TOML that `load_profile` reads back: a figure per line, a table per kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomlkit

from ddq_search.errors import CostError
from hardware_models.profile import DeviceProfile

_ON_ONE_LINE = frozenset({"terms", "scratch"})
"""Records without a figure's fields that still take one line."""


def profile_toml(profile: DeviceProfile) -> str:
    """Returns the TOML text of a profile; optional fields at their default are left out."""
    return "\n".join(_lines("", profile.model_dump(mode="json", exclude_defaults=True))).lstrip("\n") + "\n"


def write_profile(profile: DeviceProfile, path: Path) -> None:
    """Writes a profile.

    Raises:
        CostError: the file cannot be written.
    """
    try:
        path.write_text(profile_toml(profile), encoding="utf-8")
    except OSError as error:
        raise CostError(f"cannot write the device profile {path}: {error.strerror or error}") from error


def _lines(path: str, fields: Mapping[str, Any]) -> Iterator[str]:
    """Lines of one table: plain values first, then the tables below it."""
    tables = {key: value for key, value in fields.items() if _is_table(key, value)}
    for key, value in fields.items():
        if key not in tables:
            yield f"{key} = {_text(value)}"
    for key, value in tables.items():
        below = f"{path}.{key}".lstrip(".")
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(value, list) or not all(_is_table(*item) for item in entry.items()):
                yield f"\n[[{below}]]" if isinstance(value, list) else f"\n[{below}]"
            yield from _lines(below, entry)


def _is_table(key: str, value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], Mapping)
    if not isinstance(value, Mapping) or key in _ON_ONE_LINE or "source" in value:
        return False
    return key != "pack" or any("source" in entry for entry in value.values())  # an engine's pack, not a kernel's


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_text(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_text(entry) for entry in value) + "]"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, str) and "\n" in value:  # TOML drops a line break right after the opening quotes
        return '"""\n' + tomlkit.string(value, multiline=True).as_string()[3:]
    return str(tomlkit.item(value).as_string())
