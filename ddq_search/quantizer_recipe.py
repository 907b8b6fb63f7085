"""Policies as recipes of AI Edge Quantizer, which quantizes ``.tflite`` models layer by layer.

A recipe is a JSON list of entries, each with a regular expression that is searched in the names of an operation's
output tensors, an operation of TensorFlow Lite (``*`` for all), an algorithm, and precisions. The order of entries
follows the tool: an expression keeps the place of its first use, the last entry that matches an operation decides,
``*`` replaces what its expression said before, and an operation that nothing matches stays float (a pool, reshape or
other move follows its input).

One difference stays: the tool gives an operation's inputs and outputs one precision, a policy every tensor its own. We
write and read an entry's activation precision as that of the output.

Source: the recipes and the recipe manager of AI Edge Quantizer 0.10, our code.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from ddq_search.errors import PolicyError
from ddq_search.graph import SAME_GRID, WEIGHTED, ModelGraph, Operation, operations
from ddq_search.listing import some
from ddq_search.policy import Policy
from ddq_search.precision import FLOAT_BITS
from ddq_search.space import Role, SearchSpace

ANY_OPERATION, FLOAT_ALGORITHM, ALGORITHM = "*", "no_quantize", "min_max_uniform_quantize"
_OPERATIONS = {
    "input": "INPUT", "output": "OUTPUT", "linear": "FULLY_CONNECTED", "add": "ADD", "mul": "MUL", "mean": "MEAN",
    "max_pool2d": "MAX_POOL_2D", "avg_pool2d": "AVERAGE_POOL_2D", "concat": "CONCATENATION", "reshape": "RESHAPE",
    "transpose": "TRANSPOSE", "slice": "SLICE",
}  # fmt: skip
_FUNCTIONS = {"relu": "RELU", "hardswish": "HARD_SWISH", "sigmoid": "LOGISTIC", "tanh": "TANH", "gelu": "GELU"}
_FOUR_BIT_OPERATIONS = ("CONV_2D", "FULLY_CONNECTED")
"""What the tool quantizes statically with 4-bit weights."""


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression ({error})") from error
    return pattern


class _TensorConfig(BaseModel):
    model_config = ConfigDict(strict=True)
    num_bits: int
    dtype: Literal["INT", "UINT", "FLOAT"] = "INT"

    @property
    def bits(self) -> int:
        return FLOAT_BITS if self.dtype == "FLOAT" else self.num_bits


class _OperationConfig(BaseModel):
    model_config = ConfigDict(strict=True)
    weight_tensor_config: _TensorConfig | None = None
    activation_tensor_config: _TensorConfig | None = None


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True)
    regex: Annotated[str, AfterValidator(_compiles)]
    operation: str
    algorithm_key: str
    op_config: _OperationConfig = _OperationConfig()

    @model_validator(mode="after")
    def _says_something(self) -> _Entry:
        if self.algorithm_key != FLOAT_ALGORITHM and self.op_config.weight_tensor_config is None:
            raise ValueError("'op_config' has no 'weight_tensor_config'")
        return self

    def bits(self, role: Role) -> int:
        config = self.op_config
        tensor = config.weight_tensor_config if role == "weights" else config.activation_tensor_config
        return FLOAT_BITS if self.algorithm_key == FLOAT_ALGORITHM or tensor is None else tensor.bits


def to_recipe(policy: Policy, space: SearchSpace, graph: ModelGraph) -> str:
    """Returns the recipe of a policy: one entry per operation, its regular expression the whole name.

    Precisions that the tool has no kernels for are written all the same, with ``skip_checks``.

    Raises:
        PolicyError: float weights meet integer activations, which a recipe cannot say.
    """
    entries = []
    for op in operations(graph):
        weight_bits = policy.bits[space.weights_of[op.name]] if op.name in space.weights_of else None
        config = _config(op, weight_bits, policy.bits[space.activations_of[op.name]])
        entry = {"regex": f"(^|[/;]){re.escape(op.name)}([/;]|$)", "operation": _operation(op)}
        entries.append(
            entry | ({"algorithm_key": FLOAT_ALGORITHM} if config is None else {"algorithm_key": ALGORITHM, **config})
        )
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


def unsupported(policy: Policy, space: SearchSpace, graph: ModelGraph) -> list[str]:
    """Returns the operations whose precisions the tool has no kernels for."""
    names = []
    for op in operations(graph):
        weight_bits = policy.bits[space.weights_of[op.name]] if op.name in space.weights_of else None
        if not _is_supported(op, weight_bits, policy.bits[space.activations_of[op.name]]):
            names.append(op.name)
    return names


def from_recipe(document: list[Any], space: SearchSpace, graph: ModelGraph, path: Path) -> dict[str, int]:
    """Returns the bitwidths that a recipe gives to the variables of a search space.

    Raises:
        PolicyError: an entry is broken, matches no operation, or gives tied tensors different precisions; ``path`` and
            the entry's number (from 1) are in the message.
    """
    try:
        entries = TypeAdapter(list[_Entry]).validate_python(document)
    except ValidationError as error:
        raise PolicyError(f"{path}, {_first_problem(error)}") from error
    ops = list(operations(graph))
    for number, entry in enumerate(entries, 1):
        if not any(re.search(entry.regex, op.name) for op in ops):
            raise PolicyError(
                f"{path}, entry {number}: {entry.regex!r} matches no layer of this model; known are "
                f"{some(repr(op.name) for op in ops)}"
            )
    chosen = {op.name: _deciding(_in_order(entries), op) for op in ops}
    moves = {op.name for op in ops if op.kind in SAME_GRID}
    bits: dict[str, int] = {}
    for variable in space.variables:
        said = {
            member: FLOAT_BITS if decision is None else decision.bits(variable.role)
            for member in variable.members
            if (decision := chosen[member]) is not None or member not in moves
        }
        bits[variable.name] = next(iter(said.values()), FLOAT_BITS)
        for member, value in said.items():
            if value != bits[variable.name]:
                raise PolicyError(
                    f"{path}: {member!r} at {value} bits, but {variable.members[0]!r}, which shares its "
                    f"precision, at {bits[variable.name]}; make them equal"
                )
            if value not in variable.candidates:
                state = "stays float" if value == FLOAT_BITS else f"at {value} bits"
                raise PolicyError(
                    f"{path}: {variable.role} of {member!r} {state}; the candidates are {list(variable.candidates)}"
                )
    return bits


def _in_order(entries: list[_Entry]) -> list[_Entry]:
    scopes: dict[str, list[_Entry]] = {}
    for entry in entries:
        kept = [e for e in scopes.get(entry.regex, []) if ANY_OPERATION != entry.operation != e.operation]
        scopes[entry.regex] = [*kept, entry]
    return [entry for scope in scopes.values() for entry in scope]


def _deciding(entries: list[_Entry], op: Operation) -> _Entry | None:
    matching = [e for e in entries if e.operation in (ANY_OPERATION, _operation(op)) and re.search(e.regex, op.name)]
    return matching[-1] if matching else None


def _operation(op: Operation) -> str:
    if op.kind == "conv2d":
        return "DEPTHWISE_CONV_2D" if op.is_depthwise else "CONV_2D"
    if op.kind == "activation":
        return _FUNCTIONS.get(op.attributes["function"], ANY_OPERATION)
    return _OPERATIONS.get(op.kind, ANY_OPERATION)


def _is_supported(op: Operation, weight_bits: int | None, activation_bits: int) -> bool:
    widths = (4, 8) if _operation(op) in _FOUR_BIT_OPERATIONS else (8,)
    return activation_bits in (8, FLOAT_BITS) and weight_bits in (None, FLOAT_BITS, *widths)


def _config(op: Operation, weight_bits: int | None, activation_bits: int) -> dict[str, Any] | None:
    """The precisions of one entry; None where nothing is quantized."""
    if weight_bits in (None, FLOAT_BITS) and activation_bits == FLOAT_BITS:
        return None
    if weight_bits == FLOAT_BITS:
        raise PolicyError(
            f"layer {op.name!r} has float weights and {activation_bits}-bit activations, which a recipe cannot say"
        )
    config: dict[str, Any] = {}
    if activation_bits != FLOAT_BITS:
        config["activation_tensor_config"] = _tensor(activation_bits, "TENSORWISE", symmetric=False)
    granularity = "CHANNELWISE" if op.kind in WEIGHTED else "TENSORWISE"
    config |= {
        "weight_tensor_config": _tensor(weight_bits or 8, granularity, symmetric=True),
        "compute_precision": "INTEGER" if activation_bits != FLOAT_BITS else "FLOAT",
        "explicit_dequantize": activation_bits == FLOAT_BITS,
        "skip_checks": not _is_supported(op, weight_bits, activation_bits),
        "min_weight_elements": 0,
    }
    return {"op_config": config}


def _tensor(bits: int, granularity: str, *, symmetric: bool) -> dict[str, Any]:
    return {"num_bits": bits, "symmetric": symmetric, "granularity": granularity, "dtype": "INT"}


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    number, *rest = problem["loc"]
    message = problem["msg"].removeprefix("Value error, ")
    return f"entry {int(number) + 1}: " + (f"{'.'.join(map(str, rest))!r}: {message}" if rest else message)
