"""Tables contracted with probabilities: the arithmetic under `ddq_search.cost`.

Factors are grouped by the number of their variables, so that a table over two variables costs C² products and not C³;
for sums over factors, those over the same variables are merged first. At one-hot probabilities every contraction is
one entry of a table, so looking entries up gives the same numbers to the last digit.

Legend: V variables, C candidates of the widest variable, F factors of a group, N policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Table = tuple[tuple[str, ...], NDArray[np.float64]]
"""Names of the variables, and a table with one axis for each."""


class Contraction:
    """Some tables, compiled.

    Attributes:
        grouped: ``[all F]`` index of the given table at every place of what `values` and `entries` return.
    """

    def __init__(self, tables: Sequence[Table], variables: Mapping[str, int], width: int) -> None:
        self._width = width
        self._groups: list[tuple[Tensor, Tensor]] = []  # where [F, k], tables [F, C, …, C]
        order: list[int] = []
        for arity in range(4):
            members = [index for index, (names, _) in enumerate(tables) if len(names) == arity]
            padded = np.zeros((len(members), *[width] * arity))
            where = np.zeros((len(members), arity), dtype=np.int64)
            for row, index in enumerate(members):
                names, table = tables[index]
                corner: list[slice | int] = [row, *map(slice, table.shape)]
                padded[tuple(corner)] = table
                where[row] = [variables[name] for name in names]
            if members:
                self._groups.append((torch.from_numpy(where), torch.from_numpy(padded)))
            order += members
        self.grouped = torch.tensor(order)

    def to(self, device: torch.device) -> None:
        """Moves the tables to a device, once."""
        if self._groups and self._groups[0][1].device != device:
            self._groups = [(where.to(device), tables.to(device)) for where, tables in self._groups]

    def values(self, probabilities: Tensor) -> Tensor:
        """Returns the expectation of every table ``[..., all F]`` for probabilities ``[..., V, C]``, by arity."""
        self.to(probabilities.device)
        batch = probabilities.shape[:-2]
        found = []
        for where, tables in self._groups:
            value = tables
            for axis in reversed(range(where.shape[1])):
                rows = probabilities[..., where[:, axis], :]
                value = (value * rows.reshape(*rows.shape[:-1], *[1] * axis, self._width)).sum(-1)
            found.append(value.expand(*batch, len(where)))
        return torch.cat(found, -1)

    def entries(self, choices: Tensor) -> Tensor:
        """Returns one entry of every table ``[N, all F]`` for chosen candidates ``[N, V]`` int64, by arity.

        Time and memory are proportional to N · F. Whole rows of the transposed choices are copied, in 32 bits.
        """
        self.to(choices.device)
        columns = choices.T.int().contiguous()
        found = []
        for where, tables in self._groups:
            count, arity = where.shape
            first = torch.arange(count, dtype=torch.int32, device=columns.device) * self._width**arity
            index = first[:, None].expand(count, len(choices))
            for axis in range(arity):
                index = index.add(columns[where[:, axis]], alpha=self._width ** (arity - 1 - axis))
            found.append(tables.flatten().index_select(0, index.T.reshape(-1)).view(len(choices), count))
        return torch.cat(found, -1)


def merged(tables: Sequence[Table]) -> list[Table]:
    """Returns the tables with those over the same variables added up, whatever the order of their axes."""
    sums: dict[tuple[str, ...], NDArray[np.float64]] = {}
    for names, table in tables:
        axes = sorted(range(len(names)), key=names.__getitem__)
        key = tuple(names[axis] for axis in axes)
        turned = table.transpose(axes)
        sums[key] = sums[key] + turned if key in sums else turned
    return list(sums.items())
