"""From flags, pins and ``--set`` to a configuration."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddq_search.config import RunConfig, load_config
from ddq_search.errors import ConfigError
from search_spaces.patches import absolute, is_patches
from search_spaces.super_resolution import TRAINING

_NAMES = re.compile(r"\[ *[\w-]+( *, *[\w-]+)* *\]")


def read_config(
    path: Path | None, flags: Mapping[str, Any], pins: list[str] | None, settings: list[str] | None
) -> RunConfig:
    """Returns the configuration in a file with flags, pins and settings on top; the data's own settings below.

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
    return _with_absolute_paths(_with_own_settings(load_config(path, overrides), path, overrides))


def _with_own_settings(config: RunConfig, path: Path | None, overrides: Mapping[str, Any]) -> RunConfig:
    """Super-resolution trains with settings of its own where the user gives none."""
    if not is_patches(config.data.name):
        return config
    own = {f"training.{key}": value for key, value in TRAINING.items() if key not in config.training.model_fields_set}
    return load_config(path, {**overrides, **own})


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """A run must find its data, weights and device again from any working directory."""
    data, model, device = config.data, config.model, config.device
    if is_patches(data.name):
        data = data.model_copy(update={"name": absolute(data.name)})
    elif data.name and Path(data.name).exists():
        data = data.model_copy(update={"name": str(Path(data.name).resolve())})
    if model.weights is not None:
        model = model.model_copy(update={"weights": str(Path(model.weights).resolve())})
    if device.profile.endswith(".toml"):
        device = device.model_copy(update={"profile": str(Path(device.profile).resolve())})
    return config.model_copy(update={"data": data, "model": model, "device": device})


def _value(text: str) -> Any:
    """TOML where it is TOML, a list of names where a shell took their quotes, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text[1:-1].replace(" ", "").split(",") if _NAMES.fullmatch(text) else text
