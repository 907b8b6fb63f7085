"""Device profiles written from the fits: ``python -m hardware_models.published.devices`` writes them all anew."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ddq_search.layer_shape import LAYER_CLASSES, LayerClass, LayerShape
from hardware_models.engine import Engine, Kernel, Rate
from hardware_models.fitting import Array
from hardware_models.networks import load_network
from hardware_models.profile import PROFILES, Calibration, DeviceProfile, FittedRange, Legal, Memory
from hardware_models.profile_file import write_profile
from hardware_models.published import ncnn, tflite, xnnpack
from hardware_models.published.form import INDIRECT, NCNN, PHONE, Form

_NO_LOW_BITS = "The runtime executes int8 weights and activations only: there are no fewer bits to choose."


@dataclass(frozen=True)
class Facts:
    """What a data sheet says of a board.

    Attributes:
        board: board, chip, number of threads.
        core: processor core.
        clock_hz: highest clock.
        ram_bytes: of the smallest variant.
        source: of clock and RAM.
    """

    board: str
    core: str
    clock_hz: float
    ram_bytes: int
    source: str


_GIB = 1024**3
FACTS = {
    tflite.PIXEL_3: Facts(
        "Google Pixel 3 (Snapdragon 845), 4 threads", "Kryo 385 Gold (derived from Cortex-A75)", 2.8e9, 4 * _GIB,
        "Snapdragon 845 product brief: up to 2.8 GHz; Pixel 3 specification: 4 GB (the clock at which the phone ran "
        "is unknown; times are fitted in nanoseconds)",
    ),
    "cortex-a53-rpi3-xnnpack": Facts(
        "Raspberry Pi 3 Model B+ (BCM2837B0), 32-bit system, 4 threads", "Cortex-A53", 1.4e9, _GIB,
        "Raspberry Pi 3 Model B+ product brief: 1.4 GHz, 1 GB LPDDR2",
    ),
    "cortex-a72-rpi4-xnnpack": Facts(
        "Raspberry Pi 4 Model B (BCM2711), 64-bit system, 4 threads", "Cortex-A72", 1.5e9, _GIB,
        "Raspberry Pi 4 Model B product brief: 1.5 GHz, 1 GB LPDDR4 and more",
    ),
    "cortex-a53-rk3399-ncnn": Facts(
        "RK3399 board, little cores, one thread", "Cortex-A53", 1.5e9, 2 * _GIB,
        "clock as ncnn's table states it (1.5 GHz); 2 GB as on the smallest boards with this chip",
    ),
    "cortex-a55-rk3566-ncnn": Facts(
        "Orange Pi CM4 (RK3566), one thread", "Cortex-A55", 1.8e9, _GIB,
        "clock as ncnn's table states it (1.8 GHz); Orange Pi CM4 specification: 1 GB and more",
    ),
    "cortex-a72-rpi4-ncnn": Facts(
        "Raspberry Pi 4 Model B (BCM2711B0), one thread", "Cortex-A72", 1.8e9, _GIB,
        "clock as ncnn's table states it (1.8 GHz); Raspberry Pi 4 Model B product brief: 1 GB LPDDR4 and more",
    ),
    "cortex-a76-rpi5-ncnn": Facts(
        "Raspberry Pi 5 (BCM2712), one thread", "Cortex-A76", 2.4e9, 2 * _GIB,
        "clock as ncnn's table states it (2.4 GHz); Raspberry Pi 5 product brief: 2 GB LPDDR4X and more",
    ),
}  # fmt: skip
"""Profile → its board."""


def built(name: str) -> DeviceProfile:
    """Returns the profile that the published figures give."""
    if name == tflite.PIXEL_3:
        return _pixel_3()
    return _xnnpack(name) if name in xnnpack.PROFILES else _ncnn(name)


def _pixel_3() -> DeviceProfile:
    readings = tflite.pixel_3(8)
    check = tflite.checks()[0]
    source = f"bounded least squares over {len(readings)} networks of measurements/tflite_phones.csv"
    engine = PHONE.engine(tflite.coefficients(readings), source, source)
    narrow = [
        kernel.model_copy(
            update={
                "name": kernel.name.replace("_s8", "_s4"),
                "weight_bits": 4,
                "kind": "static",
                "source": "LiteRT executes int4 weights; never measured here: priced as the int8 kernel they widen to",
            }
        )
        for kernel in engine.kernels
        if kernel.classes[0] in ("conv", "pointwise", "linear")
    ]
    return _profile(
        tflite.PIXEL_3, PHONE, engine.model_copy(update={"kernels": engine.kernels + tuple(narrow)}),
        tflite.coefficients(readings), source, [reading.network for reading in readings],
        runtime=("TensorFlow Lite", "litert", "not stated; table of hosted models at 0406598", "tflite"),
        not_monotone=(
            "4-bit weights of convolutions and fully connected layers halve their file and are widened to 8 bits to "
            "run: they save memory and are never faster here. Activations are 8 bits only."
        ),
        statement=(
            f"{len(readings)} published int8 networks: leave-one-network-out error {check.error_pct:.1f} %, worst "
            f"{check.worst_pct:.1f} %; no network with 4-bit weights was measured"
        ),
        error_pct=check.error_pct,
        narrow=("conv", "pointwise", "linear"),
    )  # fmt: skip


def _xnnpack(name: str) -> DeviceProfile:
    reading = next(reading for reading in xnnpack.readings(8) if reading.board.device == xnnpack.PROFILES[name])
    values = xnnpack.int8_coefficients(reading)
    floats, step = xnnpack.networks_left_out(), xnnpack.int8_from_one_number()
    source = (
        "shape: bounded least squares over FP32 times of 9 boards; scale: one int8 time of this board "
        f"({reading.network}, {reading.milliseconds:g} ms); measurements/xnnpack.csv"
    )
    return _profile(
        name, INDIRECT, INDIRECT.engine(values, source, source), values, source,
        sorted({row.network for row in xnnpack.readings(32)}),
        runtime=("XNNPACK", "xnnpack", "end2end-bench 2022-02-08", "single"),
        not_monotone=_NO_LOW_BITS,
        statement=(
            f"int8 scaled to one published network; the same step on TFLite's phones misses the other int8 networks by "
            f"{step.error_pct:.1f} %, and the shape misses left-out FP32 networks by {floats.error_pct:.1f} %; no "
            "second int8 network of this board was measured"
        ),
        error_pct=step.error_pct,
    )  # fmt: skip


def _ncnn(name: str) -> DeviceProfile:
    check, values = ncnn.held_out(name), ncnn.coefficients(name)
    networks = list(ncnn.boards()[ncnn.profile_board(name)])
    source = (
        f"most probable coefficients given {len(networks)} int8 networks of this board and the spread over other "
        "boards; measurements/ncnn.csv"
    )
    speed = Rate(
        value=float(f"{ncnn.speedup(name, 4):.3g}"),
        kind="published",
        source=f"geometric mean over {len(networks)} networks of measurements/ncnn.csv, 1 thread over 4",
    )
    engine = NCNN.engine(values, source, source).model_copy(update={"thread_speedup": {4: speed}})
    return _profile(
        name, NCNN, engine, values, source, networks,
        runtime=("ncnn", "ncnn", "not stated; benchmark table of Tencent/ncnn at a4d2ea1", "single"),
        not_monotone=_NO_LOW_BITS + " Fully connected layers stay in floating point in its benchmark.",
        statement=(
            f"{len(networks)} published int8 networks of this board, each predicted from the others and from other "
            f"boards: {check.error_pct:.1f} %, worst {check.worst_pct:.1f} %; ncnn requantizes in floating point, "
            "which no arithmetic here reproduces exactly"
        ),
        error_pct=check.error_pct,
    )  # fmt: skip


def _profile(
    name: str, form: Form, engine: Engine, values: Array, source: str, networks: Sequence[str], *,
    runtime: tuple[str, Literal["litert", "xnnpack", "ncnn"], str, Literal["tflite", "single"]],
    not_monotone: str, statement: str, error_pct: float, narrow: Sequence[LayerClass] = (),
) -> DeviceProfile:  # fmt: skip
    facts, (words, key, version, arithmetic) = FACTS[name], runtime
    return DeviceProfile(
        name=name,
        board=facts.board,
        core=facts.core,
        runtime=words,
        runtime_key=key,
        version=version,
        compiler="as published, not stated",
        arithmetic=arithmetic,
        clock_hz=Rate(value=facts.clock_hz, kind="published", source=facts.source),
        not_monotone=not_monotone,
        calibration=Calibration(
            status="calibrated",
            statement=statement,
            held_out_error_pct=round(error_pct, 1),
            fitted=fitted_ranges(networks, engine.kernels),
        ),
        memory=Memory(
            alignment_bytes=64,
            ram_bytes=Rate(value=facts.ram_bytes, kind="published", source=facts.source),
            flash_bytes=Rate(
                value=16e9, kind="static", source="the file lies in storage; 16 GB assumed, never the limit"
            ),
        ),
        legal=Legal(
            weights={layer_class: (4, 8) if layer_class in narrow else (8,) for layer_class in LAYER_CLASSES},
            activations=(8,),
        ),
        engine=engine,
        operations=form.operations(values, source),
    )


def fitted_ranges(networks: Iterable[str], kernels: Sequence[Kernel]) -> dict[LayerClass, FittedRange]:
    """Returns the shapes of every layer class that networks contain and kernels execute."""
    shapes: dict[LayerClass, set[LayerShape]] = {}
    for network in networks:
        for execution in load_network(network):
            if isinstance(execution.work, LayerShape):
                shapes.setdefault(execution.work.layer_class, set()).add(execution.work)
    return {
        layer_class: FittedRange(
            layers=len(found),
            row_length=_range(shape.row_length for shape in found),
            pixels=_range(shape.pixels for shape in found),
            channels=_range(shape.channels for shape in found),
        )
        for layer_class, found in shapes.items()
        if any(layer_class in kernel.classes for kernel in kernels)
    }


def _range(values: Iterable[int]) -> tuple[int, int]:
    known = sorted(values)
    return known[0], known[-1]


def main() -> None:
    """Writes every profile into the folder of shipped ones."""
    for name in FACTS:
        profile = built(name)
        write_profile(profile, PROFILES / f"{name}.toml")
        sys.stdout.write(f"{name}: {profile.calibration.statement}\n")


if __name__ == "__main__":
    main()
