"""Policies in the formats of other tools: a plain per-layer CSV, and AI Edge Quantizer's recipe.

The CSV (RFC 4180, UTF-8) has one row per operation, in execution order::

    layer,weight_bits,activation_bits
    conv1,4,8
    add,,8

``activation_bits`` is the precision of the operation's output. Rows of tied tensors repeat one decision; a file that is
read may leave repeated cells empty, but no decision open.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from ddq_search.errors import PolicyError
from ddq_search.graph import ModelGraph
from ddq_search.listing import some
from ddq_search.policy import Policy, checked, parse_policy, read_json
from ddq_search.quantizer_recipe import from_recipe, to_recipe
from ddq_search.space import Role, SearchSpace

FORMATS = ("json", "csv", "recipe")
SUFFIXES = (".json", ".csv")
"""File names that are read as policies; a JSON list is a recipe."""
COLUMNS = ("layer", "weight_bits", "activation_bits")
_ROLES: dict[str, Role] = {"weight_bits": "weights", "activation_bits": "activations"}


def read_any_policy(path: Path, space: SearchSpace, graph: ModelGraph) -> Policy:
    """Returns the policy in a file of any format, checked against the search space.

    Raises:
        PolicyError: the file is missing or broken, or a layer is unknown, missing or at an illegal bitwidth; the
            message names the line, entry or layer.
    """
    if path.suffix.lower() == ".csv":
        return Policy(path.stem, checked(_read_csv(path, space), space, path))
    document = read_json(path)
    if isinstance(document, list):
        return Policy(path.stem, checked(from_recipe(document, space, graph, path), space, path))
    return parse_policy(document, space, path)


def write_policy(policy: Policy, space: SearchSpace, graph: ModelGraph, wanted: str) -> str:
    """Returns the text of a policy in one of `FORMATS`.

    Raises:
        PolicyError: the format is unknown, or cannot say what the policy says.
    """
    if wanted == "json":
        return policy.to_json() + "\n"
    if wanted == "csv":
        return _csv(policy, space)
    if wanted == "recipe":
        return to_recipe(policy, space, graph)
    raise PolicyError(f"unknown policy format {wanted!r}; available: {', '.join(FORMATS)}")


def _csv(policy: Policy, space: SearchSpace) -> str:
    owners = _owners(space)
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\r\n")
    rows.writerow(COLUMNS)
    for layer in dict.fromkeys(layer for layer, _ in owners):
        names = [owners.get((layer, role)) for role in _ROLES.values()]
        rows.writerow([layer, *("" if name is None else policy.bits[name] for name in names)])
    return text.getvalue()


def _read_csv(path: Path, space: SearchSpace) -> dict[str, int]:
    owners, bits, said = _owners(space), dict[str, int](), dict[str, int]()
    layers = dict.fromkeys(layer for layer, _ in owners)
    for line, row in _rows(path):
        layer = row["layer"]
        if layer not in layers:
            raise PolicyError(
                f"{path}, line {line}: no layer {layer!r} in this model; known are {some(map(repr, layers))}"
            )
        for column, role in _ROLES.items():
            cell, name = row[column].strip(), owners.get((layer, role))
            if not cell:
                continue
            where = f"{path}, line {line}: {column} of {layer!r}"
            if name is None:
                raise PolicyError(f"{where} is {cell}, but this operation has no weights; leave the cell empty")
            candidates = space[name].candidates
            if cell not in map(str, candidates):
                raise PolicyError(f"{where} is {cell!r}; its candidates are {list(candidates)}")
            if bits.setdefault(name, int(cell)) != int(cell):
                raise PolicyError(
                    f"{where} is {cell}, line {said[name]} said {bits[name]} for {name!r}, which both belong to; "
                    "make them equal or leave one empty"
                )
            said.setdefault(name, line)
    return bits


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields line numbers and rows of a file with exactly our columns."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PolicyError(f"cannot read policy {path}: {error.strerror}") from error
    except ValueError as error:
        raise PolicyError(f"{path} is not UTF-8 text: {error}") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        if sorted(header) != sorted(COLUMNS):
            raise PolicyError(f"{path}, line 1: the columns must be {','.join(COLUMNS)}, not {','.join(header)!r}")
        for cells in reader:
            if cells and len(cells) != len(COLUMNS):
                raise PolicyError(f"{path}, line {reader.line_num}: {len(cells)} cells instead of {len(COLUMNS)}")
            if cells:
                yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise PolicyError(f"{path}, line {reader.line_num} is not CSV: {error}") from error


def _owners(space: SearchSpace) -> dict[tuple[str, Role], str]:
    """(operation, role) → name of the variable it belongs to; operations in execution order."""
    owners = {(member, v.role): v.name for v in space.variables for member in v.members}
    order = {name: position for position, name in enumerate(space.activations_of)}
    return dict(sorted(owners.items(), key=lambda item: order.get(item[0][0], len(order))))
