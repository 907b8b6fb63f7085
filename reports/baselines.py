"""By how much hypervolume a search beats other ways of choosing policies, over seeds, with an interval.

Runs of one model, data, method, device and budgets form a group. For every seed the hypervolumes of the searched
points, the uniform ones and each baseline's, all within the budgets, are compared under one reference, which is spanned
by all points of all the group's seeds; a baseline that found no policy has none. The interval is Student's t over the
seeds' paired differences; one seed has none, and that of two is honest but very wide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from reports.hypervolume import Reference, hypervolume
from reports.palette import COSTS
from reports.record import RunRecord

CONFIDENCE = 0.95


def facts(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Returns one row per (group, cost, baseline).

    Columns: ``group`` (model, data, device and budgets in words), ``cost``, ``kind`` (``uniform`` included), ``seeds``,
    ``search`` and ``baseline`` (mean hypervolumes), ``difference`` (mean of search − baseline), ``low`` and ``high`` of
    its interval (NaN for one seed).
    """
    rows = []
    for group, members in _groups(records).items():
        for cost in [cost for cost in members[0].budgets if cost in COSTS] or ["latency_s"]:
            pool = pd.concat([_points(record, cost) for record in members])
            reference = Reference.around(pool["val_loss"], pool[cost])
            volumes = pd.DataFrame([_volumes(record, cost, reference) for record in members]).fillna(0.0)
            for kind in [column for column in volumes if column != "search"]:
                differences = (volumes["search"] - volumes[kind]).to_numpy()
                low, high = interval(differences)
                rows.append({
                    "group": group, "cost": cost, "kind": kind, "seeds": len(members),
                    "search": float(volumes["search"].mean()), "baseline": float(volumes[kind].mean()),
                    "difference": float(differences.mean()), "low": low, "high": high,
                })  # fmt: skip
    return pd.DataFrame(rows)


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Returns Student's t interval of the mean of paired differences; NaN for a single one.

    >>> interval(np.array([0.1]))
    (nan, nan)
    >>> low, high = interval(np.array([0.1, 0.2, 0.3]))
    >>> f"{low:.3f} {high:.3f}"
    '-0.048 0.448'
    """
    if len(differences) < 2:
        return float("nan"), float("nan")
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)
    mean, half = differences.mean(), quantile * differences.std(ddof=1) / np.sqrt(len(differences))
    return float(mean - half), float(mean + half)


def sentences(records: Sequence[RunRecord]) -> list[str]:
    """Returns the comparison in words, one sentence per cost and baseline; nothing where no run has baselines."""
    if not any(len(record.baselines) for record in records):
        return []
    return [_sentence(row) for _, row in facts(records).iterrows()]


def _sentence(row: pd.Series) -> str:
    what = f"{COSTS[row['cost']].title}, {row['seeds']} seed{'s' if row['seeds'] > 1 else ''}"
    numbers = f"{row['search']:.3f} against {row['baseline']:.3f} of {row['kind']}"
    if np.isnan(row["low"]):
        verdict = "more" if row["difference"] > 0 else "not more"
        return f"Hypervolume over {what}: {numbers}, {verdict}; one seed gives no interval."
    undecided = "no difference shown" + ("; two seeds give a very wide interval, add a third" * (row["seeds"] == 2))
    verdict = "the search wins" if row["low"] > 0 else "the search loses" if row["high"] < 0 else undecided
    return (
        f"Hypervolume over {what}: {numbers}, difference {row['difference']:+.3f} "
        f"(95 % t interval {row['low']:+.3f} … {row['high']:+.3f}): {verdict}."
    )


def _groups(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        budgets = ", ".join(f"{cost} {limit:.6g}" for cost, limit in sorted(record.budgets.items()))
        key = " · ".join(
            [
                record.front["model"],
                record.front["data"],
                record.front["method"],
                record.device["name"],
                budgets or "no budgets",
            ]
        )
        groups.setdefault(key, []).append(record)
    return groups


def _points(record: RunRecord, cost: str) -> pd.DataFrame:
    """Loss, cost and kind of the searched and uniform points within the budgets, and of all baselines."""
    points = record.points[record.points["within_budgets"].astype(bool)]
    searched = points[points["origin"] == "search"].assign(kind="search")
    uniform = points[points["origin"] == "uniform"].assign(kind="uniform")
    parts = [part[["val_loss", cost, "kind"]] for part in (searched, uniform, record.baselines) if len(part)]
    return pd.concat(parts)


def _volumes(record: RunRecord, cost: str, reference: Reference) -> dict[str, float]:
    return {
        str(kind): hypervolume(points["val_loss"], points[cost], reference)
        for kind, points in _points(record, cost).groupby("kind", sort=False)
    }
