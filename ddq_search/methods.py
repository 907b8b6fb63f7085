"""The methods by name, and which quantizers each uses unless the configuration says otherwise."""

from __future__ import annotations

from ddq_search.config import SearchConfig
from ddq_search.quantizers.choice_of_families import Quantizers

MIXING = ("edmips", "fracbits", "bayesian-bits", "dqss")
"""Methods whose networks mix all candidates of a tensor (`ddq_search.quantizers.relaxations`)."""

INFERRING = ("dq",)
"""Methods whose quantizers imply the bitwidth by their own parameters."""

_TRAINED = Quantizers(("uniform", "lsq", "dorefa"), ("uniform", "lsq", "pact"))
_CALIBRATED = Quantizers(
    ("min-max", "percentile", "mse", "kl", "aciq", "cosine"), ("min-max", "percentile", "mse", "kl", "aciq", "cosine")
)
"""Strategies of DQSS: with and without training of weights."""


def quantizers_of(search: SearchConfig) -> Quantizers:
    """Returns the quantizers of a search.

    Raises:
        ConfigError: a family is unknown or does not fit.
    """
    own = Quantizers()
    if search.method == "dqss":
        own = _CALIBRATED if search.mode == "ptq" else _TRAINED
    elif search.method in INFERRING:
        own = Quantizers(("dq-u3",), ("dq-u3",))
    found = Quantizers(search.weight_quantizers or own.weights, search.activation_quantizers or own.activations)
    found.check()
    return found
