"""The commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ddq_search import __version__
from ddq_search.budget import LABELS, show
from ddq_search.cli import assembly
from ddq_search.cli.progress import progress_for
from ddq_search.cli.tables import front_table, layer_table
from ddq_search.config import RunConfig, load_config
from ddq_search.errors import ConfigError, VerificationError
from ddq_search.judgement import Front
from ddq_search.record import RunDirectory, locked
from ddq_search.search import search as run_search
from ddq_search.export.onnx_runtime import OnnxReport

app = typer.Typer(
    name="ddq-search", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Searches the precision of every layer of a neural network for an ARM device.",
)  # fmt: skip
console = Console() if sys.stdout.isatty() else Console(width=140)

Run = Annotated[Path, typer.Argument(help="run directory")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML configuration; flags override it")]
ModelName = Annotated[str | None, typer.Option("--model", help="family, torchvision:NAME or package.module:callable")]
Weights = Annotated[str | None, typer.Option("--weights", help=".safetensors or .pth of the float model")]
Data = Annotated[str | None, typer.Option("--data", help="digits, torchvision:NAME, folder, archive or .npz")]
Device = Annotated[str | None, typer.Option("--device", help="device profile: name or TOML file")]
Latency = Annotated[str | None, typer.Option("--latency", help="budget: ms, or % of uniform 8 bit")]
Flash = Annotated[str | None, typer.Option("--flash-kib", "--flash", help="budget: KiB, or % of uniform 8 bit")]
PeakRam = Annotated[str | None, typer.Option("--peak-ram-kib", "--peak-ram", help="budget: KiB, or %")]
Seed = Annotated[int | None, typer.Option("--seed", help="seed of everything random")]
Pins = Annotated[list[str] | None, typer.Option("--pin", help="PATTERN=BITS[,BITS]; may be repeated")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the configuration; may be repeated")]
PolicyName = Annotated[str, typer.Option("--policy", help="best, a policy's name, or a policy file")]


def _config(path: Path | None, flags: dict[str, Any], pins: list[str] | None, settings: list[str] | None) -> RunConfig:
    overrides = {key: value for key, value in flags.items() if value is not None}
    for pin in pins or ():
        pattern, separator, bits = pin.rpartition("=")
        if not separator or not all(part.strip().isdigit() for part in bits.split(",")):
            raise ConfigError(f"--pin {pin!r}: expected PATTERN=BITS or PATTERN=BITS,BITS")
        overrides[f"space.pins.{pattern}"] = [int(part) for part in bits.split(",")]
    for setting in settings or ():
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting!r}: expected KEY=VALUE")
        overrides[key] = _value(value)
    return load_config(path, overrides)


def _value(text: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(f"ddq-search {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print it")] = False,
) -> None:
    """Searches the precision of every layer of a neural network for an ARM device."""
    assembly.check_packages()


@app.command()
def search(
    config: ConfigFile = None,
    model: ModelName = None,
    weights: Weights = None,
    data: Data = None,
    device: Device = None,
    latency: Latency = None,
    flash: Flash = None,
    peak_ram: PeakRam = None,
    seed: Seed = None,
    pin: Pins = None,
    set_: Settings = None,
    out: Annotated[Path | None, typer.Option("--out", help="run directory")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted run")] = False,
) -> None:
    """Searches policies under budgets: float training, joint search, fine-tuning, front."""
    flags = {
        "model.name": model, "model.weights": weights, "data.name": data, "device.profile": device,
        "budgets.latency": latency, "budgets.flash": flash, "budgets.peak_ram": peak_ram, "seed": seed,
        "out": str(out) if out else None,
    }  # fmt: skip
    stored = out / "config.toml" if out else None
    only_resume = config is None and not (pin or set_) and not any(v is not None for k, v in flags.items() if k != "out")
    if resume and only_resume and stored is not None and stored.exists():
        config = stored
    _search(_config(config, flags, pin, set_), resume=resume)


def _search(config: RunConfig, *, resume: bool) -> Front:
    path = Path(config.out)
    with locked(path):
        record = assembly.begin_run(path, config, resume=resume)
        problem = assembly.assemble(config)
        with progress_for(console) as progress:
            front = run_search(problem, record, progress)
    document = front.document()
    console.print(front_table(document))
    _tell_best(front, document)
    return front


def _tell_best(front: Front, document: dict[str, Any]) -> None:
    best = front.point("best")
    unit = front.problem.task.unit
    delta = best.validation.score - front.float_validation.score
    console.print(
        f"best: {front.best}, validation {best.validation.score:.2f} {unit} ({delta:+.2f} against float32 of equal "
        f"epochs), latency {show('latency_s', best.price['latency_s'], document['reference'])}",
        highlight=False,
    )
    console.print(f"latency is {front.problem.device.calibration}", highlight=False)


@app.command()
def report(run: Run) -> None:
    """Writes the offline HTML report of a run."""
    from reports.page import build_report

    console.print(f"report: {build_report(run)}", highlight=False, soft_wrap=True)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="run directories")],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write")] = Path("runs/comparison.html"),
) -> None:
    """Compares the fronts of several runs in one offline HTML page."""
    from reports.compare import build_comparison

    console.print(f"comparison: {build_comparison(runs, out)}", highlight=False, soft_wrap=True)


@app.command()
def export(
    run: Run,
    policy: PolicyName = "best",
    format_: Annotated[str, typer.Option("--format", help="onnx (QDQ) or program (integer program only)")] = "onnx",
) -> None:
    """Exports a policy: the integer program with packed weights, and ONNX QDQ."""
    if format_ not in ("onnx", "program"):
        raise ConfigError(f"unknown format {format_!r}; available: onnx, program")
    problem, record = assembly.open_run(run)
    _export(problem, record, policy, format_)


def _export(problem: assembly.Problem, record: RunDirectory, wanted: str, format_: str) -> Path:
    from ddq_search.export.onnx import export_onnx
    from ddq_search.integer.lowering import lower
    from ddq_search.integer.serialize import save_program

    policy, net, trained = assembly.open_policy(problem, record, wanted)
    program = lower(net.discretize(policy.bits), problem.device.arithmetic)
    folder = record.path / "export" / policy.name
    save_program(program, folder)
    record.write_text(f"export/{policy.name}/policy.json", policy.to_json())
    if format_ == "onnx":
        export_onnx(program, folder / "model.onnx")
    price = problem.pricing.price(policy.bits)
    console.print(
        f"exported {policy.name} ({trained}) to {folder}: program.bin {(folder / 'program.bin').stat().st_size} bytes, "
        f"priced {price['flash_bytes']:.0f}; arithmetic {problem.device.arithmetic}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    return folder


@app.command()
def verify(
    run: Run,
    policy: Annotated[str | None, typer.Option("--policy", help="only this exported policy")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="validation images to compare on")] = 256,
) -> None:
    """Proves that what was exported computes what was searched."""
    problem, record = assembly.open_run(run)
    root = run / "export"
    names = [policy] if policy else sorted(p.name for p in root.iterdir() if p.is_dir()) if root.exists() else []
    if policy == "best":
        names = [str(record.read_json("front.json")["best"])]
    if not names:
        raise VerificationError(f"{root} holds no export; `ddq-search export {run}` makes one")
    if not all([_verify(problem, record, name, samples) for name in names]):
        raise VerificationError("not everything that was exported computes what was searched; see verification.json")


def _verify(problem: assembly.Problem, record: RunDirectory, name: str, samples: int) -> bool:
    from ddq_search.verify import verify_program

    folder = record.path / "export" / name
    stored = folder / "policy.json"
    if not stored.exists():
        raise VerificationError(f"{folder} holds no export; `ddq-search export {record.path} --policy {name}` makes one")
    policy, net, _ = assembly.open_policy(problem, record, str(stored))
    images = assembly.sample_images(problem, samples)
    flash = round(problem.pricing.price(policy.bits)["flash_bytes"])
    result = verify_program(net.discretize(policy.bits), folder, images.numpy(), priced_flash_bytes=flash)
    codes = sum(c.codes for c in result.tensors.values())
    state = "bit-exact" if result.bit_exact else "NOT bit-exact"
    console.print(
        f"verify: {state} over {len(result.tensors)} tensors, {codes:,} codes, {result.samples} samples ({name})",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if result.onnx is not None:
        console.print(f"  onnx: {_onnx_line(result.onnx)}", highlight=False, soft_wrap=True)
    else:
        console.print(f"  onnx not run: {result.onnx_note}", highlight=False, soft_wrap=True)
    for line in result.problems():
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    return result.passed


def _onnx_line(onnx: OnnxReport) -> str:
    worst = max(onnx.operators.values(), key=lambda c: c.differing / max(c.codes, 1))
    return (
        f"{len(onnx.operators)} operators on reference inputs, worst {worst.differing} of {worst.codes} codes differ by at "
        f"most {max(c.largest_delta for c in onnx.operators.values())} ({'passed' if onnx.passed else 'FAILED'}); end to "
        f"end {100 * onnx.top1_agreement:.2f} % same top-1"
    )


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="family, torchvision:NAME or package.module:callable")],
    device: Device = None,
    data: Data = None,
    pin: Pins = None,
    set_: Settings = None,
    input_shape: Annotated[str, typer.Option("--input", help="CxHxW when no --data is given")] = "3x32x32",
    classes: Annotated[int, typer.Option("--classes", min=1)] = 10,
    json_out: Annotated[Path | None, typer.Option("--json", help="also write the graph as JSON")] = None,
    graphml: Annotated[Path | None, typer.Option("--graphml", help="also write the graph as GraphML")] = None,
) -> None:
    """Shows per layer: operation, shapes, MACs, weights, legal precisions and what each costs."""
    from ddq_search.graph import to_json, write_graphml
    from ddq_search.record import write_atomically

    config = _config(None, {"model.name": model, "device.profile": device, "data.name": data}, pin, set_)
    problem = assembly.assemble(config) if data else assembly.assemble_shape(config, input_shape, classes)
    console.print(layer_table(problem))
    totals = ", ".join(f"{LABELS[c]} {show(c, v)}" for c, v in problem.pricing.reference.items())
    console.print(f"uniform 8 bit: {totals}", highlight=False, soft_wrap=True)
    console.print(f"latency is {problem.device.calibration}", highlight=False, soft_wrap=True)
    for pattern in problem.space.unused_rules:
        console.print(f"pin {pattern!r} matched nothing", highlight=False, markup=False)
    if json_out:
        write_atomically(json_out, to_json(problem.graph).encode())
    if graphml:
        write_graphml(problem.graph, graphml)


@app.command()
def price(run: Run, policy: PolicyName = "best") -> None:
    """Prices a policy of a run, or an edited policy file, with the run's device and budgets."""
    problem, record = assembly.open_run(run)
    chosen = assembly.find_policy(problem, record, policy)
    table = Table("cost", "price", "budget", title=f"{chosen.name} on {problem.device.name}", title_justify="left")
    for row in assembly.price_lines(problem, chosen):
        table.add_row(*row)
    console.print(table)
    console.print(f"latency is {problem.device.calibration}", highlight=False, soft_wrap=True)


