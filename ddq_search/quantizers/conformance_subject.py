"""What a law of `ddq_search.quantizers.conformance` is checked on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddq_search.precision import FLOAT_BITS, activation_code_range, weight_code_range
from ddq_search.quantizers.contract import Quantizer
from ddq_search.quantizers.registry import Family

CANDIDATES = (2, 4, 8)
"""Candidates that most laws are checked with."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One role of one family.

    Attributes:
        family: the family.
        role: ``weights``, ``two-sided activations`` or ``one-sided activations``.
        make: candidates → a fresh quantizer.
        sample: 10⁵ values: weights of rows of very different size, or images.
    """

    family: Family
    role: str
    make: Callable[[tuple[int, ...]], Quantizer]
    sample: Tensor
    _calibrated: dict[Any, tuple[Quantizer, Tensor | None]] = field(default_factory=dict)

    @property
    def is_weights(self) -> bool:
        """Whether the tensor is a weight."""
        return self.role == "weights"

    @property
    def is_deployable(self) -> bool:
        """Whether an integer program can run it."""
        return self.is_weights or self.family.uniform_activations

    def calibrated(self, candidates: tuple[int, ...] = CANDIDATES, sample: Tensor | None = None) -> Quantizer:
        """Returns a quantizer of its own that was calibrated, on the small part of the sample by default."""
        key = candidates, None if sample is None else id(sample)
        if key not in self._calibrated:
            quantizer = self.make(candidates)
            quantizer.calibrate(self.small if sample is None else sample)
            self._calibrated[key] = quantizer, sample
        return copy.deepcopy(self._calibrated[key][0])

    @property
    def small(self) -> Tensor:
        """A part of the sample, for laws that need no large one."""
        return self.sample[:, :10].contiguous() if self.is_weights else self.sample[:8].contiguous()

    def code_range(self, bits: int) -> tuple[int, int]:
        """Returns the smallest and largest code at ``bits``."""
        if self.is_weights and not self.family.codebook:
            return weight_code_range(bits)
        return activation_code_range(bits)

    def looked_up(self, levels: Tensor, codes: Tensor, bits: int) -> Tensor:
        """Returns the levels (``[rows, n]`` or ``[n]``) of codes."""
        low = -(levels.shape[-1] // 2) if self.family.points and self.is_weights else self.code_range(bits)[0]
        index = (codes.long() - low).flatten(1) if self.is_weights else (codes.long() - low).flatten()
        found = levels.gather(1, index) if self.is_weights else levels[index]
        return found.reshape(codes.shape)


def integers(quantizer: Quantizer) -> list[tuple[int, int]]:
    """Returns (index, bits) of every integer candidate."""
    return [(k, bits) for k, bits in enumerate(quantizer.candidates) if bits != FLOAT_BITS]


def same(found: Tensor, expected: Tensor, what: str) -> None:
    """Requires two tensors to be equal to the last bit."""
    assert found.shape == expected.shape, f"{what}: shape {list(found.shape)}, not {list(expected.shape)}"
    difference = (found - expected).abs().max().item() if found.numel() else 0.0
    assert torch.equal(found, expected), f"{what}: values differ by up to {difference:.3g}"


def close(found: Tensor, expected: Tensor, what: str, tolerance: float = 1e-3) -> None:
    """Requires two tensors to be equal up to a part of the largest expected magnitude."""
    assert found.shape == expected.shape, f"{what}: shape {list(found.shape)}, not {list(expected.shape)}"
    bound = tolerance * float(expected.abs().max().clamp_min(1e-6))
    worst = float((found - expected).abs().max())
    assert worst <= bound, f"{what}: off by {worst:.3g}, expected {expected.flatten()[:4].tolist()} …"
