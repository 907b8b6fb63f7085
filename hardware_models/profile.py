"""Device profiles: TOML files in which every number carries its kind and its source.

A profile describes one (board, runtime, version, compiler); its `engine` says how the runtime computes. Profiles of
users have the same standing as shipped ones: `load_profile` takes a name or a path.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from ddq_search.errors import CostError
from ddq_search.layer_shape import LAYER_CLASSES, LayerClass
from ddq_search.precision import storage_bits
from hardware_models.engine import Bits, ElementCost, Engine, Rate, Strict
from hardware_models.layers import PRICED

PROFILES = Path(__file__).parent / "profiles"
"""Folder of the shipped profiles."""

TRUSTED_ERROR_PCT = 25.0
"""Above this held-out error milliseconds are not to be trusted: the profile is uncalibrated."""

Runtime = Literal["ddq-c", "cmsis-nn", "litert", "xnnpack", "ncnn", "other"]
Family = Literal["portable", "dsp", "helium", "neon", "neon_dot"]


class FittedRange(Strict):
    """Shapes of one layer class that measurements covered: (smallest, largest) of each; outside is extrapolation."""

    layers: int = Field(ge=1)
    row_length: tuple[int, int]
    pixels: tuple[int, int]
    channels: tuple[int, int]


class Calibration(Strict):
    """How far the latency can be trusted.

    Attributes:
        status: ``calibrated`` only with a held-out error of at most `TRUSTED_ERROR_PCT`.
        statement: what was measured, the split, and what was not measured.
        held_out_error_pct: mean absolute percentage error on held-out measurements.
        fitted: layer class → the shapes that measurements covered. Empty: not recorded.
    """

    status: Literal["calibrated", "uncalibrated"]
    statement: str = Field(min_length=10)
    held_out_error_pct: float | None = Field(default=None, ge=0)
    fitted: dict[LayerClass, FittedRange] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _needs_evidence(self) -> Calibration:
        error = self.held_out_error_pct
        if self.status == "calibrated" and (error is None or error > TRUSTED_ERROR_PCT):
            raise ValueError(f"a calibrated profile states a held-out error of at most {TRUSTED_ERROR_PCT:.0f} %")
        return self


class Memory(Strict):
    """Memories of the device and the arena's alignment."""

    alignment_bytes: int = Field(ge=1, le=4096)
    ram_bytes: Rate
    flash_bytes: Rate


class Legal(Strict):
    """Precisions that the device executes."""

    weights: dict[LayerClass, tuple[Bits, ...]]
    activations: tuple[Bits, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _complete(self) -> Legal:
        missing = [name for name in LAYER_CLASSES if name not in self.weights]
        if missing:
            raise ValueError(f"weights lacks {', '.join(missing)} (an empty list says: not executed)")
        return self


class DeviceProfile(Strict):
    """One board with one runtime, see the module docstring.

    Attributes:
        name: the file's stem for shipped profiles.
        board: board, chip, number of threads.
        core: processor core.
        runtime: software that executes the network, in words.
        runtime_key: which runtime that is, for choosing an export format.
        kernel_family: of our own runtime, the instruction set of its kernels.
        version: of the runtime.
        compiler: with its flags.
        arithmetic: rounding of the runtime.
        clock_hz: at which cycles become seconds.
        not_monotone: why fewer bits are or are not faster here, in words for the user.
        calibration: how far milliseconds can be trusted.
        memory: sizes and alignment.
        legal: precisions that the runtime executes.
        engine: what layers cost.
        operations: what operations without weights cost.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    board: str
    core: str
    runtime: str
    runtime_key: Runtime
    kernel_family: Family | None = None
    version: str
    compiler: str
    arithmetic: Literal["tflite", "single"]
    clock_hz: Rate
    not_monotone: str = Field(min_length=10)
    calibration: Calibration
    memory: Memory
    legal: Legal
    engine: Engine
    operations: dict[str, ElementCost]

    @model_validator(mode="after")
    def _prices_everything(self) -> DeviceProfile:
        missing, unknown = sorted(PRICED - set(self.operations)), sorted(set(self.operations) - PRICED)
        if missing or unknown:
            raise ValueError(f"operations: missing {missing}, unknown {unknown}")
        if (self.runtime_key == "ddq-c") != (self.kernel_family is not None):
            raise ValueError("kernel_family goes with runtime_key 'ddq-c', and only with it")
        for layer_class, widths in self.legal.weights.items():
            for weight_bits in widths:
                for act_bits in self.legal.activations:
                    self._require_kernel(layer_class, weight_bits, act_bits)
        return self

    def _require_kernel(self, layer_class: LayerClass, weight_bits: int, act_bits: int) -> None:
        wanted = (storage_bits(weight_bits), storage_bits(act_bits))
        for kernel in self.engine.kernels:
            if kernel.conditional or layer_class not in kernel.classes:
                continue
            offered = (kernel.weight_bits, kernel.activation_bits)
            unpacks = self.runtime_key != "ddq-c" and bool(self.engine.unpack)  # C kernels unpack themselves
            if offered == wanted or (unpacks and offered[0] >= wanted[0] and offered[1] >= wanted[1]):
                return
        raise ValueError(
            f"engine.kernels: none executes {layer_class} layers of every shape with {weight_bits}-bit weights and "
            f"{act_bits}-bit activations, which are legal"
        )


def list_profiles() -> list[str]:
    """Returns the names of the shipped profiles, sorted."""
    return sorted(path.stem for path in PROFILES.glob("*.toml"))


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """Returns a shipped profile by name, or any profile by the path of its TOML file.

    Raises:
        CostError: no such device or file, or the file is not a valid profile; the message names file and field.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = PROFILES / f"{name_or_path}.toml"
        if str(name_or_path) not in list_profiles():
            raise CostError(_unknown(str(name_or_path)))
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise CostError(f"cannot read the device profile {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CostError(f"{path} is not TOML: {error}") from error
    try:
        return DeviceProfile.model_validate(content)
    except ValidationError as error:
        raise CostError(f"{path} is not a valid device profile: {_fields(error)}") from error


def _unknown(name: str) -> str:
    known = list_profiles()
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown device {name!r}{hint}; known: {', '.join(known)}; or give the path of a .toml file"


def _fields(error: ValidationError) -> str:
    lines = []
    for item in error.errors()[:5]:
        field = ".".join(str(part) for part in item["loc"]) or "profile"
        lines.append(f"{field}: {item['msg']}")
    return "; ".join(lines)
