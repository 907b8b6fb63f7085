"""The profile that a fit gives: corrected numbers, each saying that its user measured it, and the shapes it saw."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ddq_search.graph import WEIGHTED, ModelGraph, operations
from ddq_search.layer_shape import LayerClass, LayerShape, layer_shape
from hardware_models.calibration import Fit
from hardware_models.engine import Engine, Figure, Kernel
from hardware_models.executions import Measurement
from hardware_models.profile import TRUSTED_ERROR_PCT, Calibration, DeviceProfile, FittedRange
from hardware_models.time_parts import Coefficient

_LEVELS = {
    "scale": "one factor of all times",
    "kernels": "a factor per kernel, of memory, of other operations and of calls",
    "terms": "a factor per term of the kernels, per kind of other operation, of memory and of calls",
}
_QUANTITIES = {"row_length": "K", "pixels": "positions", "channels": "channels"}


def calibrated(
    base: DeviceProfile, measurements: Sequence[Measurement], fit: Fit, name: str, origin: str
) -> DeviceProfile:
    """Returns the base with corrected numbers.

    Args:
        base: the profile that was fitted.
        measurements: what it was fitted to.
        fit: the result.
        name: of the new profile; characters that names may not have become dashes.
        origin: where the measurements come from, for the sources of the numbers.
    """
    evidence = f"measured by the user ({origin}, {_count(measurements)})"
    profile = base.model_copy(
        update={
            "name": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "calibrated",
            "engine": _engine(base.engine, fit, evidence),
            "operations": {
                kind: cost.model_copy(
                    update={
                        field: _times(getattr(cost, field), _own(fit, Coefficient("operation", 0, kind)), evidence)
                        for field in ("per_read", "per_output")
                    }
                )
                for kind, cost in base.operations.items()
            },
            "calibration": _calibration(base, measurements, fit, origin),
        }
    )
    return DeviceProfile.model_validate(profile.model_dump())


def fitted_ranges(shapes: Iterable[LayerShape]) -> dict[LayerClass, FittedRange]:
    """Returns the ranges of distinct shapes by layer class."""
    by_class: dict[LayerClass, set[LayerShape]] = {}
    for shape in shapes:
        by_class.setdefault(shape.layer_class, set()).add(shape)
    return {
        layer_class: FittedRange(
            layers=len(found),
            row_length=_span(shape.row_length for shape in found),
            pixels=_span(shape.pixels for shape in found),
            channels=_span(shape.channels for shape in found),
        )
        for layer_class, found in sorted(by_class.items())
    }


def extrapolations(profile: DeviceProfile, graph: ModelGraph) -> list[str]:
    """Returns a sentence per layer class in which a network leaves the shapes fitted.

    Empty where the profile records no shapes.
    """
    fitted = profile.calibration.fitted
    if not fitted:
        return []
    asked: dict[LayerClass, list[tuple[str, LayerShape]]] = {}
    for op in operations(graph):
        if op.kind in WEIGHTED:
            shape = layer_shape(op)
            asked.setdefault(shape.layer_class, []).append((op.name, shape))
    sentences = []
    for layer_class, layers in asked.items():
        if layer_class not in fitted:
            sentences.append(f"extrapolates: no {layer_class} layer was fitted, {len(layers)} asked ({layers[0][0]})")
            continue
        beyond = []
        for field, symbol in _QUANTITIES.items():
            low, high = getattr(fitted[layer_class], field)
            outside = [(name, getattr(s, field)) for name, s in layers if not low <= getattr(s, field) <= high]
            if outside:
                name, value = max(outside, key=lambda item: max(item[1] / high, low / item[1]))
                more = f" and {len(outside) - 1} more" if len(outside) > 1 else ""
                beyond.append(f"{symbol} {low}..{high}, asked {value} ({name}{more})")
        if beyond:
            sentences.append(f"extrapolates beyond the shapes fitted: {layer_class} {'; '.join(beyond)}")
    return sentences


def _count(measurements: Sequence[Measurement]) -> str:
    return f"{len(measurements)} measurement{'' if len(measurements) == 1 else 's'}"


def _span(values: Iterable[int]) -> tuple[int, int]:
    found = sorted(values)
    return found[0], found[-1]


def _own(fit: Fit, coefficient: Coefficient) -> float:
    """A coefficient's factor beside the scale, which the cycles per unit and the bandwidths carry."""
    return fit.factors.get(coefficient, fit.scale) / fit.scale


