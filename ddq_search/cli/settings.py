"""From flags, pins and ``--set`` to a configuration."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddq_search.config import RunConfig, load_config
from ddq_search.errors import ConfigError


def read_config(
    path: Path | None, flags: Mapping[str, Any], pins: list[str] | None, settings: list[str] | None
) -> RunConfig:
    """Returns the configuration in a file with flags, pins and settings on top.

    Raises:
        ConfigError: a key is unknown, or a value or pin is not understood.
    """
    overrides = {key: value for key, value in flags.items() if value is not None}
    for pin in pins or ():
        pattern, separator, bits = pin.rpartition("=")
        if not (separator and pattern) or not all(part.strip().isdecimal() for part in bits.split(",")):
            raise ConfigError(f"--pin {pin!r}: expected PATTERN=BITS or PATTERN=BITS,BITS, such as 'conv1=8'")
        overrides[f"space.pins.{pattern}"] = [int(part) for part in bits.split(",")]
    for setting in settings or ():
        key, separator, value = setting.partition("=")
        if not (separator and key):
            raise ConfigError(f"--set {setting!r}: expected KEY=VALUE, such as training.joint_epochs=40")
        overrides[key.strip()] = _value(value)
    return load_config(path, overrides)


def _value(text: str) -> Any:
    """TOML where it is TOML, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
