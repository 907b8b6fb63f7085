"""A policy: the bitwidth of every weight and activation tensor, as a file that people read and edit.

The file is described by ``schemas/policy.schema.json``, generated from `PolicyDocument`: one definition checks what is
read and documents what is written, and pydantic is a dependency already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddq_search.errors import PolicyError
from ddq_search.listing import some
from ddq_search.precision import FLOAT_BITS
from ddq_search.space import SearchSpace

FORMAT = "ddq-search policy"
VERSION = 1
SCHEMA_FILE = Path(__file__).parent / "schemas" / "policy.schema.json"


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


Bits = Annotated[int, Field(ge=1, le=FLOAT_BITS)]


class PolicyDocument(BaseModel):
    """Bitwidths of all weights and activations of a model, found or edited for ddq-search."""

    model_config = ConfigDict(extra="forbid", strict=True, title="ddq-search policy")

    schema_: str = Field("", alias="$schema", description="address of this schema, for editors")
    format: Literal["ddq-search policy"] = Field(description="what this file is")
    version: Literal[1] = Field(description="version of the format")
    name: str = Field("", description="short name of the policy; the file's name where it is empty")
    origin: str = Field("user", description="search, relaxed, uniform or user")
    weights: dict[str, Bits] = Field(description="layer → bitwidth of its weights; 32 is float32")
    activations: dict[str, Bits] = Field(
        description="first tensor of a group of tied tensors → bitwidth of the group; 32 is float32"
    )
    facts: dict[str, Any] | None = Field(
        None, description="metrics and costs for the reader; nothing is read from them"
    )


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema of a policy file, as it is shipped in `SCHEMA_FILE`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **PolicyDocument.model_json_schema()}


def uniform(space: SearchSpace, weight_bits: int, activation_bits: int) -> dict[str, int]:
    """Returns the bits of a uniform policy: its widest candidate not above the wish, else the narrowest."""
    wish = {"weights": weight_bits, "activations": activation_bits}
    return {
        v.name: max((b for b in v.candidates if b <= wish[v.role]), default=v.candidates[0]) for v in space.variables
    }


def read_policy(path: Path, space: SearchSpace) -> Policy:
    """Returns the policy in a JSON file, checked against the search space.

    Raises:
        PolicyError: the file is missing or broken, or a layer is unknown, missing or at an illegal bitwidth.
    """
    return parse_policy(read_json(path), space, path)


def read_json(path: Path) -> Any:
    """Returns the JSON in a file; a key given twice is an error.

    Raises:
        PolicyError: the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except OSError as error:
        raise PolicyError(f"cannot read policy {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{path} is not JSON: {error}") from error


def parse_policy(document: Any, space: SearchSpace, path: Path) -> Policy:
    """Returns the policy in a JSON document, checked against the search space; ``path`` is what messages name.

    Raises:
        PolicyError: as `read_policy`.
    """
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("version") != VERSION:
        raise PolicyError(f"{path} is not a version {VERSION} {FORMAT!r} file")
    try:
        parsed = PolicyDocument.model_validate(document)
    except ValidationError as error:
        raise PolicyError(f"{path}: {_first_problem(error, space)}") from error
    bits = {f"weights/{key}": value for key, value in parsed.weights.items()}
    bits |= {f"activations/{key}": value for key, value in parsed.activations.items()}
    return Policy(parsed.name or path.stem, checked(bits, space, path), "user", parsed.facts or {})


def checked(bits: Mapping[str, int], space: SearchSpace, path: Path) -> dict[str, int]:
    """Returns bitwidths in the order of the search space, every variable at one of its candidates.

    Raises:
        PolicyError: a variable is unknown, missing or at an illegal bitwidth; ``path`` is what the message names.
    """
    known = {variable.name: variable for variable in space.variables}
    for name, value in bits.items():
        if name not in known:
            raise PolicyError(f"{path}: {name!r} is not in this model; known are {some(map(repr, known))}")
        if value not in known[name].candidates:
            raise PolicyError(f"{path}: {name!r} at {value!r} bits; its candidates are {list(known[name].candidates)}")
    missing = [name for name in known if name not in bits]
    if missing:
        raise PolicyError(f"{path}: no bitwidth for {some(map(repr, missing))}")
    return {name: bits[name] for name in known}


def _first_problem(error: ValidationError, space: SearchSpace) -> str:
    problem = error.errors(include_url=False)[0]
    role, *rest = (str(part) for part in problem["loc"])
    if role in ("weights", "activations") and rest:
        name = f"{role}/{rest[0]}"
        allowed = next((f"its candidates are {list(v.candidates)}" for v in space.variables if v.name == name), "")
        return f"{name!r} at {problem['input']!r} bits; {allowed or f'a bitwidth is a whole number up to {FLOAT_BITS}'}"
    if role in ("weights", "activations"):
        return f"{role!r} must map names to bitwidths"
    return f"{role!r}: {problem['msg']}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return result
