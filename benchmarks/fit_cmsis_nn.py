"""Fits the CMSIS-NN profiles: instruction counts to closed forms, published cycles to cycles per instruction.

    python benchmarks/fit_cmsis_nn.py            # prints the errors
    python benchmarks/fit_cmsis_nn.py --write    # also rewrites the profiles

What the boards are stands in `cmsis_nn_boards.py`; the figures in ``hardware_models/measurements/``.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping

import numpy as np
from cmsis_nn_boards import BOARDS, Board

from hardware_models.cmsis_nn import (
    FORMS,
    MEASUREMENTS,
    FittedForm,
    fit_form,
    network_instructions,
    network_weight_bytes,
)
from hardware_models.engine import ElementCost, Engine, Figure, Kernel, Rate
from hardware_models.fitting import Array, fit_relative, leave_one_out
from hardware_models.profile import PROFILES, Calibration, DeviceProfile, FittedRange, Legal, Memory
from hardware_models.profile_file import write_profile

NETWORKS = {"ad": "MLPerfTiny-AD FC-AutoEncoder", "ic": "MLPerfTiny-IC ResNet8", "kws": "MLPerfTiny-KWS DS-CNN"}
TABLES = "measurements/cmsis_nn_insn.csv and mlperf_tiny_layers_insn.csv"


def rows(name: str) -> list[dict[str, str]]:
    with (MEASUREMENTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def rounded(value: float) -> float:
    """Four significant digits: what the fits are worth."""
    return float(f"{value:.4g}")


def kernel(fitted: FittedForm) -> Kernel:
    form = fitted.form
    source = (
        f"non-negative least squares over {len(fitted.layers)} distinct layers counted in bit-exact emulation, "
        f"{TABLES}; leave-one-layer-out error {fitted.error_pct:.1f} %, worst {fitted.worst_pct:.1f} %"
    )
    if form.scratch:
        source += f"; scratch: what the library asked for, {form.scratch_source}"
    return Kernel(
        name=form.name, classes=(form.layer_class,), weight_bits=form.weight_bits, activation_bits=8,
        tile_channels=form.tile_channels, k_multiple=form.k_multiple,
        terms={term: rounded(c) for term, c in zip(form.terms, fitted.coefficients, strict=True)},
        scratch=dict(form.scratch), kind="emulated", source=source,
    )  # fmt: skip


def grouped(conv: Kernel) -> Kernel:
    source = "taken from the ungrouped convolution: the library runs the same product per group; not counted"
    return conv.model_copy(update={"name": "grouped_s8", "classes": ("grouped",), "kind": "static", "source": source})


def operations(core: str) -> dict[str, ElementCost]:
    """Operations without weights: the counted ones from the tables, the others reasoned from them."""
    counted = [row for row in rows("mlperf_tiny_layers_insn.csv") if (row["core"], row["w_bits"]) == (core, "8")]
    size = lambda text: float(np.prod([int(part) for part in text.split("x")]))  # noqa: E731
    adds = [int(row["instructions"]) / size(row["out_shape"]) for row in counted if row["op"] == "ADD"]
    pools = [row for row in counted if row["op"] == "AVERAGE_POOL_2D"]
    table = np.array([[size(row["in_shape"]), size(row["out_shape"])] for row in pools])
    per_read, per_output = fit_relative(table, np.array([float(row["instructions"]) for row in pools]))
    per_add = rounded(float(np.mean(adds)))
    alias, written = "an alias: no code runs", "written by the application"
    added = f"mean of the {len(adds)} ADD rows of measurements/mlperf_tiny_layers_insn.csv, within 1 %"
    pooled = "least squares over the AVERAGE_POOL_2D rows of measurements/mlperf_tiny_layers_insn.csv"
    upper = f"not counted; upper estimate: the average pool ({pooled}), which reads the same elements and also divides"
    copied = "copy: at most one load and one store per two bytes"
    pool = rounded(per_read), rounded(per_output)
    return {
        "input": cost(0, 0, "static", written),
        "output": cost(0, 0, "static", alias),
        "reshape": cost(0, 0, "static", alias),
        "add": cost(0, per_add, "emulated", added),
        "mul": cost(0, rounded(0.37 * per_add), "static",
                    f"estimate: ADD rescales three times per element ({per_add:g} instructions), MUL once; a third, "
                    "and loads"),
        "avg_pool2d": cost(*pool, "emulated", pooled),
        "mean": cost(*pool, "emulated", f"global mean priced as the pool it replaces: {pooled}"),
        "max_pool2d": cost(*pool, "static", upper),
        "activation": cost(0, 5, "static", "table look-up: load, index, load, store, loop"),
        "concat": cost(0, 1, "static", copied, packed=True),
        "slice": cost(0, 1, "static", copied, packed=True),
        "transpose": cost(0, 8, "static", "element-wise strided copy: load, store, address arithmetic, loop"),
    }  # fmt: skip


def cost(per_read: float, per_output: float, kind: str, source: str, *, packed: bool = False) -> ElementCost:
    return ElementCost(
        per_read=Figure(value=per_read, kind=kind, source=source),
        per_output=Figure(value=per_output, kind=kind, source=source),
        packed=packed,
    )


def ranges(fits: list[FittedForm]) -> dict[str, FittedRange]:
    result = {}
    for layer_class in dict.fromkeys(fit.form.layer_class for fit in fits):
        shapes = {layer.shape for fit in fits if fit.form.layer_class == layer_class for layer in fit.layers}
        span = {
            name: (min(getattr(s, name) for s in shapes), max(getattr(s, name) for s in shapes))
            for name in ("row_length", "pixels", "channels")
        }
        result[layer_class] = FittedRange(layers=len(shapes), **span)
    return result


def build(board: Board) -> DeviceProfile:
    """The profile of a board: counts as fitted, cycles per instruction from what was published for it."""
    fits = [fit_form(board.core_key, form) for form in FORMS[board.core_key]]
    kernels = [kernel(fitted) for fitted in fits]
    call = Figure(
        value=16, kind="emulated",
        source="measurements/mlperf_tiny_layers_insn.csv: a RESHAPE of 64 scalars, the smallest call counted; "
        "the interpreter around it is not counted",
    )  # fmt: skip
    engine = Engine(
        unit="instructions", cycles_per_unit=Rate(value=1, kind="static", source="one, while fitting"),
        call=call, kernels=(*kernels, grouped(kernels[0])),
    )  # fmt: skip
    int4 = ("conv", "pointwise", "depthwise", "linear")
    profile = DeviceProfile(
        name=board.name, board=board.board, core=board.core, runtime="CMSIS-NN", runtime_key="cmsis-nn",
        version="CMSIS-NN s8/s4 API, 2024", compiler=board.compiler, arithmetic="tflite",
        clock_hz=Rate(value=board.clock_hz, kind="published", source=board.clock_source),
        not_monotone=board.not_monotone,
        calibration=Calibration(status="uncalibrated", statement=board.statement, fitted=ranges(fits)),
        memory=Memory(
            alignment_bytes=board.alignment_bytes,
            ram_bytes=Rate(value=board.ram_bytes, kind="published", source=board.memory_source),
            flash_bytes=Rate(value=board.flash_bytes, kind="published", source=board.memory_source),
        ),
        legal=Legal(weights={**dict.fromkeys(int4, (4, 8)), "grouped": (8,)}, activations=(8,)),
        engine=engine, operations=operations(board.core_key),
    )  # fmt: skip
    return timed(profile, board)


def timed(profile: DeviceProfile, board: Board) -> DeviceProfile:
    """Gives a profile its cycles per instruction, and its held-out error where cycles were published."""
    if board.cycles == "none":
        rate = Rate(value=board.cycles_per_instruction, kind="static", source=board.cycles_source)
        return with_engine(profile, {"cycles_per_unit": rate})
    cycles, counts, what = published(profile, board)
    if board.cycles == "other board":
        return transferred(profile, board, cycles, counts[:, 0], what)
    if counts.shape[1] == 1:
        coefficients, errors = scale(cycles / counts[:, 0])
    else:
        coefficients, errors = fit_relative(counts, cycles), leave_one_out(counts, cycles)
    error, worst = 100 * float(np.abs(errors).mean()), 100 * float(np.abs(errors).max())
    how = "geometric mean" if counts.shape[1] == 1 else "least squares"
    source = f"{how} over {len(cycles)} {what}; leave-one-out error {error:.1f} %, worst {worst:.1f} %"
    update: dict[str, object] = {
        "cycles_per_unit": Rate(value=rounded(float(coefficients[0])), kind="published", source=source)
    }
    if counts.shape[1] == 2 and coefficients[1] > 0:
        bandwidth = rounded(board.clock_hz / float(coefficients[1]))
        update["weight_bandwidth_bytes_per_s"] = Rate(
            value=bandwidth, kind="published",
            source=f"{coefficients[1]:.2f} cycles per weight byte, fitted with cycles per instruction; {board.streams}",
        )  # fmt: skip
        update["combine"] = "sum"
    statement = f"{len(cycles)} {what}: leave-one-out error {error:.1f} %, worst {worst:.1f} %; {board.statement}"
    calibration = Calibration(
        status="calibrated" if error <= 25 else "uncalibrated", statement=statement,
        held_out_error_pct=round(error, 1), fitted=profile.calibration.fitted,
    )  # fmt: skip
    return with_engine(profile.model_copy(update={"calibration": calibration}), update)


def transferred(profile: DeviceProfile, board: Board, cycles: Array, work: Array, what: str) -> DeviceProfile:
    """Takes the cycles per instruction of the Cortex-M4 board: no figure of this board is fitted, all are held out."""
    other = build(BOARDS[0])
    rate = other.engine.cycles_per_unit.value
    errors, (_, own) = rate * work / cycles - 1, scale(cycles / work)
    error, worst = 100 * float(np.abs(errors).mean()), 100 * float(np.abs(errors).max())
    statement = (
        f"cycles per instruction of {other.board} on {len(cycles)} {what}: leave-one-board-out error {error:.1f} %, "
        f"worst {worst:.1f} % (one constant of this board's own: leave-one-network-out error "
        f"{100 * float(np.abs(own).mean()):.1f} %); {board.statement}"
    )
    calibration = Calibration(
        status="calibrated" if error <= 25 else "uncalibrated", statement=statement,
        held_out_error_pct=round(error, 1), fitted=profile.calibration.fitted,
    )  # fmt: skip
    source = f"taken from {other.name}, {other.engine.cycles_per_unit.source}"
    figure = Rate(value=rate, kind="published", source=source)
    return with_engine(profile.model_copy(update={"calibration": calibration}), {"cycles_per_unit": figure})


def published(profile: DeviceProfile, board: Board) -> tuple[Array, Array, str]:
    """Cycles that were published for a board, counts that explain them, and what they are."""
    if board.cycles == "layers":
        measured = rows("h743_layers_insn.csv")
        cycles = np.array([float(row["measured_cycles_stm32h743"]) for row in measured])
        counts = np.array([[float(row["emulated_instructions"])] for row in measured])
        return (
            cycles,
            counts,
            "published layers of MobileNetV1-0.25-160, counted with the same kernels (CMix-NN, 8 bit)",
        )
    table = [row for row in rows("mlperf_tiny_cmsis_nn.csv") if row["device"] == board.device]
    cycles_of = {row["model"]: float(row["cycles_derived"]) for row in table}
    names = [key for key, title in NETWORKS.items() if title in cycles_of]
    counts = np.array([[network_instructions(profile, board.core_key, key)] for key in names])
    if board.streams:
        counts = np.column_stack([counts, [network_weight_bytes(key) for key in names]])
    what = f"published MLPerf Tiny networks ({', '.join(names)}; {board.submission})"
    return np.array([cycles_of[NETWORKS[key]] for key in names]), counts, f"{what}, instructions from the closed forms"


def scale(ratios: Array) -> tuple[Array, Array]:
    """One factor as the geometric mean of ratios, and the errors of predicting each from the others."""
    logs = np.log(ratios)
    errors = np.exp((logs.sum() - logs) / (len(logs) - 1) - logs) - 1
    return np.array([np.exp(logs.mean())]), errors


def with_engine(profile: DeviceProfile, update: Mapping[str, object]) -> DeviceProfile:
    return profile.model_copy(update={"engine": profile.engine.model_copy(update=update)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="rewrite the profiles")
    wanted = parser.parse_args()
    for core, forms in FORMS.items():
        for form in forms:
            fitted = fit_form(core, form)
            print(
                f"{core:4} {form.name:13} {len(fitted.layers):3} layers, leave one out: {fitted.error_pct:5.2f} %, "
                f"worst {fitted.worst_pct:5.1f} %"
            )
    for board in BOARDS:
        profile = build(board)
        print(f"{profile.name}: {profile.calibration.status}: {profile.calibration.statement}")
        if wanted.write:
            write_profile(DeviceProfile.model_validate(profile.model_dump()), PROFILES / f"{profile.name}.toml")


if __name__ == "__main__":
    main()
