"""Writes the device profiles of our own C kernels from their counts.

    python benchmarks/kernels/own_profiles.py [NAME …]

Board, clock, memories and cycles per instruction are those of the profile of the same board with another runtime;
kernels come from `fit.py`, operations without weights from ``own_steps.csv``. Rerun after kernels or forms change.
"""

from __future__ import annotations

import csv
import importlib
import statistics
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fit import MEASUREMENTS, MODULES, fitted, profile_names, read, toml
from neon_cycles import SOURCE, cycles

from ddq_search.layer_shape import LAYER_CLASSES
from hardware_models.profile import PROFILES, DeviceProfile, load_profile
from hardware_models.profile_file import profile_toml, write_profile
from hardware_models.terms import TERMS

STEPS = MEASUREMENTS / "own_steps.csv"
KINDS = {
    "add": ("add",), "mul": ("multiply",), "mean": ("mean",), "activation": ("lookup",), "concat": ("concat",),
    "slice": ("concat",), "transpose": ("concat",), "max_pool2d": ("max_pool2d_2x2", "max_pool2d_3x3"),
    "avg_pool2d": ("avg_pool2d_2x2", "avg_pool2d_3x3"),
}  # fmt: skip
"""Kind of operation → counted operations; slices and transpositions move codes as a concatenation does."""


@dataclass(frozen=True)
class Own:
    """One profile.

    Attributes:
        name: of the profile.
        base: profile of the same board.
        families: kernel families, best first; the portable kernels come on top.
        core: of the counts, or static cycles, of kernels.
        counted: of the counted instructions of portable kernels and of operations without weights.
        compiler: with flags.
        not_monotone: for the user.
    """

    name: str
    base: str
    families: tuple[str, ...]
    core: str
    counted: str
    compiler: str
    not_monotone: str
    static: bool = False
    """Whether kernels are priced in static cycles; counted instructions then count as a cycle each."""
    bandwidth_bytes_per_s: float | None = None
    """Of main memory, for profiles in static cycles: half of the board's peak, assumed for one core."""
    board: str = ""
    """Where it is not the base's, with its clock."""
    clock_hz: float | None = None


