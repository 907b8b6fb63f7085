"""``ddq-search calibrate``: measured times in, a profile of the user's own device out."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from ddq_search.cli.output import console, tell
from ddq_search.errors import ConfigError
from ddq_search.graph import ModelGraph
from hardware_models.calibrated_profile import calibrated
from hardware_models.calibration import Fit, fit
from hardware_models.executions import Execution, Measurement
from hardware_models.litert_profile import is_litert_profile, read_profile
from hardware_models.measurement_files import network_executions, read_measurements
from hardware_models.profile import DeviceProfile, load_profile
from hardware_models.profile_file import write_profile


def calibrate(
    base: str, measurements: Path, out: Path, model: str | None, bits: tuple[int, int], input_shape: str, classes: int
) -> None:
    """Fits a profile to a file of measurements and writes it.

    Args:
        base: name or file of the profile to start from.
        measurements: CSV of layers or networks, or an operator profile of LiteRT.
        out: TOML file to write.
        model: the network that an operator profile was taken of.
        bits: widths of its weights and activations.
        input_shape: CxHxW of networks that are named, not read from a file.
        classes: their number of classes.

    Raises:
        ConfigError: the measurements do not fit the profile or the network.
        CostError: the profile is broken or cannot be written.
    """
    profile = load_profile(base)
    if out.suffix != ".toml":
        raise ConfigError(f"--out {str(out)!r}: a device profile ends in .toml")

    def resolve(name: str, size: str) -> ModelGraph:
        return _trace(name, size or input_shape, classes)

    if _is_profile(measurements):
        if model is None:
            raise ConfigError(
                f"{measurements} is an operator profile, which names no shapes: give the network with --model"
            )
        executions: tuple[Execution, ...] = network_executions(model, Path(), "", *bits, resolve)
        found, unmatched = read_profile(measurements, executions)
        if unmatched:
            tell(f"not used: {', '.join(unmatched)}")
    else:
        found = read_measurements(measurements, profile, resolve)
    result = fit(profile, found)
    fitted = calibrated(profile, found, result, out.stem, measurements.name)
    write_profile(fitted, out)
    _report(profile, fitted, found, result, out)


def _is_profile(path: Path) -> bool:
    try:
        return is_litert_profile(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise ConfigError(f"cannot read the measurements {path}: {error.strerror or error}") from error


def _trace(name: str, size: str, classes: int) -> ModelGraph:
    import torch

    from ddq_search.trace import trace
    from search_spaces.models import build_without_data

    parts = size.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"input {size!r} of {name!r}: expected CxHxW, such as 3x32x32")
    channels, height, width = (int(part) for part in parts)
    model = build_without_data(name, channels, classes, (height, width))
    return trace(model, torch.zeros(1, channels, height, width))


def _report(
    base: DeviceProfile, fitted: DeviceProfile, measurements: list[Measurement], result: Fit, out: Path
) -> None:
    table = Table(title=f"measured by the user, predicted by {base.name} and fitted", title_justify="left")
    table.add_column("measurement", overflow="fold")
    for name in ("measured ms", "base ms", "%", "fitted ms", "%", "held out %"):
        table.add_column(name, justify="right")
    for row in result.residuals:
        held_out = "" if row.held_out is None else f"{100 * (row.held_out / row.measured - 1):+.1f}"
        table.add_row(
            row.name, f"{1e3 * row.measured:.4g}",
            f"{1e3 * row.base:.4g}", f"{100 * (row.base / row.measured - 1):+.1f}",
            f"{1e3 * row.fitted:.4g}", f"{100 * (row.fitted / row.measured - 1):+.1f}", held_out,
        )  # fmt: skip
    console.print(table)
    tell(f"scale {result.scale:.4g}, freedom: {result.level}")
    for layer_class, seen in fitted.calibration.fitted.items():
        tell(
            f"fitted {layer_class}: {seen.layers} shapes, K {seen.row_length[0]}..{seen.row_length[1]}, "
            f"positions {seen.pixels[0]}..{seen.pixels[1]}, channels {seen.channels[0]}..{seen.channels[1]}"
        )
    tell(f"{out}: {fitted.calibration.status}: {fitted.calibration.statement}")
    if fitted.calibration.status == "uncalibrated":
        tell("its milliseconds stay labelled uncalibrated: trust ratios, or measure more")
