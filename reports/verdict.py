"""The answer on top of the page: which policy to ship, what it saves, and whether the search was worth it."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports import front
from reports.palette import COSTS, LATENCY, cost_text, number, score_text
from reports.record import RunRecord

WORTH_IT_POINTS = 3
CHEAPER_BY = 0.05
"""A searched policy beats a uniform one when it costs at least this share less at an equal or lower loss."""


def facts(record: RunRecord) -> dict[str, Any]:
    """Returns the numbers of the verdict.

    Keys: ``best`` and ``best_by_rule`` (the recorded best and the one by rule: highest validation score within every
    budget, ties by latency; None when nothing fits), ``score_delta`` (best minus float, in the task's unit, positive
    is better), ``<cost>_ratio`` of the best to uniform 8 bit, ``beats`` (cost → names of the mixed policies on the
    front that beat a uniform one), ``judged`` (the costs that count: the budgeted ones, else latency), ``worth_it``.
    """
    points = front.facts(record)
    sign = 1.0 if record.task.get("direction", "max") == "max" else -1.0
    fits = points[points["within_budgets"].astype(bool)]
    by_rule = fits.assign(rank=-sign * fits["val_score"]).sort_values(["rank", "latency_s"], kind="stable")
    best = points[points["best"]]
    level = record.front["float"].get("val_score")
    judged = [cost for cost in record.budgets if cost in COSTS] or [LATENCY.name]
    beats = {cost: beating(points, cost) for cost in COSTS}
    return {
        "best": record.best,
        "best_by_rule": by_rule["name"].iloc[0] if len(by_rule) else None,
        "score_delta": float(sign * (best["val_score"].iloc[0] - level)) if len(best) and level is not None else None,
        **{f"{cost}_ratio": float(best[f"{cost}_ratio"].iloc[0]) if len(best) else float("nan") for cost in COSTS},
        "beats": beats,
        "judged": judged,
        "uniform": int((points["uniform"] != "").sum()),
        "worth_it": any(len(beats[cost]) >= WORTH_IT_POINTS for cost in judged),
    }


def beating(points: pd.DataFrame, cost: str) -> list[str]:
    """Returns the mixed policies on the front that cost 5 % less than a uniform one at an equal or lower val loss."""
    uniform = points[points["uniform"] != ""]
    mixed = points[points["mixed"] & points["on_front"].astype(bool)]
    return [
        str(row["name"])
        for _, row in mixed.iterrows()
        if (
            (row["val_loss"] <= uniform["val_loss"]) & (row[cost] <= (1 - CHEAPER_BY) * uniform[cost] * (1 + 1e-12))
        ).any()
    ]


def sentences(record: RunRecord) -> list[str]:
    """Returns the verdict in plain words: what to ship, its price, its accuracy, was the search worth it."""
    said = facts(record)
    lines = [*_ship(record, said), _worth(said)]
    if said["best"] != said["best_by_rule"]:
        lines.append(
            f"The run names {said['best'] or 'no policy'} as best, the rule (highest validation score within every "
            f"budget, ties by latency) gives {said['best_by_rule'] or 'none'}: check the budgets."
        )
    return lines


def _ship(record: RunRecord, said: dict[str, Any]) -> list[str]:
    if said["best"] is None:
        return ["No policy meets every budget: loosen a budget, or search again with more epochs."]
    points = record.points.set_index("name")
    best = points.loc[said["best"]]
    prices = ", ".join(f"{cost.title} {cost_text(cost, best[cost.name], record.calibrated)}" for cost in COSTS.values())
    metric, unit = record.task["metric"], record.task.get("unit") or ""
    kind = " (a uniform baseline)" if best["origin"] == "uniform" else ""
    within = " within every budget" if record.budgets else ""
    lines = [
        (
            f"Ship {said['best']}{kind}: validation {metric} {score_text(record, best['val_score'])}, "
            f"the best{within}, at {prices}."
        )
    ]
    compared = [_change(cost.title, said[f"{cost.name}_ratio"]) for cost in COSTS.values()]
    if all(compared):
        lines.append(f"Against uniform 8 bit: {', '.join(compared)}.{_trade(said)}")
    if said["score_delta"] is not None:
        delta = said["score_delta"]
        points_unit = "points" if unit == "%" else unit
        lines.append(
            f"Against its own float model: {number(abs(delta), 3)} {points_unit} {'better' if delta > 0 else 'worse'}."
            if abs(delta) > 1e-9 else f"Against its own float model: the same {metric}."
        )  # fmt: skip
    return lines


def _change(title: str, ratio: float) -> str:
    if pd.isna(ratio):
        return ""
    change = round(100 * (ratio - 1), 1)
    return f"{title} unchanged" if change == 0 else f"{title} {abs(change):g} % {'lower' if change < 0 else 'higher'}"


def _trade(said: dict[str, Any]) -> str:
    """Says the uncomfortable thing about low bits on devices that must unpack them."""
    if said["flash_bytes_ratio"] < 0.995 and said["latency_s_ratio"] > 1.005:
        return " It saves flash here and costs time: this device unpacks low bits in software."
    return ""


def _worth(said: dict[str, Any]) -> str:
    if not said["uniform"]:
        return "There is no uniform baseline in this run, so nothing shows what the search gained."
    counts = ", ".join(f"{len(said['beats'][cost])} in {COSTS[cost].title}" for cost in said["judged"])
    answer = "Was the search worth it? " + ("Yes" if said["worth_it"] else "Hardly")
    return (
        f"{answer}: mixed policies of the front that cost at least 5 % less than a uniform one at equal or lower "
        f"validation loss: {counts} (the bar is {WORTH_IT_POINTS})."
    )