_DSP = (
    "Our kernels keep 4- and 2-bit weights in an order that unpacks in few instructions, so they save "
    "flash and cost little time: mostly within 15 % (4 bit) and 25 % (2 bit) of 8 bit, and 4-bit weights "
    "can even be a little faster where loading bounds a layer. Sub-byte inputs are unpacked while windows "
    "are gathered, which costs time and saves RAM; layers that read 8-bit inputs in place (1 x 1) lose "
    "that. A flash or RAM budget pulls bits down, latency pulls up."
)
_HELIUM = (
    "Vectors of 8-bit codes are multiplied at once; 4- and 2-bit weights are spread to bytes first, a few "
    "percent of time for half and a quarter of the flash. Depthwise convolutions are a little faster with "
    "4- and 2-bit weights, whose sums fit 16 bits. Sub-byte inputs save RAM and cost the unpacking while "
    "windows are gathered."
)
_STATIC = (
    "static cycles of our own kernels from llvm-mca, portable kernels and operations without weights by "
    "counted instructions at a cycle each; nothing was measured on this board; ratios between precisions "
    "only, milliseconds show the order of magnitude"
)
_A53 = (
    "The core has no 8-bit dot product. 4-bit weights keep sums of products in 16 bits, which makes whole "
    "layers of at least 64 weights per output about 1.2-1.3 x as fast as 8 bit; 2-bit weights with 2-bit "
    "inputs sum in 8 bits, about 1.5-2.1 x. 2-bit weights on 8-bit inputs run as fast as 4-bit ones. "
    "Gathering windows and requantizing outputs cost the same at every precision, so layers of few "
    "weights per output gain less; depthwise and fully connected layers gain nothing in time: low bits "
    "there save memory."
)
_A72 = (
    "Out of order and with two vector pipes, this core gains nothing from narrow sums: 4-bit weights run "
    "as fast as 8-bit ones or a little slower. Low bits save flash and RAM, and time only where weights "
    "are bound by memory."
)
_DOT = (
    "The core multiplies four pairs of 8-bit codes at once. Narrower weights are unpacked first, so low "
    "bits save memory and cost a little time; they win only where loading weights bounds a layer (large "
    "fully connected layers)."
)
OWN = (
    Own("cortex-m4-stm32l4r5-ddq", "cortex-m4-stm32l4r5-cmsis-nn", ("dsp",), "cortex-m4", "cortex-m4",
        "arm-none-eabi-gcc 12.2.1 -O2", _DSP),
    Own("cortex-m7-stm32h743-ddq", "cortex-m7-stm32h743-cmsis-nn", ("dsp",), "cortex-m7", "cortex-m7",
        "arm-none-eabi-gcc 12.2.1 -O2", _DSP),
    Own("cortex-m7-stm32f746-ddq", "cortex-m7-stm32f746-cmsis-nn", ("dsp",), "cortex-m7", "cortex-m7",
        "arm-none-eabi-gcc 12.2.1 -O2", _DSP),
    Own("cortex-m33-ra6m4-ddq", "cortex-m33-ra6m4-cmsis-nn", ("dsp",), "cortex-m33", "cortex-m33",
        "arm-none-eabi-gcc 12.2.1 -O2", _DSP),
    Own("cortex-m55-an547-ddq", "cortex-m55-an547-cmsis-nn", ("helium",), "cortex-m55-clang", "cortex-m55-clang",
        "clang 19.1.7 -O2", _HELIUM),
    Own("cortex-a53-rpi3-lowbit-neon", "cortex-a53-rpi3-xnnpack", ("neon",), "cortex-a53", "aarch64",
        "clang 19 -O3 -mcpu=cortex-a53; cycles by llvm-mca 19", _A53, True, 1.8e9,
        "Raspberry Pi 3 Model B (BCM2837), one thread", 1.2e9),
    Own("cortex-a72-rpi4-ddq", "cortex-a72-rpi4-xnnpack", ("neon",), "cortex-a72", "aarch64",
        "clang 19 -O3 -mcpu=cortex-a72; cycles by llvm-mca 19 on its Cortex-A57 model", _A72, True, 6.4e9,
        "Raspberry Pi 4 Model B (BCM2711), one thread"),
    Own("cortex-a55-rk3566-ddq", "cortex-a55-rk3566-ncnn", ("neon_dot",), "cortex-a55", "aarch64",
        "clang 19 -O3 -mcpu=cortex-a55; cycles by llvm-mca 19", _DOT, True, 4.2e9,
        "Rockchip RK3566 board, one thread"),
    Own("cortex-a76-rpi5-ddq", "cortex-a76-rpi5-ncnn", ("neon_dot",), "cortex-a76", "aarch64",
        "clang 19 -O3 -mcpu=cortex-a76; cycles by llvm-mca 19 on its Neoverse N1 model", _DOT, True, 8.5e9,
        "Raspberry Pi 5 (BCM2712), one thread"),
)  # fmt: skip


def figure(value: float, source: str, kind: str = "emulated") -> dict[str, Any]:
    return {"value": float(f"{value:.4g}"), "kind": kind, "source": source}


def kernels(own: Own) -> list[dict[str, Any]]:
    """Fitted entries of all families, the portable kernels for what these do not execute."""
    entries: list[dict[str, Any]] = []
    for family_name in (*own.families, "portable"):
        family = importlib.import_module(MODULES[family_name])
        terms, names = {**TERMS, **family.TERMS}, profile_names(family_name, family)
        static = own.static and family_name != "portable"
        files = {SOURCE} if static else {family.COUNTS, family.MORE_COUNTS}
        core = own.counted if family_name == "portable" else own.core
        calls = cycles(core) if static else [c for name in sorted(files) for c in read(MEASUREMENTS / name, core)]
        for form in family.FORMS:
            for weight_bits in form.kernels:
                text = toml(fitted(form, weight_bits, calls, terms), terms, names, core)
                found = tomllib.loads(text).get("engine", {}).get("kernels", [])
                for entry in found:
                    entry["source"] += f" (measurements/{', '.join(sorted(files))})"
                    if static:
                        entry["kind"] = "static"
                        entry["source"] = entry["source"].replace("counted on", "through llvm-mca 19 on")
                entries += found
    return entries


