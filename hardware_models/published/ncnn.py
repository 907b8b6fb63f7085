"""ncnn's int8 benchmark: a board's coefficients from its own figures and from what other boards have in common.

Left out of all: boards with more than `MOST_THREADS` threads, and times of several threads where a network runs more
than 5 % slower than on fewer threads of the same cores (an overloaded or throttled board, not a property of the core).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from hardware_models.fitting import Array
from hardware_models.published.board_prior import BoardFigures, BoardPrior, board_figures, fit_prior
from hardware_models.published.check import Check, Point
from hardware_models.published.form import NCNN
from hardware_models.published.readings import Board, read

SUBJECT = "ncnn"
MOST_THREADS = 8
FEWEST_NETWORKS = 5
"""Boards with fewer networks are left out."""
BAR_PCT = 15.0
ONE_NUMBER = "squeezenet_1.1-227"
"""The number by which a new board is known: ncnn's smallest benchmark."""
PROFILES = {
    "cortex-a53-rk3399-ncnn": ("Rockchip RK3399 ", "cortex-a53", "1"),
    "cortex-a55-rk3566-ncnn": ("OrangePicm4", "cortex-a55", "1"),
    "cortex-a72-rpi4-ncnn": ("Raspberry Pi 4", "cortex-a72", "1"),
    "cortex-a76-rpi5-ncnn": ("Raspberry Pi 5", "cortex-a76", "1"),
}
"""Profile → start of the device's name, core, threads."""

_FAMILIES = {
    "little": ("cortex-a53", "cortex-a7", "cortex-a5"),
    "a55": ("cortex-a55",),
    "dot product": ("cortex-a76", "cortex-a78", "cortex-a720", "cortex-x", "neoverse", "taishan", "oryon"),
    "apple": ("apple",),
}
"""Family → beginnings of `group`; all others are big cores of ARMv8.0 and ARMv7."""
_CORTEX = ("cortex", "kryo")


def group(board: Board) -> str:
    """Returns the core as figures are grouped: annotations of clusters and makers shortened."""
    core = board.core.split(" ")[0]
    if "(a73" in core or "(a76" in core:
        return "cortex-" + core[core.index("(") + 1 : core.index("-")]
    return core


def family(board: Board) -> str:
    """Returns the family of cores whose boards share a mean."""
    for name, beginnings in _FAMILIES.items():
        if any(_is(group(board), beginning) for beginning in beginnings):
            return name
    return "big"


def covariates(board: Board, of_family: str) -> Array:
    """Returns what the mean of log coefficients depends on: one, log2 of threads, family."""
    return np.array([1.0, math.log2(int(board.threads)), *(float(of_family == name) for name in _FAMILIES)])


@cache
def boards() -> dict[Board, dict[str, float]]:
    """Returns milliseconds by network of every board that is used."""
    known: dict[Board, dict[str, float]] = defaultdict(dict)
    for row in read("ncnn.csv"):
        known[row.board][row.network] = row.milliseconds
    return {
        board: times
        for board, times in known.items()
        if len(times) >= FEWEST_NETWORKS and int(board.threads) <= MOST_THREADS and not _slowed(board, known)
    }


def figures(of: Sequence[tuple[Board, Mapping[str, float]]]) -> BoardFigures:
    """Returns the figures of boards given with milliseconds by network."""
    return board_figures(
        [
            (NCNN.design(list(times)), np.array(list(times.values())), covariates(board, family(board)))
            for board, times in of
        ]
    )


def prior(without_device: str | None = None, without_network: str | None = None) -> BoardPrior:
    """Returns the distribution of coefficients over boards, without a device or a network."""
    return fit_prior(
        figures(
            [
                (board, _without(times, without_network))
                for board, times in boards().items()
                if board.device != without_device
            ]
        )
    )


def fitted(others: BoardPrior, of: Sequence[tuple[Board, Mapping[str, float]]]) -> Array:
    """Returns the coefficients ``[B, F]`` of boards known by some networks, given a prior."""
    alternatives = [np.array([covariates(board, name) for board, _ in of]) for name in (*_FAMILIES, "big")]
    return others.coefficients(figures(of), alternatives)


def predict_new(core: str, threads: int, times: Mapping[str, float], network: str) -> float:
    """Returns milliseconds of a network on a board known by its core and the milliseconds of some networks.

    One number is enough; the others' boards tell the rest.
    """
    own = fitted(prior(), [(Board("new", core, str(threads)), times)])[0]
    return float(NCNN.counts(network) @ own)


def profile_board(name: str) -> Board:
    """Returns the board that a shipped profile describes."""
    start, core, threads = PROFILES[name]
    return next(
        board
        for board in boards()
        if board.device.startswith(start) and board.core == core and board.threads == threads
    )


def held_out(name: str) -> Check:
    """Returns the check of a shipped profile's own board."""
    board = profile_board(name)
    return Check(
        SUBJECT, f"int8 on {board.device}", _OWN, "ms", tuple(_device(board.device)[0][board]), BAR_PCT, (name,)
    )


