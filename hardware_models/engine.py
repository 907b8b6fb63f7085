"""Schema of how a runtime computes: its kernels, what surrounds them, and the memory they wait for.

    time of a layer = call + combine(work x seconds per unit, bytes / bandwidth)

A kernel's work is a sum of coefficients times counts (`hardware_models.terms`). One form describes counted
instructions, static cycles of register tiles and fitted nanoseconds alike: ``unit`` says which.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ddq_search.layer_shape import LayerClass, LayerShape
from hardware_models.terms import SCRATCH_TERMS, TERMS

Bits = Annotated[int, Field(ge=2, le=8)]
Width = Literal[2, 4, 8]
"""Storage width of codes."""

Kind = Literal["published", "measured", "emulated", "static"]
"""``published`` (measured on boards by others, or a data sheet), ``measured`` (by the profile's user), ``emulated``
(instructions counted in bit-exact emulation), ``static`` (bound or estimate derived from instruction sequences)."""


class Strict(BaseModel):
    """A record of a profile: unknown keys are errors, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(Strict):
    """A number ≥ 0 with its provenance, in the unit that the field's name or the documentation states."""

    value: float = Field(ge=0, allow_inf_nan=False)
    kind: Kind
    source: str = Field(min_length=3)


class Rate(Figure):
    """A figure that something is divided by: > 0."""

    value: float = Field(gt=0, allow_inf_nan=False)


class ElementCost(Strict):
    """Work of an operation without weights, in the engine's unit.

    Attributes:
        per_read: per input element read (a pool reads its window for every output, a slice reads what it keeps).
        per_output: per output element written.
        packed: the operation moves whole bytes, so sub-byte codes cost in proportion to their bytes and are never
            unpacked; otherwise reading and writing sub-byte codes pays for unpacking and packing.
    """

    per_read: Figure
    per_output: Figure
    packed: bool = False


class Kernel(Strict):
    """A kernel of weighted layers.

    Attributes:
        name: of our own kernels, the C function.
        classes: layer classes it executes.
        weight_bits: storage width of the weights it reads.
        activation_bits: storage width of the activations it reads.
        tile_pixels: output positions per tile.
        tile_channels: output channels per tile.
        k_multiple: K is read in steps of this.
        block: K after which narrow accumulators are widened.
        terms: coefficient per term of `hardware_models.terms.TERMS`, in the engine's unit.
        pack: output bits → coefficient per term, on top of ``terms``, for storing outputs of 2 or 4 bits; absent: the
            engine's ``pack`` per output.
        scratch: bytes per term of `hardware_models.terms.SCRATCH_TERMS`.
        kernel_sizes: only these window sizes; absent: all.
        strides: only these strides; absent: all.
        min_channels: only layers with at least so many input channels per group.
        kind: provenance of all its coefficients.
        source: where they come from.
    """

    name: str = Field(min_length=1)
    classes: tuple[LayerClass, ...] = Field(min_length=1)
    weight_bits: Width
    activation_bits: Width
    tile_pixels: int = Field(default=1, ge=1)
    tile_channels: int = Field(default=1, ge=1)
    k_multiple: int = Field(default=1, ge=1)
    block: int | None = Field(default=None, ge=1)
    terms: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(min_length=1)
    pack: dict[Bits, dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]] = Field(default_factory=dict)
    scratch: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    kernel_sizes: tuple[tuple[int, int], ...] | None = None
    strides: tuple[tuple[int, int], ...] | None = None
    min_channels: int = Field(default=1, ge=1)
    kind: Kind
    source: str = Field(min_length=3)

    @field_validator("terms")
    @classmethod
    def _known_terms(cls, terms: dict[str, float]) -> dict[str, float]:
        return _known(terms, set(TERMS))

    @field_validator("pack")
    @classmethod
    def _known_pack(cls, pack: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
        if pack and set(pack) != {2, 4}:
            raise ValueError("pack must price both 2 and 4 bits, and nothing else")
        return {bits: _known(terms, set(TERMS)) for bits, terms in pack.items()}

    @field_validator("scratch")
    @classmethod
    def _known_scratch(cls, terms: dict[str, float]) -> dict[str, float]:
        return _known(terms, set(SCRATCH_TERMS))

    @model_validator(mode="after")
    def _block_is_priced(self) -> Kernel:
        if (self.block is None) != ("blocks" not in self.terms):
            raise ValueError("block and the term 'blocks' come together")
        return self

    @property
    def conditional(self) -> bool:
        """Whether it executes only some shapes of its classes."""
        return self.kernel_sizes is not None or self.strides is not None or self.min_channels > 1

    def executes(self, shape: LayerShape) -> bool:
        """Whether it executes layers of this geometry, whatever their precision."""
        return (
            shape.layer_class in self.classes
            and (self.kernel_sizes is None or shape.kernel in self.kernel_sizes)
            and (self.strides is None or shape.stride in self.strides)
            and shape.input_channels // shape.groups >= self.min_channels
        )


class Engine(Strict):
    """How a runtime computes, see the module docstring.

    Attributes:
        unit: what coefficients count.
        cycles_per_unit: cycles per instruction, or per cycle of a static bound; for nanoseconds one scale.
        combine: how compute and memory time add up.
        call: units per operation.
        weight_bandwidth_bytes_per_s: weights stream from their memory at this rate; absent: never the limit.
        activation_bandwidth_bytes_per_s: likewise inputs and outputs.
        output: units per output of a weighted layer that its kernel's terms leave out (requantizing).
        unpack: units per element to widen codes stored at 2 or 4 bits; absent: kernels run their own widths only.
        pack: units per element to store codes at 2 or 4 bits.
        thread_speedup: threads → how many times faster than one.
        kernels: see `Kernel`; a layer runs on the cheapest that fits.
    """

    unit: Literal["instructions", "cycles", "nanoseconds"]
    cycles_per_unit: Rate
    combine: Literal["max", "sum"] = "max"
    call: Figure
    weight_bandwidth_bytes_per_s: Rate | None = None
    activation_bandwidth_bytes_per_s: Rate | None = None
    output: Figure | None = None
    unpack: dict[Bits, Figure] = Field(default_factory=dict)
    pack: dict[Bits, Figure] = Field(default_factory=dict)
    thread_speedup: dict[int, Rate] = Field(default_factory=dict)
    kernels: tuple[Kernel, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Engine:
        for name, figures in (("unpack", self.unpack), ("pack", self.pack)):
            if figures and set(figures) != {2, 4}:
                raise ValueError(f"{name} must price both 2 and 4 bits, and nothing else")
        return self


def _known(terms: dict[str, float], known: set[str]) -> dict[str, float]:
    unknown = sorted(set(terms) - known)
    if unknown:
        raise ValueError(f"unknown terms {unknown}; known: {sorted(known)}")
    return terms
