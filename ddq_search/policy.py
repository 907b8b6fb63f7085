"""A policy: the bitwidth of every weight and activation tensor, as a file that people read and edit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddq_search.errors import PolicyError
from ddq_search.space import SearchSpace

FORMAT = "ddq-search policy"
VERSION = 1


@dataclass(frozen=True)
class Policy:
    """Bitwidths by variable name, and what is known about them.

    Attributes:
        name: short name, unique within a run.
        bits: variable name (``weights/conv1``) → bitwidth.
        origin: ``search`` (within every budget), ``relaxed`` (what a looser budget would buy), ``uniform``, ``user``.
        facts: metrics and costs, for the reader; nothing is computed from them.
    """

    name: str
    bits: Mapping[str, int]
    origin: str = "user"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def by_role(self) -> dict[str, dict[str, int]]:
        """Returns ``{"weights": {layer: bits}, "activations": {tensor: bits}}``."""
        result: dict[str, dict[str, int]] = {"weights": {}, "activations": {}}
        for name, bits in self.bits.items():
            role, _, key = name.partition("/")
            result[role][key] = bits
        return result

    def to_json(self) -> str:
        """Returns the versioned JSON of this policy."""
        document = {"format": FORMAT, "version": VERSION, "name": self.name, "origin": self.origin}
        return json.dumps(document | self.by_role() | {"facts": dict(self.facts)}, indent=2)


def uniform(space: SearchSpace, weight_bits: int, activation_bits: int) -> dict[str, int]:
    """Returns the bits of a uniform policy: its widest candidate not above the wish, else the narrowest."""
    wish = {"weights": weight_bits, "activations": activation_bits}
    return {
        v.name: max((b for b in v.candidates if b <= wish[v.role]), default=v.candidates[0]) for v in space.variables
    }


def read_policy(path: Path, space: SearchSpace) -> Policy:
    """Returns the policy in a file, checked against the search space.

    Raises:
        PolicyError: the file is missing or broken, or a layer is unknown, missing or at an illegal bitwidth.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyError(f"cannot read policy {path}: {error.strerror}") from error
    except ValueError as error:
        raise PolicyError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("version") != VERSION:
        raise PolicyError(f"{path} is not a version {VERSION} {FORMAT!r} file")
    bits: dict[str, int] = {}
    for role in ("weights", "activations"):
        entries = document.get(role)
        if not isinstance(entries, dict):
            raise PolicyError(f"{path}: {role!r} must map names to bitwidths")
        bits.update({f"{role}/{key}": value for key, value in entries.items()})
    _check(path, bits, space)
    ordered = {variable.name: bits[variable.name] for variable in space.variables}
    return Policy(str(document.get("name", path.stem)), ordered, "user", document.get("facts") or {})


def _check(path: Path, bits: Mapping[str, Any], space: SearchSpace) -> None:
    known = {variable.name: variable for variable in space.variables}
    for name, value in bits.items():
        if name not in known:
            raise PolicyError(f"{path}: {name!r} is not in this model; known are {_some(known)}")
        if type(value) is not int or value not in known[name].candidates:
            raise PolicyError(f"{path}: {name!r} at {value!r} bits; its candidates are {list(known[name].candidates)}")
    missing = [name for name in known if name not in bits]
    if missing:
        raise PolicyError(f"{path}: no bitwidth for {_some(missing)}")


def _some(names: Any) -> str:
    listed = list(names)
    return ", ".join(map(repr, listed[:5])) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