def _engine(engine: Engine, fit: Fit, evidence: str) -> Engine:
    update: dict[str, Any] = {
        "cycles_per_unit": _times(engine.cycles_per_unit, fit.scale, evidence),
        "call": _times(engine.call, _own(fit, Coefficient("call")), evidence),
        "kernels": tuple(_kernel(kernel, index, fit, evidence) for index, kernel in enumerate(engine.kernels)),
    }
    if engine.output is not None:
        update["output"] = _times(engine.output, _own(fit, Coefficient("output")), evidence)
    for place in ("unpack", "pack"):
        figures: Mapping[int, Figure] = getattr(engine, place)
        update[place] = {bits: _times(f, _own(fit, Coefficient(place, bits)), evidence) for bits, f in figures.items()}
    for place in ("weight", "activation"):
        rate = getattr(engine, f"{place}_bandwidth_bytes_per_s")
        if rate is not None:
            factor = fit.factors.get(Coefficient(f"{place} memory"), fit.scale)
            update[f"{place}_bandwidth_bytes_per_s"] = _times(rate, 1 / factor, evidence)
    return engine.model_copy(update=update)


def _kernel(kernel: Kernel, index: int, fit: Fit, evidence: str) -> Kernel:
    own = {term: _own(fit, Coefficient("kernel", index, term)) for term in kernel.terms}
    packing = {
        (b, term): _own(fit, Coefficient(f"pack {b}", index, term)) for b in kernel.pack for term in kernel.pack[b]
    }
    if all(abs(factor - 1) < 1e-9 for factor in [*own.values(), *packing.values()]):
        return kernel
    factors = ", ".join(f"{term} {factor:.3g}" for term, factor in own.items())
    return kernel.model_copy(
        update={
            "terms": {term: _rounded(value * own[term]) for term, value in kernel.terms.items()},
            "pack": {
                b: {term: _rounded(value * packing[b, term]) for term, value in terms.items()}
                for b, terms in kernel.pack.items()
            },
            "kind": "measured",
            "source": f"{evidence}: the base's terms times {factors}; base ({kernel.kind}): {kernel.source}",
        }
    )


def _times(figure: Any, factor: float, evidence: str) -> Any:
    if abs(factor - 1) < 1e-9 or figure.value == 0:
        return figure
    source = f"{evidence}: {factor:.4g} times the base's {figure.value:g} ({figure.kind}: {figure.source})"
    return figure.model_copy(update={"value": _rounded(figure.value * factor), "kind": "measured", "source": source})


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _calibration(base: DeviceProfile, measurements: Sequence[Measurement], fit: Fit, origin: str) -> Calibration:
    timed = all(measurement.timed for measurement in measurements)
    trusted = timed and fit.error_pct is not None and fit.error_pct <= TRUSTED_ERROR_PCT
    error = (
        "nothing could be held out"
        if fit.error_pct is None
        else f"leave-one-out error {fit.error_pct:.1f} %, worst {fit.worst_pct:.1f} %"
    )
    counted = "" if timed else "; instructions were counted, no time was measured"
    statement = (
        f"{_count(measurements)} of the user ({origin}; {fit.distinct} distinct), {_LEVELS[fit.level]}: "
        f"{error}{counted}; base: {base.name}"
    )
    shapes = (
        execution.work
        for measurement in measurements
        for execution in measurement.executions
        if isinstance(execution.work, LayerShape)
    )
    return Calibration(
        status="calibrated" if trusted else "uncalibrated",
        statement=statement,
        held_out_error_pct=None if fit.error_pct is None else round(fit.error_pct, 1),
        fitted=fitted_ranges(shapes),
    )
