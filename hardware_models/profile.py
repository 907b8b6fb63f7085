"""Device profiles: TOML files in which every number carries its kind and its source.

A profile describes one (board, runtime, version, compiler). Its `engine` says how the runtime computes: by counted
*instructions* (CMSIS-NN closed form) or by register *tiles* of micro-kernels (our NEON kernels). Profiles of users
have the same standing as shipped ones: `load_profile` takes a name or a path.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ddq_search.errors import CostError
from ddq_search.graph import KINDS, WEIGHTED

PROFILES = Path(__file__).parent / "profiles"
"""Folder of the shipped profiles."""

LAYER_CLASSES = ("conv", "pointwise", "depthwise", "grouped", "linear")
"""Classes of weighted layers that kernels tell apart."""

LayerClass = Literal["conv", "pointwise", "depthwise", "grouped", "linear"]
Bits = Annotated[int, Field(ge=2, le=8)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Strict):
    """A number with its provenance.

    Attributes:
        value: the number, ≥ 0, in the unit that the field's name or the documentation states.
        kind: ``published`` (measured on boards, or a data sheet), ``emulated`` (instructions counted in bit-exact
            emulation) or ``static`` (bound or estimate derived from instruction sequences).
        source: where it comes from, or how it was derived.
    """

    value: float = Field(ge=0, allow_inf_nan=False)
    kind: Literal["published", "emulated", "static"]
    source: str = Field(min_length=3)


class Rate(Figure):
    """A figure that something is divided by: > 0."""

    value: float = Field(gt=0, allow_inf_nan=False)


class Calibration(_Strict):
    """How far the latency can be trusted.

    Attributes:
        status: ``calibrated`` only with a held-out error of at most 25 %.
        statement: what was measured, the split, and what was not measured.
        held_out_error_pct: mean absolute percentage error on held-out measurements.
    """

    status: Literal["calibrated", "uncalibrated"]
    statement: str = Field(min_length=10)
    held_out_error_pct: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _needs_evidence(self) -> Calibration:
        if self.status == "calibrated" and (self.held_out_error_pct is None or self.held_out_error_pct > 25):
            raise ValueError("a calibrated profile states a held-out error of at most 25 %")
        return self


class Memory(_Strict):
    """Memories of the device and the arena's alignment."""

    alignment_bytes: int = Field(ge=1, le=4096)
    ram_bytes: Rate
    flash_bytes: Rate


