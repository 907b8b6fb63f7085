"""The commands that show something: inspect, price, policy, evaluate, devices, models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ddq_search.budget import LABELS, show
from ddq_search.cli.output import console, tell, writing
from ddq_search.cost import LATENCY
from ddq_search.errors import ConfigError

if TYPE_CHECKING:
    from ddq_search.problem import Problem


def inspect(
    flags: Mapping[str, Any],
    pins: list[str] | None,
    settings: list[str] | None,
    shape: tuple[str, int] | None,
    json_out: Path | None,
    graphml: Path | None,
) -> None:
    """Shows the layers of a model and what each choice costs; ``shape`` is (CxHxW, classes) where there is no data."""
    from ddq_search.cli import assembly
    from ddq_search.cli.settings import read_config
    from ddq_search.cli.tables import layer_table
    from ddq_search.graph import to_json, write_graphml
    from ddq_search.record import write_atomically
    from hardware_models import device_free

    config = read_config(None, flags, pins, settings)
    problem = assembly.assemble(config) if shape is None else assembly.assemble_shape(config, *shape)
    console.print(layer_table(problem))
    uncalibrated = "" if problem.device.calibration.startswith("calibrated") else " (uncalibrated)"
    totals = ", ".join(
        f"{LABELS[cost]} {show(cost, value)}{uncalibrated if cost == LATENCY else ''}"
        for cost, value in problem.pricing.reference.items()
    )
    counts = device_free.totals(problem.graph)
    tell(f"{counts[device_free.MACS]:,} multiply-accumulates, {counts[device_free.PARAMETERS]:,} weights")
    tell(f"uniform 8 bit: {totals}")
    tell_trust(problem)
    for pattern in problem.space.unused_rules:
        tell(f"pin {pattern!r} matched nothing")
    if json_out:
        write_atomically(json_out, to_json(problem.graph).encode())
    if graphml:
        with writing(graphml):
            graphml.parent.mkdir(parents=True, exist_ok=True)
            write_graphml(problem.graph, graphml)


def price(run: Path, policy: str) -> None:
    """Prices a policy."""
    from ddq_search.cli import assembly

    problem, record = assembly.open_run(run)
    chosen = assembly.find_policy(problem, record, policy)
    table = Table("cost", "price", "budget", title=f"{chosen.name} on {problem.device.name}", title_justify="left")
    for row in assembly.price_lines(problem, chosen):
        table.add_row(*row)
    console.print(table)
    tell_trust(problem)


def tell_trust(problem: Problem) -> None:
    """Says how far latencies can be trusted, and where the model leaves the shapes that the profile was fitted to."""
    from hardware_models.calibrated_profile import extrapolations
    from hardware_models.model import ArmCostModel

    tell(f"latency is {problem.device.calibration}")
    if isinstance(problem.device, ArmCostModel):
        for sentence in extrapolations(problem.device.profile, problem.graph):
            tell(f"latency {sentence}")


def convert(run: Path, policy: str, to: str, out: Path | None) -> None:
    """Writes a policy in a format of `ddq_search.interchange`."""
    from ddq_search.cli import assembly
    from ddq_search.interchange import write_policy
    from ddq_search.quantizer_recipe import unsupported
    from ddq_search.record import write_atomically

    problem, record = assembly.open_run(run)
    chosen = assembly.find_policy(problem, record, policy)
    text = write_policy(chosen, problem.space, problem.graph, to)
    if out is None:
        tell(text.replace("\r\n", "\n").rstrip("\n"))
        return
    write_atomically(out, text.encode())
    tell(f"{chosen.name} written to {out}")
    beyond = unsupported(chosen, problem.space, problem.graph)
    if to == "recipe" and beyond:
        tell(f"AI Edge Quantizer has no kernels for {len(beyond)} of its operations: {', '.join(beyond)}")


def evaluate(run: Path, policy: str, split: str) -> None:
    """Evaluates a policy."""
    from ddq_search.cli import assembly
    from ddq_search.problem import evaluate_policy

    if split not in ("validation", "test"):
        raise ConfigError(f"unknown split {split!r}; available: validation, test")
    problem, record = assembly.open_run(run)
    chosen, net, trained = assembly.open_policy(problem, record, policy)
    result = evaluate_policy(problem, net, chosen, "test" if split == "test" else "validation")
    task = problem.task
    tell(f"{chosen.name} ({trained}): {split} loss {result.loss:.4f}, {task.metric} {result.score:.2f} {task.unit}")


def devices(name: str | None, *, validate: bool = False) -> None:
    """Lists the device profiles, prints one, or compares one or all with published figures."""
    from hardware_models.plugin import load, registered
    from hardware_models.profile import list_profiles, load_profile

    if validate:
        _validate(name)
        return
    if name is not None:
        console.print_json(load_profile(name).model_dump_json())
        return
    table = Table("device", "core", "runtime", "held-out error", "of what", show_lines=True)
    table.columns[0].overflow = "fold"
    for profile in map(load_profile, list_profiles()):
        found = profile.calibration
        error = "" if found.held_out_error_pct is None else f"{found.held_out_error_pct:.1f} %"
        trusted = error if found.status == "calibrated" else f"{error} uncalibrated".strip()
        table.add_row(profile.name, profile.core, profile.runtime, trusted, found.statement)
    for model in map(load, registered().values()):
        status, _, statement = model.calibration.partition(": ")
        table.add_row(model.name, str(getattr(model, "core", "")), "registered cost model", status, statement)
    console.print(table)


def _validate(name: str | None) -> None:
    """Reruns profiles against the published and counted figures shipped with them."""
    from hardware_models.cmsis_nn import closed_form_checks
    from hardware_models.profile import load_profile
    from hardware_models.validation import checks_of, validate

    if name is None:
        checks = validate()
    else:  # of a profile that is not shipped, what its runtime's counts say
        profile = load_profile(name)
        checks = checks_of(profile.name) or closed_form_checks(profile)
    if not checks:
        tell(f"{name}: no published or counted figures to compare with; its milliseconds are labelled uncalibrated")
        return
    table = Table(title="predicted against published and counted figures", title_justify="left")
    for title in ("subject", "what", "split"):
        table.add_column(title, overflow="fold")
    for title in ("figures", "error %", "worst %", "asked %"):
        table.add_column(title, justify="right")
    for check in checks:
        asked = "" if check.bar_pct is None else f"{check.bar_pct:g}"
        figures = (str(check.samples), f"{check.error_pct:.1f}", f"{check.worst_pct:.1f}", asked)
        table.add_row(check.subject, check.what, check.split, *figures)
    console.print(table)


def models() -> None:
    """Lists the model families."""
    from search_spaces.models import list_models

    for name in list_models():
        tell(name)
    tell("torchvision:NAME           any classifier of torchvision, such as torchvision:mobilenet_v2")
    tell("package.module:callable    your own: a function or class that returns a torch.nn.Module")
