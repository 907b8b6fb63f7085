"""Which quantizers a supernet gets: one family, or several as strategies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ddq_search.errors import ConfigError
from ddq_search.quantizers.contract import ActivationQuantizer, WeightQuantizer
from ddq_search.quantizers.registry import families, family
from ddq_search.quantizers.strategies import StrategyActivations, StrategyWeights


@dataclass(frozen=True)
class Quantizers:
    """Families of a supernet's quantizers, by name; several of one kind become strategies of every tensor.

    Attributes:
        weights: families of weights.
        activations: families of activation tensors.
        options: name → value; families that have no option of that name do not see it.
    """

    weights: tuple[str, ...] = ("uniform",)
    activations: tuple[str, ...] = ("uniform",)
    options: Mapping[str, bool | float | str] = field(default_factory=dict)

    def check(self) -> None:
        """Checks that every family exists and does what is asked of it.

        Raises:
            ConfigError: a family is unknown, is for the other kind of tensor, or cannot be a strategy beside others, or
                an option belongs to none of them.
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
        chosen = [family(name) for name in dict.fromkeys((*self.weights, *self.activations))]
        for option in self.options:
            if not any(option in one.options for one in chosen):
                have = [one.name for one in families().values() if option in one.options]
                raise ConfigError(
                    f"no quantizer family among {', '.join(one.name for one in chosen)} has the option "
                    f"quantizers.{option}; it belongs to {', '.join(have)} (search.weight_quantizers, "
                    "search.activation_quantizers)"
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
        """Number of further points of multipoint weights, the option's where it is set."""
        asked = self.options.get("further_points")
        chosen = [family(name) for name in self.weights]
        return max(one.points if asked is None or "further_points" not in one.options else int(asked) for one in chosen)

    def for_weights(self, candidates: tuple[int, ...], rows: int) -> WeightQuantizer:
        """Returns the quantizer of a weight tensor with so many output channels."""
        makers = self._makers("weights")
        if len(makers) == 1:
            only: WeightQuantizer = makers[0](candidates, rows)
            return only
        branches = [
            [(name, make((bits,), rows)) for name, make in zip(self.weights, makers, strict=True)]
            for bits in candidates
        ]
        quantizer = StrategyWeights(candidates, branches)
        quantizer.tabled, quantizer.points = self.codebook, self.points
        return quantizer

    def for_activations(self, candidates: tuple[int, ...], nonnegative: bool) -> ActivationQuantizer:
        """Returns the quantizer of an activation tensor."""
        makers = self._makers("activations")
        if len(makers) == 1:
            only: ActivationQuantizer = makers[0](candidates, nonnegative)
            return only
        branches = [
            [(name, make((bits,), nonnegative)) for name, make in zip(self.activations, makers, strict=True)]
            for bits in candidates
        ]
        return StrategyActivations(candidates, branches, nonnegative)

    def _makers(self, kind: Literal["weights", "activations"]) -> list[Callable[..., Any]]:
        """Returns what makes the quantizers of every family of a kind, its options set."""
        found = []
        for name in getattr(self, kind):
            maker = getattr(family(name), kind)
            own = {option: value for option, value in self.options.items() if option in family(name).options}
            found.append(with_options(maker, own))
        return found


def with_options(quantizer: Any, options: Mapping[str, bool | float | str]) -> Any:
    """Returns a quantizer class with other values of some of its attributes.

    >>> with_options(WeightQuantizer, {"correction": 0.5}).correction, WeightQuantizer.correction
    (0.5, 0.0)
    """
    return type(quantizer.__name__, (quantizer,), dict(options)) if options else quantizer


UNIFORM = Quantizers()
