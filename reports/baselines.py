"""By how much hypervolume a search beats other ways of choosing policies, over seeds, with an interval.

Runs that differ in nothing but their seed form a group; a seed that comes again counts once. For every seed the
hypervolumes of the searched points, the uniform ones and each baseline's, all within the budgets, are compared under
one reference, which is spanned by all points of all the group's seeds. A baseline that was run and found no policy has
hypervolume 0; runs without it are left out of its comparison. The interval is Student's t over the seeds' paired
differences; one seed has none, and that of two is honest but very wide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from reports.hypervolume import Reference, hypervolume
from reports.palette import COSTS
from reports.record import RunRecord
from reports.run_facts import flatten

NO_SETTINGS = (
    "seed", "out", "training.threads", "training.workers", "training.device", "training.compile", "search.baselines",
)  # fmt: skip
"""Keys of the configuration in which runs of a group may differ."""
CONFIDENCE = 0.95


def facts(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Returns one row per (group, cost, baseline).

    Columns: ``group`` (model, data, method, device and budgets in words, then the settings in which groups differ),
    ``cost``, ``kind`` (``uniform`` included), ``seeds`` (distinct ones with that kind), ``found`` (how many of
    them have a policy of it within the budgets), ``search`` and ``baseline`` (mean hypervolumes), ``difference`` (mean
    of search − baseline), ``low`` and ``high`` of its interval (NaN for one seed).
    """
    rows = []
    for group, members in _groups(records).items():
        for cost in [cost for cost in members[0].budgets if cost in COSTS] or ["latency_s"]:
            pool = pd.concat([_points(record, cost) for record in members])
            if pool.empty:
                continue
            reference = Reference.around(pool["val_loss"], pool[cost])
            for kind in dict.fromkeys(kind for record in members for kind in _kinds(record)):
                runs = {record.front["seed"]: record for record in reversed(members) if kind in _kinds(record)}
                volumes = [_volumes(record, cost, reference) for record in runs.values()]
                search = np.array([by_kind.get("search", 0.0) for by_kind in volumes])
                baseline = np.array([by_kind.get(kind, 0.0) for by_kind in volumes])
                low, high = interval(search - baseline)
                rows.append({
                    "group": group, "cost": cost, "kind": kind, "seeds": len(runs),
                    "found": sum(kind in by_kind for by_kind in volumes),
                    "search": float(search.mean()), "baseline": float(baseline.mean()),
                    "difference": float((search - baseline).mean()), "low": low, "high": high,
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
    """Returns the comparison in words: seeds that come again, then one sentence per group, cost and baseline.

    Groups are named where there are several; nothing is said where no run has baselines.
    """
    if not any(record.baseline_kinds for record in records):
        return []
    groups = _groups(records)
    said = [(group, line) for group, members in groups.items() for line in _repeats(members)]
    said += [(row["group"], _sentence(row)) for _, row in facts(records).iterrows()]
    return [f"{group}: {line}" if len(groups) > 1 else line for group, line in said]


def _repeats(members: Sequence[RunRecord]) -> list[str]:
    counts = Counter(record.front["seed"] for record in members)
    return [f"Seed {seed} comes {n} times with equal settings: it counts once." for seed, n in counts.items() if n > 1]


def _sentence(row: pd.Series) -> str:
    what = f"{COSTS[row['cost']].title}, {row['seeds']} seed{'s' if row['seeds'] > 1 else ''}"
    if not row["found"]:
        return f"Hypervolume over {what}: {row['search']:.3f}; no policy of {row['kind']} is within the budgets."
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
    """Runs by what they are, in words; where those are the same, with the settings that differ."""
    alike: dict[str, list[RunRecord]] = {}
    for record in records:
        alike.setdefault(_words(record), []).append(record)
    groups: dict[str, list[RunRecord]] = {}
    for words, members in alike.items():
        settings = [_settings(record) for record in members]
        differing = sorted({key for other in settings for key, _ in other.items() ^ settings[0].items()})
        for record, own in zip(members, settings, strict=True):
            name = " · ".join([words, *(f"{key} {own.get(key, 'absent')}" for key in differing)])
            groups.setdefault(name, []).append(record)
    return groups


def _words(record: RunRecord) -> str:
    front = record.front
    budgets = ", ".join(f"{cost} {limit:.6g}" for cost, limit in sorted(record.budgets.items()))
    return " · ".join([front["model"], front["data"], front["method"], record.device["name"], budgets or "no budgets"])


def _settings(record: RunRecord) -> dict[str, str]:
    asked = {key: text for key, text in flatten(record.config) if key not in NO_SETTINGS}
    return asked | {"solved": "yes" if record.solved else "no"}


def _kinds(record: RunRecord) -> list[str]:
    return [*(["uniform"] if "uniform" in set(record.points["origin"]) else []), *record.baseline_kinds]


def _points(record: RunRecord, cost: str) -> pd.DataFrame:
    """Loss, cost and kind of the searched and uniform points within the budgets, and of all baselines."""
    columns = ["val_loss", cost, "kind"]
    own = record.points[record.points["within_budgets"].astype(bool)].rename(columns={"origin": "kind"})
    own = own[own["kind"].isin(["search", "uniform"])]
    return pd.concat([part[columns] for part in (own, record.baselines) if len(part)] or [own[columns]])


def _volumes(record: RunRecord, cost: str, reference: Reference) -> dict[str, float]:
    return {
        str(kind): hypervolume(points["val_loss"], points[cost], reference)
        for kind, points in _points(record, cost).groupby("kind", sort=False)
    }
