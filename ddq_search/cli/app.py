"""The commands and their options: what people type. What happens then is in `runs`, `deployment` and `lookups`.

Those are imported when a command runs, so that ``--help`` does not wait for torch.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from ddq_search import __version__
from ddq_search.cli.output import tell
from ddq_search.errors import ConfigError
from ddq_search.method_names import Method

_PACKAGES = ("ddq_search", "search_spaces", "hardware_models", "reports")

app = typer.Typer(
    name="ddq-search", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Searches the precision of every layer of a neural network for an ARM device.",
)  # fmt: skip

Run = Annotated[Path, typer.Argument(help="run directory", show_default=False)]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML configuration; flags override it")]
ModelName = Annotated[str | None, typer.Option("--model", help="family, torchvision:NAME or package.module:callable")]
Weights = Annotated[str | None, typer.Option("--weights", help=".safetensors or .pth of the float model")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="digits, synthetic[:CxHxWxK], torchvision:NAME, folder, archive or .npz; "
        "to enlarge images: sample-images or patches:PATH",
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="device profile: name or TOML file")]
Latency = Annotated[str | None, typer.Option("--latency", help="budget: 12 (ms), or 80% of uniform 8 bit")]
Flash = Annotated[str | None, typer.Option("--flash-kib", "--flash", help="budget: 40 (KiB), or 55% of uniform 8 bit")]
PeakRam = Annotated[
    str | None, typer.Option("--peak-ram-kib", "--peak-ram", help="budget: 64 (KiB), or 90% of uniform 8 bit")
]
Seed = Annotated[int | None, typer.Option("--seed", help="seed of everything random")]
Pins = Annotated[
    list[str] | None, typer.Option("--pin", metavar="PATTERN=BITS[,BITS]", help="fixes layers by name; repeatable")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="any key of the configuration; repeatable")
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="processes that train points at the same time [default: 1]")
]
PolicyName = Annotated[str, typer.Option("--policy", help="best, a policy's name, or a policy file (.json, .csv)")]


def _show_version(wanted: bool) -> None:
    if wanted:
        tell(f"ddq-search {__version__}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Searches the precision of every layer of a neural network for an ARM device."""
    check_packages()


def check_packages() -> None:
    """Checks that all four packages come from one installation.

    Raises:
        ConfigError: a foreign package of the same name (a folder called ``reports``, say) shadows one of ours.
    """
    root = Path(__file__).resolve().parents[2]
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        folders = [Path(place).resolve() for place in (spec and spec.submodule_search_locations) or ()]
        if folders != [root / name]:
            raise ConfigError(
                f"package {name!r} comes from {', '.join(map(str, folders)) or 'nowhere'}, not from {root / name}: "
                "a folder of that name shadows it; run from another directory or rename the folder"
            )


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
    out: Annotated[Path | None, typer.Option("--out", help="run directory [default: runs/first]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted run")] = False,
    method: Annotated[
        str | None, typer.Option("--method", help=f"{', '.join(get_args(Method))} (docs/methods.md)")
    ] = None,
    mode: Annotated[str | None, typer.Option("--mode", help="joint, supernet, or ptq: no training, no labels")] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="also train uniform, random, greedy and ILP policies, for the verdict")
    ] = False,
    workers: Workers = None,
) -> None:
    """Searches policies under budgets: float training, joint search, fine-tuning, front."""
    from ddq_search.cli import runs

    if mode is not None:
        set_ = [*(set_ or ()), f"search.mode={mode}"]
    if method is not None:
        set_ = [*(set_ or ()), f"search.method={method}"]
    if baselines:
        set_ = [*(set_ or ()), 'search.baselines=["lsq-uniform", "random", "greedy", "ilp"]']
    if workers is not None:
        set_ = [*(set_ or ()), f"training.workers={workers}"]
    flags = _flags(model, weights, data, device, latency, flash, peak_ram, seed)
    runs.search(config, flags, pin, set_, out, resume=resume)


