"""Which quantizers a supernet gets: one family, or several as strategies."""

from __future__ import annotations

from dataclasses import dataclass

from ddq_search.errors import ConfigError
from ddq_search.quantizers.contract import ActivationQuantizer, WeightQuantizer
from ddq_search.quantizers.registry import family
from ddq_search.quantizers.strategies import StrategyActivations, StrategyWeights


@dataclass(frozen=True)
class Quantizers:
    """Families of a supernet's quantizers, by name; several of one kind become strategies of every tensor.

    Attributes:
        weights: families of weights.
        activations: families of activation tensors.
    """

    weights: tuple[str, ...] = ("uniform",)
    activations: tuple[str, ...] = ("uniform",)

    def check(self) -> None:
        """Checks that every family exists and does what is asked of it.

        Raises:
            ConfigError: a family is unknown, is for the other kind of tensor, or cannot be a strategy beside others.
        """
        for kind, names in (("weights", self.weights), ("activations", self.activations)):
            if not names or len(set(names)) < len(names):
                raise ConfigError(f"quantizers of {kind}: name at least one family, each once; got {list(names)}")
            for name in names:
                if getattr(family(name), kind) is None:
                    raise ConfigError(f"quantizer family {name!r} does not quantize {kind}; choose another")
        for name in self.activations:
            if not family(name).uniform_activations:
                raise ConfigError(
                    f"the activation levels of quantizer family {name!r} are not uniform, so no integer program can "
                    "run them; choose another in search.activation_quantizers"
                )
        if self.points and self.codebook:
            raise ConfigError(
                f"quantizer families {', '.join(self.weights)} cannot be strategies of one network: weights have "
                "further points or a table of levels, not both"
            )

    @property
    def codebook(self) -> bool:
        """Whether weights are stored with a table of their levels."""
        return any(family(name).codebook for name in self.weights)

    @property
    def points(self) -> int:
        """Number of further points of multipoint weights."""
        return max(family(name).points for name in self.weights)

    def for_weights(self, candidates: tuple[int, ...], rows: int) -> WeightQuantizer:
        """Returns the quantizer of a weight tensor with so many output channels."""
        makers = [maker for name in self.weights if (maker := family(name).weights) is not None]
        if len(makers) == 1:
            return makers[0](candidates, rows)
        branches = [
            [(name, make((bits,), rows)) for name, make in zip(self.weights, makers, strict=True)]
            for bits in candidates
        ]
        quantizer = StrategyWeights(candidates, branches)
        quantizer.tabled, quantizer.points = self.codebook, self.points
        return quantizer

    def for_activations(self, candidates: tuple[int, ...], nonnegative: bool) -> ActivationQuantizer:
        """Returns the quantizer of an activation tensor."""
        makers = [maker for name in self.activations if (maker := family(name).activations) is not None]
        if len(makers) == 1:
            return makers[0](candidates, nonnegative)
        branches = [
            [(name, make((bits,), nonnegative)) for name, make in zip(self.activations, makers, strict=True)]
            for bits in candidates
        ]
        return StrategyActivations(candidates, branches, nonnegative)


UNIFORM = Quantizers()
