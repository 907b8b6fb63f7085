"""The methods by name, and which quantizers each uses unless the configuration says otherwise."""

from __future__ import annotations

from typing import Literal

from ddq_search.config import RunConfig
from ddq_search.errors import ConfigError
from ddq_search.quantizers.choice_of_families import Quantizers
from ddq_search.quantizers.contract import Quantizer
from ddq_search.quantizers.registry import families

MIXING = ("edmips", "fracbits", "bayesian-bits", "dqss")
"""Methods whose networks mix all candidates of a tensor (`ddq_search.quantizers.relaxations`)."""

INFERRING = ("dq",)
"""Methods whose quantizers imply the bitwidth by their own parameters."""

_TRAINED = Quantizers(("uniform", "lsq", "dorefa"), ("uniform", "lsq", "pact"))
_CALIBRATED = Quantizers(
    ("min-max", "percentile", "mse", "kl", "aciq", "cosine"), ("min-max", "percentile", "mse", "kl", "aciq", "cosine")
)
"""Strategies of DQSS: with and without training of weights."""


def quantizers_of(config: RunConfig) -> Quantizers:
    """Returns the quantizers of a search.

    Raises:
        ConfigError: a family is unknown or does not fit the method, or an option belongs to none of them.
    """
    search, own = config.search, Quantizers()
    if search.method == "dqss":
        own = _CALIBRATED if search.mode == "ptq" else _TRAINED
    elif search.method == "lsq-uniform":
        own = Quantizers(("lsq",), ("lsq",))
    elif search.method in INFERRING:
        own = Quantizers(("dq-u3",), ("dq-u3",))
    found = Quantizers(
        search.weight_quantizers or own.weights, search.activation_quantizers or own.activations,
        config.quantizers.given(),
    )  # fmt: skip
    found.check()
    if "gate_gradient" in found.options and search.method != "ddq":
        raise ConfigError(f"quantizers.gate_gradient: method {search.method!r} has no gates; leave it out or use 'ddq'")
    if search.method in INFERRING:
        _require_implied("weights", found.weights)
        _require_implied("activations", found.activations)
    return found


def _require_implied(kind: Literal["weights", "activations"], names: tuple[str, ...]) -> None:
    """Requires one family, whose quantizers imply the bitwidth."""
    fit = [name for name, one in families().items() if _implies(getattr(one, kind))]
    if len(names) != 1 or names[0] not in fit:
        key = "search.weight_quantizers" if kind == "weights" else "search.activation_quantizers"
        raise ConfigError(
            f"method 'dq' needs one family of {kind} whose quantizers imply the bitwidth, not {', '.join(names)}; "
            f"{key} may be {', '.join(fit)}"
        )


def _implies(quantizer: object) -> bool:
    """Whether a class of quantizers has a bitwidth of its own."""
    own = getattr(quantizer, "probabilities", Quantizer.probabilities)
    return own is not Quantizer.probabilities