def _flags(
    model: str | None, weights: str | None, data: str | None, device: str | None, latency: str | None,
    flash: str | None, peak_ram: str | None, seed: int | None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "model.name": model, "model.weights": weights, "data.name": data, "device.profile": device,
        "budgets.latency": latency, "budgets.flash": flash, "budgets.peak_ram": peak_ram, "seed": seed,
    }  # fmt: skip


@app.command()
def solve(
    run: Run,
    device: Device = None,
    latency: Latency = None,
    flash: Flash = None,
    peak_ram: PeakRam = None,
    set_: Settings = None,
    out: Annotated[Path, typer.Option("--out", help="run directory of the result")] = Path("runs/solved"),
    quick: Annotated[bool, typer.Option("--quick", help="one policy for the budgets, not fine-tuned")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted solve")] = False,
) -> None:
    """Solves another device or other budgets with the supernet of a finished run, without training it again."""
    from ddq_search.cli import runs

    if quick:
        set_ = [*runs.QUICK, *(set_ or ())]
    flags = _flags(None, None, None, device, latency, flash, peak_ram, None)
    runs.solve(run, flags, set_, out, resume=resume)


@app.command()
def report(run: Run) -> None:
    """Writes the offline HTML report of a run."""
    from ddq_search.cli import runs

    runs.report(run)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="run directories", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write")] = Path("runs/comparison.html"),
) -> None:
    """Compares the fronts of several runs in one offline HTML page."""
    from ddq_search.cli.runs import compare as compare_runs

    compare_runs(runs, out)


@app.command()
def export(
    run: Run,
    policy: PolicyName = "best",
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="onnx (QDQ), tflite, c (C99 project), program (integer program only); several with commas, or all "
            "[default: what the priced runtime reads]",
        ),
    ] = None,
) -> None:
    """Exports a policy: the integer program with packed weights, and ONNX QDQ."""
    from ddq_search.cli import deployment

    deployment.export(run, policy, format_)


@app.command()
def verify(
    run: Run,
    policy: Annotated[
        str | None, typer.Option("--policy", help="best, or the name of an exported policy; default: all exported")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="validation images to compare on")] = 256,
) -> None:
    """Proves that what was exported computes what was searched."""
    from ddq_search.cli import deployment

    deployment.verify(run, policy, samples)


@app.command()
def inspect(
    model: Annotated[
        str, typer.Argument(help="family, torchvision:NAME or package.module:callable", show_default=False)
    ],
    device: Device = None,
    data: Data = None,
    pin: Pins = None,
    set_: Settings = None,
    input_shape: Annotated[str, typer.Option("--input", help="CxHxW when no --data is given")] = "3x32x32",
    classes: Annotated[int, typer.Option("--classes", min=1, help="classes when no --data is given")] = 10,
    json_out: Annotated[Path | None, typer.Option("--json", help="also write the graph as JSON")] = None,
    graphml: Annotated[Path | None, typer.Option("--graphml", help="also write the graph as GraphML")] = None,
) -> None:
    """Shows per layer: operation, shapes, MACs, weights, legal precisions and what each costs."""
    from ddq_search.cli import lookups

    flags = {"model.name": model, "device.profile": device, "data.name": data}
    shape = None if data else (input_shape, classes)
    lookups.inspect(flags, pin, set_, shape, json_out, graphml)


@app.command()
def price(run: Run, policy: PolicyName = "best") -> None:
    """Prices a policy of a run, or an edited policy file, with the run's device and budgets."""
    from ddq_search.cli import lookups

    lookups.price(run, policy)


@app.command()
def policy(
    run: Run,
    policy: PolicyName = "best",
    to: Annotated[
        str, typer.Option("--to", help="json, csv (one row per layer) or recipe (AI Edge Quantizer)")
    ] = "json",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="file to write [default: the terminal]")] = None,
) -> None:
    """Writes a policy of a run, or a policy file, in a format that other tools read."""
    from ddq_search.cli import lookups

    lookups.convert(run, policy, to, out)


@app.command()
def evaluate(
    run: Run,
    policy: PolicyName = "best",
    split: Annotated[str, typer.Option("--split", help="validation or test")] = "validation",
) -> None:
    """Evaluates a policy in integers; an edited policy gets re-estimated batch-norm statistics, no training."""
    from ddq_search.cli import lookups

    lookups.evaluate(run, policy, split)