@app.command()
def evaluate(
    run: Run,
    policy: PolicyName = "best",
    split: Annotated[str, typer.Option("--split", help="validation or test")] = "validation",
) -> None:
    """Evaluates a policy in integers; an edited policy gets re-estimated batch-norm statistics, no training."""
    from ddq_search.problem import evaluate_policy

    if split not in ("validation", "test"):
        raise ConfigError(f"unknown split {split!r}; available: validation, test")
    problem, record = assembly.open_run(run)
    chosen, net, trained = assembly.open_policy(problem, record, policy)
    result = evaluate_policy(problem, net, chosen, "test" if split == "test" else "validation")
    task = problem.task
    console.print(
        f"{chosen.name} ({trained}): {split} loss {result.loss:.4f}, {task.metric} {result.score:.2f} {task.unit}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


@app.command()
def devices(name: Annotated[str | None, typer.Argument(help="profile to show in full")] = None) -> None:
    """Lists the device profiles, or prints one with all its sources."""
    from hardware_models.profile import list_profiles, load_profile

    if name is not None:
        console.print_json(load_profile(name).model_dump_json())
        return
    table = Table("device", "core", "runtime", "latency", title_justify="left")
    for profile in map(load_profile, list_profiles()):
        calibration = f"{profile.calibration.status}: {profile.calibration.statement}"
        table.add_row(profile.name, profile.core, profile.runtime, calibration)
    console.print(table)


@app.command()
def models() -> None:
    """Lists the model families."""
    from search_spaces.models import list_models

    for name in list_models():
        console.print(name, highlight=False)
    console.print("torchvision:NAME, package.module:callable", highlight=False)


@app.command()
def tune(
    config: ConfigFile = None,
    model: ModelName = None,
    data: Data = None,
    device: Device = None,
    latency: Latency = None,
    flash: Flash = None,
    peak_ram: PeakRam = None,
    seed: Seed = None,
    set_: Settings = None,
    out: Annotated[Path, typer.Option("--out", help="study directory")] = Path("runs/tune"),
    trials: Annotated[int, typer.Option("--trials", min=1, help="finished trials the study should have")] = 10,
    storage: Annotated[str | None, typer.Option("--storage", help="Optuna storage URL; default: SQLite in --out")] = None,
) -> None:
    """Tunes training settings with Optuna: score, latency and flash at once; the same command resumes a study."""
    from ddq_search.tune import run_study

    flags = {
        "model.name": model, "data.name": data, "device.profile": device, "budgets.latency": latency,
        "budgets.flash": flash, "budgets.peak_ram": peak_ram, "seed": seed, "out": str(out),
    }  # fmt: skip
    base = _config(config, flags, None, set_)
    with locked(out), progress_for(console) as progress:
        study = run_study(base, assembly.assemble, out, trials=trials, storage=storage, progress=progress)
    table = Table("trial", "score", "latency ms", "flash KiB", "settings", title="Pareto-optimal trials")
    for trial in study.best_trials:
        score, seconds, size = trial.values
        table.add_row(str(trial.number), f"{score:.2f}", f"{seconds * 1e3:.4g}", f"{size / 1024:.1f}", str(trial.params))
    console.print(table)
    console.print(f"study: {out / 'tune.db' if storage is None else storage}", highlight=False, soft_wrap=True)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="run directory")] = Path("runs/demo"),
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted run")] = False,
) -> None:
    """The main job on embedded data: search, front, report, export, proof."""
    config = load_config(None, {**DEMO, "out": str(out)})
    if not resume and (out / "front.json").exists():
        console.print(f"{out} holds a finished demo; going on with it (remove it to start over)", highlight=False)
    front = _search(config, resume=True)
    record = RunDirectory(out, front.problem.fingerprint)
    _export(front.problem, record, "best", "onnx")
    exact = _verify(front.problem, record, front.best, 256)
    report(out)
    if not exact:
        raise VerificationError("the export does not compute what was searched")


DEMO: dict[str, Any] = {
    "model.name": "resnet8",
    "data.name": "digits",
    "device.profile": "cortex-a53-rpi3-lowbit-neon",
    "budgets.latency": "90%",
    "budgets.flash": "40",
    "training.threads": 2,
}

