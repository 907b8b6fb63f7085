"""Every error a user can meet: one root, a few children, each also a standard exception."""

from __future__ import annotations


class DDQError(Exception):
    """Root of all errors raised on purpose; its message names the thing at fault and the remedy."""


class GraphError(DDQError, ValueError):
    """The model cannot be traced, or an operation is not understood."""


class SpaceError(DDQError, ValueError):
    """A rule, pin or candidate set does not fit the model or the device."""


class CostError(DDQError, ValueError):
    """A device profile is broken, or an operation or precision has no price."""


class BudgetError(DDQError, ValueError):
    """No policy meets the budgets."""


class PolicyError(DDQError, ValueError):
    """A policy file does not fit the model or the search space."""


class ConfigError(DDQError, ValueError):
    """A configuration value, flag or data source is wrong."""


class RunError(DDQError, RuntimeError):
    """A run directory or checkpoint is missing, broken or belongs to something else."""


class ExportError(DDQError, RuntimeError):
    """A policy cannot be expressed in the requested format."""


class VerificationError(DDQError, RuntimeError):
    """An exported artefact does not compute what was searched."""