@app.command()
def devices(
    name: Annotated[str | None, typer.Argument(help="profile to show in full, as JSON", show_default=False)] = None,
    validate: Annotated[
        bool, typer.Option("--validate", help="compare with the published figures shipped with the profiles")
    ] = False,
) -> None:
    """Lists the device profiles, prints one with all its sources, or compares with published figures."""
    from ddq_search.cli import lookups

    lookups.devices(name, validate=validate)


@app.command()
def calibrate(
    base: Annotated[str, typer.Argument(help="profile to start from: name or TOML file", show_default=False)],
    measurements: Annotated[
        Path,
        typer.Argument(help="CSV of layers or networks, or benchmark_model's operator profile", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="profile to write")] = Path("mine.toml"),
    model: Annotated[
        str | None, typer.Option("--model", help="network of an operator profile: family, graph .json, layers .csv")
    ] = None,
    weight_bits: Annotated[int, typer.Option("--weight-bits", min=2, max=8, help="of an operator profile")] = 8,
    act_bits: Annotated[int, typer.Option("--act-bits", min=2, max=8, help="of an operator profile")] = 8,
    input_shape: Annotated[str, typer.Option("--input", help="CxHxW of networks that are named")] = "3x32x32",
    classes: Annotated[int, typer.Option("--classes", min=1, help="classes of networks that are named")] = 10,
) -> None:
    """Fits a device profile to your own measurements and says how far it can be trusted."""
    from ddq_search.cli.calibration import calibrate as calibrate_profile

    calibrate_profile(base, measurements, out, model, (weight_bits, act_bits), input_shape, classes)


@app.command()
def models() -> None:
    """Lists the model families."""
    from ddq_search.cli import lookups

    lookups.models()


@app.command()
def tune(
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
    out: Annotated[Path, typer.Option("--out", help="study directory")] = Path("runs/tune"),
    trials: Annotated[int, typer.Option("--trials", min=1, help="finished trials the study should have")] = 10,
    objective: Annotated[
        str, typer.Option("--objective", help="multi (score, latency, flash) or scalar (loss within the budgets)")
    ] = "multi",
    sampler: Annotated[str, typer.Option("--sampler", help="tpe, nsga2, random, gp, … (Optuna's, by name)")] = "tpe",
    pruner: Annotated[
        str | None, typer.Option("--pruner", help="median, hyperband, … (Optuna's, by name); scalar studies only")
    ] = None,
    space: Annotated[Path | None, typer.Option("--space", help="TOML file of the settings to vary")] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="processes on this machine")] = 1,
    storage: Annotated[
        str | None,
        typer.Option("--storage", help="Optuna storage URL, such as postgresql+psycopg://… [default: SQLite in --out]"),
    ] = None,
    heartbeat: Annotated[
        int,
        typer.Option("--heartbeat", min=1, help="seconds; a worker silent for four times as long is taken for dead"),
    ] = 30,
    stop_hopeless: Annotated[
        bool, typer.Option("--stop-hopeless/--keep-hopeless", help="stop multi-objective trials that lie far behind")
    ] = True,
) -> None:
    """Tunes settings with Optuna; the same command resumes a study, and joins it from elsewhere."""
    from ddq_search.cli import tuning

    flags = _flags(model, weights, data, device, latency, flash, peak_ram, seed)
    plan = {
        "trials": trials, "objective": objective, "sampler": sampler, "pruner": pruner, "storage": storage,
        "heartbeat_s": heartbeat, "stop_hopeless": stop_hopeless,
    }  # fmt: skip
    tuning.tune(config, flags, pin, set_, out, plan, space, workers)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="run directory")] = Path("runs/demo"),
    resume: Annotated[bool, typer.Option("--resume", help="a demo goes on anyway where it stopped")] = False,
) -> None:
    """The main job on embedded data: search, front, report, export, proof."""
    from ddq_search.cli import runs

    runs.demo(out)