def steps(own: Own) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns operations without weights, and unpack and pack of the engine with its call."""
    with STEPS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["core"] == own.counted]
    source = f"measurements/own_steps.csv, {own.counted}"
    operations: dict[str, Any] = {}
    calls = []
    for kind, counted in KINDS.items():
        chosen = [row for row in rows if row["operation"] in counted and row["input_bits"] == "8"]
        both = len(counted) > 1 or kind == "mean"
        columns = [[float(row["read"]) * both, float(row["outputs"]), 1.0] for row in chosen]
        (per_read, per_output, once), _ = relative_nnls(columns, [float(row["instructions"]) for row in chosen])
        calls.append(once)
        said = source if kind in ("add", "mul", "mean", "activation", "concat") or both else f"as concat; {source}"
        operations[kind] = {"per_read": figure(per_read, said), "per_output": figure(per_output, said)}
    for kind in ("input", "output", "reshape"):
        free = "written by the application" if kind == "input" else "an alias: no code runs"
        operations[kind] = {key: figure(0.0, free, "static") for key in ("per_read", "per_output")}
    widths: dict[str, dict[str, Any]] = {"unpack": {}, "pack": {}}
    eight = {(row["operation"], row["read"], row["outputs"]): row for row in rows if row["input_bits"] == "8"}
    for bits in ("4", "2"):
        narrow = [row for row in rows if row["input_bits"] == bits]
        extra = [float(row["instructions"]) - float(eight[_key(row)]["instructions"]) for row in narrow]
        (unpack, pack), _ = relative_nnls([[float(row["read"]), float(row["outputs"])] for row in narrow], extra)
        widths["unpack"][bits] = figure(unpack, f"more than 8 bits take, per code read; {source}")
        widths["pack"][bits] = figure(pack, f"more than 8 bits take, per code written; {source}")
    call = figure(statistics.median(calls), f"median of the parts that do not grow; {source}")
    return operations, {**widths, "call": call}


def _key(row: dict[str, str]) -> tuple[str, str, str]:
    return row["operation"], row["read"], row["outputs"]


def relative_nnls(columns: Sequence[Sequence[float]], target: Sequence[float]) -> tuple[Any, float]:
    rows = np.array(columns) / np.array(target)[:, None]
    solution, residual = nnls(rows, np.ones(len(target)))
    return solution, float(residual)


def profile(own: Own) -> DeviceProfile:
    """Returns the profile."""
    base = load_profile(own.base)
    operations, around = steps(own)
    rate = base.engine.cycles_per_unit
    document = base.model_dump(mode="json", exclude_defaults=True)
    document |= {
        "name": own.name,
        "board": own.board or base.board,
        "runtime": "ddq-search C export",
        "runtime_key": "ddq-c",
        "kernel_family": own.families[0],
        "version": "kernels of this release",
        "compiler": own.compiler,
        "not_monotone": own.not_monotone,
        "legal": {"activations": [2, 4, 8], "weights": {kind: [2, 4, 8] for kind in LAYER_CLASSES}},
        "operations": operations,
        "calibration": {
            "status": "uncalibrated",
            "statement": "instructions of our kernels counted in bit-exact emulation, each counted call within 10 %; "
            f"cycles per instruction are those of {own.base}, another kernel library; nothing was measured on a board",
        },
    }
    document["memory"]["alignment_bytes"] = 16
    if own.clock_hz is not None:
        said = f"{own.board.partition(' (')[0]} specification: {own.clock_hz / 1e9:g} GHz"
        document["clock_hz"] = {"value": own.clock_hz, "kind": "published", "source": said}
    engine = {"unit": "cycles" if own.static else "instructions", "kernels": kernels(own), **around}
    if own.static:
        engine |= static_rates(own)
        document["arithmetic"], document["calibration"]["statement"] = "single", _STATIC
    else:
        engine["cycles_per_unit"] = {
            "value": rate.value, "kind": rate.kind, "source": f"taken from {own.base}: {rate.source}",
        }  # fmt: skip
        for key in ("weight_bandwidth_bytes_per_s", "activation_bandwidth_bytes_per_s", "combine"):
            if key in document["engine"]:
                engine[key] = document["engine"][key]
    document["engine"] = engine
    return DeviceProfile.model_validate(document)


def static_rates(own: Own) -> dict[str, Any]:
    """Returns how static cycles become seconds, and the memory that bounds them."""
    assert own.bandwidth_bytes_per_s is not None
    reach = (
        "int8 code on real boards reaches 52-74 % of its llvm-mca bound (published XNNPACK times over static bounds)"
    )
    moved = figure(
        own.bandwidth_bytes_per_s, "half of the board's peak memory bandwidth, assumed for one core", "static"
    )
    return {
        "cycles_per_unit": figure(1 / 0.63, f"{reach}; the middle of that range, for every precision", "static"),
        "weight_bandwidth_bytes_per_s": moved,
        "activation_bandwidth_bytes_per_s": moved,
        "combine": "max",
    }


def main(names: Iterable[str]) -> None:
    wanted = set(names)
    for own in OWN:
        if not wanted or own.name in wanted:
            made = profile(own)
            write_profile(made, PROFILES / f"{own.name}.toml")
            print(f"{own.name}: {len(made.engine.kernels)} kernels, {len(profile_toml(made)):,} characters")


if __name__ == "__main__":
    main(sys.argv[1:])