def speedup(name: str, threads: int) -> float:
    """Returns how many times faster the board of a profile is with so many threads: geometric mean over networks."""
    board = profile_board(name)
    more = boards()[replace(board, threads=str(threads))]
    logs = [math.log(milliseconds / more[network]) for network, milliseconds in boards()[board].items()]
    return math.exp(sum(logs) / len(logs))


def coefficients(name: str) -> Array:
    """Returns the coefficients of a shipped profile: all figures of its board, the prior of all other devices."""
    board = profile_board(name)
    return np.asarray(fitted(prior(without_device=board.device), [(board, boards()[board])])[0])


def on_core(core: str) -> Check:
    """Returns the check of all boards of a core."""
    points = [point for board in boards() if group(board) == core for point in _device(board.device)[0][board]]
    profiles = tuple(name for name in PROFILES if group(profile_board(name)) == core)
    return Check(SUBJECT, f"int8 on {core}", _OWN, "ms", tuple(points), BAR_PCT, profiles)


def checks_of(name: str) -> list[Check]:
    """Returns the checks that a shipped profile rests on: its board, and all boards of its core."""
    return [held_out(name), on_core(group(profile_board(name)))]


def checks() -> list[Check]:
    """Returns int8 by core, on boards known by one number, on networks nobody measured, and on the profiles' boards."""
    devices = list(dict.fromkeys(board.device for board in boards()))
    every = tuple(point for device in devices for points in _device(device)[0].values() for point in points)
    result = [Check(SUBJECT, "int8 on all boards", _OWN, "ms", every)]
    result += [on_core(core) for core in sorted({group(board) for board in boards()})]
    one = {key: points for device in devices for key, points in _device(device)[1].items()}
    for what, kept in (("Cortex-A and Kryo", _CORTEX), ("all boards", ("",))):
        chosen = [
            (known, points) for (board, known), points in one.items() if any(_is(board.core, start) for start in kept)
        ]
        single = tuple(point for known, points in chosen if known == ONE_NUMBER for point in points)
        label = f"int8 on a new board from one number, {what}"
        result.append(Check(SUBJECT, f"{label}: {ONE_NUMBER}'s", _NEW, "ms", single, BAR_PCT))
        points_of_all = tuple(point for _, points in chosen for point in points)
        result.append(Check(SUBJECT, f"{label}: any network's", _NEW, "ms", points_of_all))
    return [*result, _unseen_networks(), *(held_out(name) for name in PROFILES)]


_OWN = "leave one network out on its board, prior of other devices"
_NEW = "leave one device out"


@cache
def _device(device: str) -> tuple[dict[Board, list[Point]], dict[tuple[Board, str], list[Point]]]:
    """Points of a device that the prior never saw: a network left out on its board, and boards known by one."""
    own: dict[Board, list[Point]] = defaultdict(list)
    one: dict[tuple[Board, str], list[Point]] = defaultdict(list)
    others = prior(without_device=device)
    cases = [(board, network) for board in boards() if board.device == device for network in boards()[board]]
    rest = [_without(boards()[board], network) for board, network in cases]
    held_out = fitted(others, [(board, times) for (board, _), times in zip(cases, rest, strict=True)])
    known = fitted(others, [(board, {network: boards()[board][network]}) for board, network in cases])
    for (board, network), times, most, least in zip(cases, rest, held_out, known, strict=True):
        own[board].append(_point(board, network, most))
        one[board, network] += [_point(board, other, least, f" from {network}") for other in times]
    return dict(own), dict(one)


def _unseen_networks() -> Check:
    """Every network left out on all boards: the form extrapolates to a network that nobody measured."""
    points = []
    for network in dict.fromkeys(network for times in boards().values() for network in times):
        others = prior(without_network=network)
        cases = [board for board, times in boards().items() if network in times]
        rest = [(board, _without(boards()[board], network)) for board in cases]
        points += [_point(board, network, own) for board, own in zip(cases, fitted(others, rest), strict=True)]
    return Check(SUBJECT, "int8 on all boards", "leave one network out, on all boards", "ms", tuple(points))


def _without(times: Mapping[str, float], network: str | None) -> dict[str, float]:
    return {name: milliseconds for name, milliseconds in times.items() if name != network}


def _point(board: Board, network: str, own: Array, note: str = "") -> Point:
    label = f"{board.device}, {board.core}, {board.threads} threads"
    return Point(label, network + note, boards()[board][network], float(NCNN.counts(network) @ own))


def _slowed(board: Board, known: dict[Board, dict[str, float]]) -> bool:
    fewer = [
        times
        for other, times in known.items()
        if (other.device, other.core) == (board.device, board.core) and int(other.threads) < int(board.threads)
    ]
    return any(
        known[board][network] > 1.05 * times[network] for times in fewer for network in known[board] if network in times
    )


def _is(core: str, beginning: str) -> bool:
    """Whether a core's name begins so, and not with a longer number: cortex-a7 is not cortex-a72."""
    rest = core.removeprefix(beginning)
    return core.startswith(beginning) and not (beginning[-1:].isdigit() and rest[:1].isdigit())
