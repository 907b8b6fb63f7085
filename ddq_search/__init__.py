"""ddq-search: the precision of every layer of a neural network, searched for an ARM device."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Supernet": "ddq_search.supernet",
    "build_space": "ddq_search.space",
    "Rule": "ddq_search.space",
    "CostTables": "ddq_search.cost",
    "Budgeted": "ddq_search.api",
    "wrap": "ddq_search.api",
    "find": "ddq_search.api",
    "load_config": "ddq_search.config",
    "LoaderSource": "ddq_search.task",
    "DDQError": "ddq_search.errors",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    """Loads public names when they are first used, so that `import reports` stays free of torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ddq_search' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
