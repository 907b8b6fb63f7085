"""What the outer loop varies: keys of the configuration with ranges or choices, some of them only under a condition.

A space is a TOML file with one table per key::

    [parameters."training.ema_decay"]
    type = "float"
    low = 0.9
    high = 0.999
    when = { key = "training.schedule", one_of = ["cosine"] }
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from optuna.trial import Trial
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ddq_search.config import RunConfig, said
from ddq_search.errors import ConfigError

Number = Annotated[float, Field(allow_inf_nan=False)]
Choice = bool | int | float | str | list[Any]
SECTIONS = ("model", "space", "training", "search")
"""Sections of the configuration that may be varied; the others pose the problem on which trials are compared."""

_RATES = ("joint_rate", "finetune_rate", "step_rate")
"""Learning rates that the default space varies by a factor of three around the base configuration."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Condition(_Entry):
    """Holds where another parameter is varied and has one of these values, or lies within these bounds."""

    key: str
    one_of: tuple[Choice, ...] | None = None
    at_least: Number | None = None
    at_most: Number | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.one_of is None and self.at_least is None and self.at_most is None:
            raise ValueError("a condition needs one_of, at_least or at_most")
        return self

    def holds(self, chosen: Mapping[str, Any]) -> bool:
        """Whether it holds for what was chosen so far; never where its key was not chosen itself."""
        if self.key not in chosen:
            return False
        value = chosen[self.key]
        if self.one_of is not None and value not in self.one_of:
            return False
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


class _Range(_Entry):
    when: Condition | None = None
    log: bool = False

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        low, high, step = (getattr(self, name) for name in ("low", "high", "step"))
        if low > high:
            raise ValueError(f"low {low} is above high {high}")
        if self.log and low <= 0:
            raise ValueError(f"a logarithmic range starts above 0, not at {low}")
        if self.log and step not in (None, 1):
            raise ValueError("a logarithmic range has no step")
        return self


class FloatRange(_Range):
    """A real number in [low, high], evenly spread or by its logarithm."""

    type: Literal["float"]
    low: Number
    high: Number
    step: Annotated[float, Field(gt=0)] | None = None

    def suggest(self, trial: Trial, key: str) -> float:
        """Returns the trial's value."""
        return trial.suggest_float(key, self.low, self.high, log=self.log, step=self.step)

    def extremes(self) -> Iterable[Any]:
        """Returns values that are legal only where all are."""
        return (self.low, self.high)


class IntRange(_Range):
    """A whole number in [low, high]."""

    type: Literal["int"]
    low: int
    high: int
    step: Annotated[int, Field(gt=0)] = 1

    def suggest(self, trial: Trial, key: str) -> int:
        """Returns the trial's value."""
        return trial.suggest_int(key, self.low, self.high, log=self.log, step=self.step)

    def extremes(self) -> Iterable[Any]:
        """Returns values that are legal only where all are."""
        return (self.low, self.high)


class Choices(_Entry):
    """One of several values; lists (candidate bitwidths) are stored as JSON text by Optuna."""

    type: Literal["categorical"]
    choices: Annotated[tuple[Choice, ...], Field(min_length=1)]
    when: Condition | None = None

    def suggest(self, trial: Trial, key: str) -> Any:
        """Returns the trial's value."""
        texts = [json.dumps(choice) if isinstance(choice, list) else choice for choice in self.choices]
        chosen = trial.suggest_categorical(key, texts)
        return next(choice for choice, text in zip(self.choices, texts, strict=True) if text == chosen)

    def extremes(self) -> Iterable[Any]:
        """Returns all values."""
        return self.choices


Parameter = Annotated[FloatRange | IntRange | Choices, Field(discriminator="type")]


class TuneSpace(_Entry):
    """Key of the configuration → what it may be; conditions refer to keys further up."""

    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]

    @property
    def conditional(self) -> bool:
        """Whether some key is varied only under a condition."""
        return any(parameter.when is not None for parameter in self.parameters.values())

    def choose(self, trial: Trial) -> dict[str, Any]:
        """Returns the trial's value of every key whose condition holds."""
        chosen: dict[str, Any] = {}
        for key, parameter in self.parameters.items():
            if parameter.when is None or parameter.when.holds(chosen):
                chosen[key] = parameter.suggest(trial, key)
        return chosen


def default_space(base: RunConfig) -> TuneSpace:
    """Returns rates by a factor of three around the base configuration, gate rate and start, penalty, distillation."""

    def real(low: float, high: float, *, log: bool = False) -> FloatRange:
        return FloatRange(type="float", low=low, high=high, log=log)

    rates = {name: getattr(base.training, name) for name in _RATES}
    return TuneSpace(
        parameters={
            **{f"training.{name}": real(0.3 * rate, 3 * rate, log=True) for name, rate in rates.items()},
            "training.gate_rate": real(0.01, 0.1, log=True),
            "training.distillation": real(0.0, 0.9),
            "search.penalty": real(0.3, 3.0, log=True),
            "search.gate_start": real(0.0, 0.9),
        }
    )


def load_space(path: Path, base: RunConfig) -> TuneSpace:
    """Returns the space in a TOML file.

    Raises:
        ConfigError: the file is missing or not TOML, a key or value is not the configuration's, or a condition refers
            to something that is not varied further up.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the search space {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    try:
        space = TuneSpace.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']}") from error
    _check(space, base, path)
    return space


def _check(space: TuneSpace, base: RunConfig, path: Path) -> None:
    above: dict[str, FloatRange | IntRange | Choices] = {}
    for key, parameter in space.parameters.items():
        section = key.partition(".")[0]
        if section not in SECTIONS:
            raise ConfigError(f"{path}: {key!r} cannot be varied; what can lies in {', '.join(SECTIONS)}")
        for value in parameter.extremes():
            try:
                applied(base, {key: value})
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from error
        if parameter.when is not None:
            _check_condition(parameter.when, key, above, path)
        above[key] = parameter


def _check_condition(
    when: Condition, key: str, above: Mapping[str, FloatRange | IntRange | Choices], path: Path
) -> None:
    if when.key not in above:
        raise ConfigError(
            f"{path}: {key!r} depends on {when.key!r}, which is not varied further up: {', '.join(above) or 'nothing'}"
        )
    other = above[when.key]
    bounded = when.at_least is not None or when.at_most is not None
    if isinstance(other, Choices) and bounded:
        raise ConfigError(f"{path}: {key!r} bounds {when.key!r}, which is a choice; use one_of")
    if isinstance(other, Choices) and not set(map(repr, when.one_of or ())) <= set(map(repr, other.choices)):
        raise ConfigError(f"{path}: {key!r} depends on a value that {when.key!r} never has")


def applied(base: RunConfig, chosen: Mapping[str, Any]) -> RunConfig:
    """Returns the base configuration with the chosen values.

    Raises:
        ConfigError: a key is unknown, or a value is out of range.
    """
    document = base.model_dump(mode="json")
    for key, value in chosen.items():
        *sections, last = ["space", "pins", key[11:]] if key.startswith("space.pins.") else key.split(".")
        table = document
        for section in sections:
            table = table[section] if isinstance(table.get(section), dict) else {}
        if last not in table and "pins" not in sections:
            raise ConfigError(f"unknown configuration key {key!r}; known here: {', '.join(table) or 'nothing'}")
        table[last] = value
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {said(first)}") from error