class Legal(_Strict):
    """Precisions that the device executes."""

    weights: dict[LayerClass, tuple[Bits, ...]]
    activations: tuple[Bits, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _complete(self) -> Legal:
        missing = [name for name in LAYER_CLASSES if name not in self.weights]
        if missing:
            raise ValueError(f"weights lacks {', '.join(missing)} (an empty list says: not executed)")
        return self


class ElementCost(_Strict):
    """Cost of an operation without weights, in the engine's unit (instructions or cycles).

    Attributes:
        per_read: per input element read (a pool reads its window for every output, a slice reads what it keeps).
        per_output: per output element written.
        packed: the operation moves whole bytes, so sub-byte codes cost in proportion to their bytes and are never
            unpacked; otherwise reading and writing sub-byte codes pays for unpacking and packing.
    """

    per_read: Figure
    per_output: Figure
    packed: bool = False


class ClosedForm(_Strict):
    """Instructions of a weighted layer: sum of coefficients times the layer's counts; each coefficient ≥ 0."""

    macs: float = Field(ge=0)
    outputs: float = Field(ge=0)
    columns: float = Field(ge=0)
    pixels: float = Field(ge=0)
    once: float = Field(ge=0)
    kind: Literal["published", "emulated", "static"]
    source: str = Field(min_length=3)


class Scratch(_Strict):
    """Scratch RAM of a layer class at one weight bitwidth.

    ``bytes_per_row_element`` times the row length, which is first rounded up to ``row_multiple``; depthwise kernels
    need it for every channel.
    """

    bytes_per_row_element: float = Field(ge=0)
    row_multiple: int = Field(default=1, ge=1)
    kind: Literal["published", "emulated", "static"]
    source: str = Field(min_length=3)


class InstructionEngine(_Strict):
    """CMSIS-NN: executed instructions times one constant.

    ``layers[class][weight bits]`` is the closed form, ``scratch`` likewise (absent: no scratch).
    """

    model: Literal["instructions"]
    cycles_per_instruction: Rate
    call_instructions: Figure
    layers: dict[LayerClass, dict[Bits, ClosedForm]]
    scratch: dict[LayerClass, dict[Bits, Scratch]] = Field(default_factory=dict)


class Kernel(_Strict):
    """A matrix micro-kernel that computes a tile of ``pixels x channels`` outputs over a padded K.

    Attributes:
        weight_bits: storage width of the weights it reads.
        activation_bits: storage width of the activations it reads.
        macs_per_cycle: inside its loop.
        tile_pixels: output pixels per tile.
        tile_channels: output channels per tile.
        k_multiple: K is padded with zeros to a multiple of this.
        tile_cycles: around the loop of one tile: clearing, reducing and storing accumulators.
        block: K after which narrow accumulators are widened; absent: never, or counted in ``macs_per_cycle``.
        block_cycles: widening once.
    """

    name: str
    weight_bits: Literal[2, 4, 8]
    activation_bits: Literal[2, 4, 8]
    macs_per_cycle: Rate
    tile_pixels: int = Field(ge=1)
    tile_channels: int = Field(ge=1)
    k_multiple: int = Field(ge=1)
    tile_cycles: Figure
    block: int | None = Field(default=None, ge=1)
    block_cycles: Figure | None = None

    @model_validator(mode="after")
    def _block_has_price(self) -> Kernel:
        if (self.block is None) != (self.block_cycles is None):
            raise ValueError("block and block_cycles come together")
        return self


class DepthwiseKernel(_Strict):
    """The int8 kernel of depthwise convolutions; other precisions are unpacked for it."""

    macs_per_cycle: Rate
    channel_multiple: int = Field(ge=1)


class TileEngine(_Strict):
    """Our own kernels: static cycles of register tiles, and everything around them, in cycles.

    ``unpack_cycles[bits]`` and ``pack_cycles[bits]`` are per element (unpacking to int8, packing on store).
    """

    model: Literal["tiles"]
    attained_fraction: Rate
    bandwidth_bytes_per_s: Rate
    call_cycles: Figure
    gather_cycles_per_byte: Figure
    gather_cycles_per_run: Figure
    gather_cycles_per_unaligned_element: Figure
    requantize_cycles_per_output: Figure
    unpack_cycles: dict[Bits, Figure]
    pack_cycles: dict[Bits, Figure]
    depthwise: DepthwiseKernel
    kernels: tuple[Kernel, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_fallback(self) -> TileEngine:
        if not any(kernel.weight_bits == 8 and kernel.activation_bits == 8 for kernel in self.kernels):
            raise ValueError("kernels needs one with 8-bit weights and activations: other precisions unpack to it")
        if len({kernel.name for kernel in self.kernels}) != len(self.kernels):
            raise ValueError("kernel names must be distinct")
        if set(self.unpack_cycles) != {2, 4} or set(self.pack_cycles) != {2, 4}:
            raise ValueError("unpack_cycles and pack_cycles must both price 2 and 4 bits, and nothing else")
        return self


class DeviceProfile(_Strict):
    """One board with one runtime, see the module docstring."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    board: str
    core: str
    runtime: str
    version: str
    compiler: str
    arithmetic: Literal["tflite", "single"]
    clock_hz: Rate
    not_monotone: str = Field(min_length=10)
    """Why fewer bits are or are not faster here, in words for the user."""
    calibration: Calibration
    memory: Memory
    legal: Legal
    engine: InstructionEngine | TileEngine = Field(discriminator="model")
    operations: dict[str, ElementCost]

    @model_validator(mode="after")
    def _prices_everything(self) -> DeviceProfile:
        expected = KINDS - WEIGHTED
        missing, unknown = sorted(expected - set(self.operations)), sorted(set(self.operations) - expected)
        if missing or unknown:
            raise ValueError(f"operations: missing {missing}, unknown {unknown}")
        if isinstance(self.engine, InstructionEngine):
            for layer_class, widths in self.legal.weights.items():
                unpriced = sorted(set(widths) - set(self.engine.layers.get(layer_class, {})))
                if unpriced:
                    raise ValueError(f"engine.layers.{layer_class} has no price for the legal weight bits {unpriced}")
            if self.legal.activations != (8,):
                raise ValueError("engine model 'instructions' prices 8-bit activations only")
        elif set(self.legal.activations) | {b for w in self.legal.weights.values() for b in w} > {2, 4, 8}:
            raise ValueError("engine model 'tiles' prices 2, 4 and 8 bits only")
        return self


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
