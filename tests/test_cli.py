"""The command line: its surface, a run from search to proof, and a user's mistakes, each one clear message."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from typer.main import get_command

from ddq_search.cli import Interrupted, main
from ddq_search.cli.app import app
from ddq_search.cli.output import resumable
from ddq_search.export.c.proof import EMULATED
from ddq_search.method_names import Method

FAST = [
    f"--set={key}={value}"
    for key, value in {
        "training.float_epochs": 1, "training.joint_epochs": 1, "training.finetune_epochs": 1, "search.points": 2,
        "search.relaxed_points": 0, "search.uniform": "[[8, 8]]", "training.norm_batches": 2, "data.limit": 200,
    }.items()
]  # fmt: skip
SEARCH = ["search", "--data", "digits", "--latency", "85%", "--flash-kib", "40", *FAST]

Call = Callable[..., tuple[int, str, str]]

SURFACE = {
    "": ["--version"],
    "search": [
        "--config", "--model", "--weights", "--data", "--device", "--latency", "--flash-kib", "--flash",
        "--peak-ram-kib", "--peak-ram", "--seed", "--pin", "--set", "--out", "--resume", "--method", "--mode",
        "--baselines", "--workers",
    ],
    "solve": [
        "run", "--device", "--latency", "--flash-kib", "--flash", "--peak-ram-kib", "--peak-ram", "--set", "--out",
        "--quick", "--resume",
    ],
    "report": ["run"],
    "compare": ["runs", "--out"],
    "export": ["run", "--policy", "--format"],
    "verify": ["run", "--policy", "--samples"],
    "inspect": [
        "model", "--device", "--data", "--pin", "--set", "--input", "--classes", "--json", "--graphml",
    ],
    "price": ["run", "--policy"],
    "policy": ["run", "--policy", "--to", "--out"],
    "evaluate": ["run", "--policy", "--split"],
    "devices": ["name", "--validate"],
    "calibrate": [
        "base", "measurements", "--out", "--model", "--weight-bits", "--act-bits", "--input", "--classes",
    ],
    "models": [],
    "tune": [
        "--config", "--model", "--weights", "--data", "--device", "--latency", "--flash-kib", "--flash",
        "--peak-ram-kib", "--peak-ram", "--seed", "--pin", "--set", "--out", "--trials", "--objective", "--sampler",
        "--pruner", "--space", "--workers", "--storage", "--heartbeat", "--stop-hopeless",
    ],
    "demo": ["--out", "--resume"],
}  # fmt: skip


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls the command line; returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ddq-search", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; never written to."""
    path = tmp_path_factory.mktemp("cli") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ddq-search", *SEARCH, "--out", str(path)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def _refused(answer: tuple[int, str, str], *said: str, code: int = 1) -> None:
    status, _, err = answer
    assert status == code
    assert "Traceback" not in err
    assert err.startswith("error: ") or code == 2
    for text in said:
        assert text in err


def test_surface() -> None:
    group: Any = get_command(app)
    found = {"": _names(group)} | {name: _names(command) for name, command in group.commands.items()}
    assert found == SURFACE


def _names(command: Any) -> list[str]:
    names: list[str] = []
    for parameter in command.params:
        options = [o for o in parameter.opts if o.startswith("--")]
        names += options or [parameter.name]
    return [name for name in names if name != "--help"]


def test_help_names_every_method() -> None:
    group: Any = get_command(app)
    (option,) = (parameter for parameter in group.commands["search"].params if parameter.name == "method")
    assert option.help.startswith(", ".join(get_args(Method)))


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; import ddq_search.cli.app; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- the way of a run -------------------------------------------------------------------------------------------


def test_export_and_verify(call: Call, run: Path) -> None:
    code, out, _ = call("export", run, "--format", "onnx")
    assert code == 0
    assert "fine-tuned" in out
    code, out, _ = call("verify", run)
    assert code == 0
    assert "verify: bit-exact over" in out
    assert "(passed)" in out
    best = json.loads((run / "front.json").read_text())["best"]
    folder = run / "export" / best
    assert {p.name for p in folder.iterdir()} >= {"program.bin", "program.json", "model.onnx", "verification.json"}
    assert call("export", run, "--format", "program")[0] == 0
    assert not (folder / "model.onnx").exists()
    data = bytearray((folder / "program.bin").read_bytes())
    data[100] ^= 1
    (folder / "program.bin").write_bytes(bytes(data))
    _refused(call("verify", run), "program.bin")
    (folder / "program.bin").write_bytes(bytes(data[:50]))
    _refused(call("verify", run, "--policy", "best"), "program.bin")


def test_tflite_export_and_verify(call: Call, run: Path) -> None:
    code, out, _ = call("export", run, "--format", "tflite")
    assert code == 0
    assert "model.tflite: " in out
    code, out, _ = call("verify", run)
    assert code == 0
    folder = run / "export" / json.loads((run / "front.json").read_text())["best"]
    proof = json.loads((folder / "verification.json").read_text())
    ran = importlib.util.find_spec("ai_edge_litert") is not None
    assert ("reference kernels (passed)" in out) == ran
    assert (proof["tflite"] is not None) == ran
    assert call("export", run, "--format", "onnx")[0] == 0
    assert not (folder / "model.tflite").exists()


def test_c_export_and_verify(call: Call, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(EMULATED):  # the emulated targets have their own test
        monkeypatch.delitem(EMULATED, name)  # type: ignore[arg-type]
    code, out, _ = call("export", run, "--format", "c")
    assert code == 0
    assert "C project in" in out
    folder = run / "export" / json.loads((run / "front.json").read_text())["best"]
    proof = json.loads((folder / "c" / "project.json").read_text())
    assert proof["constants_bytes"] == (folder / "program.bin").stat().st_size
    code, out, _ = call("verify", run)
    assert code == 0
    assert ("C: bit-exact on the host" in out) == (shutil.which("cc") is not None)
    (folder / "c" / "model.c").write_text("")
    _refused(call("verify", run), "model.c is missing or was edited")
    assert call("export", run, "--format", "onnx")[0] == 0
    assert not (folder / "c").exists()


def test_one_broken_export_does_not_hide_the_others(call: Call, run: Path) -> None:
    for name in ("p00", "w8a8"):
        assert call("export", run, "--policy", name, "--format", "program")[0] == 0
    (run / "export" / "p00" / "program.bin").unlink()
    code, out, err = call("verify", run)
    assert code == 1
    assert "verify: p00 FAILED" in out
    assert "bit-exact" in out
    assert "p00" in err
    assert "w8a8" not in err


def test_price_and_evaluate_an_edited_policy(call: Call, run: Path, tmp_path: Path) -> None:
    document = json.loads(next((run / "policies").glob("*.json")).read_text())
    document["weights"] = dict.fromkeys(document["weights"], 8)
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(document))
    code, out, _ = call("price", run, "--policy", edited)
    assert code == 0
    assert "OVER 40 KiB" in out
    assert "latency is uncalibrated" in out
    code, out, _ = call("evaluate", run, "--policy", edited)
    assert code == 0
    assert "-edited (supernet weights" in out


@pytest.mark.parametrize(("to", "name"), [("csv", "p.csv"), ("recipe", "p.json"), ("json", "p.json")])
def test_a_policy_leaves_and_comes_back_in_every_format(
    call: Call, run: Path, tmp_path: Path, to: str, name: str
) -> None:
    best = json.loads((run / "front.json").read_text())["best"]
    code, out, _ = call("policy", run, "--to", to, "-o", tmp_path / name)
    assert code == 0
    assert f"{best} written to" in out
    assert ("AI Edge Quantizer has no kernels for" in out) == (to == "recipe")
    priced = call("price", run)
    assert priced[0] == 0
    assert call("price", run, "--policy", tmp_path / name) == priced
    code, out, _ = call("policy", run, "--policy", tmp_path / name, "--to", to)
    assert code == 0
    assert out.split() == (tmp_path / name).read_text().split()
    (tmp_path / name).write_text((tmp_path / name).read_text().replace("8", "5"))
    _refused(call("price", run, "--policy", tmp_path / name), name)
    _refused(call("policy", run, "--to", "yaml"), "unknown policy format 'yaml'; available: json, csv, recipe")


def test_a_finished_run_answers_again(call: Call, run: Path) -> None:
    before = (run / "front.json").read_bytes()
    for _ in range(2):
        code, out, _ = call("search", "--out", run, "--resume")
        assert code == 0
        assert "float32 of equal epochs" in out
    assert (run / "front.json").read_bytes() == before


def test_report_and_comparison(call: Call, run: Path, finished: Path, tmp_path: Path) -> None:
    assert call("report", run)[1].strip().endswith("report.html")
    assert call("compare", run, finished, "--out", tmp_path / "both.html")[0] == 0
    assert (tmp_path / "both.html").stat().st_size > 1000
    (tmp_path / "file").write_text("")
    _refused(call("compare", run, finished, "--out", tmp_path / "file" / "both.html"), "both.html")


def test_lookups(call: Call, tmp_path: Path) -> None:
    assert "resnet8" in call("models")[1]
    assert "uncalibrated" in call("devices")[1]
    assert json.loads(call("devices", "cortex-m7-stm32h743-cmsis-nn")[1])["core"] == "Cortex-M7"
    code, out, _ = call(
        "inspect", "resnet8", "--input", "1x8x8", "--pin", "nothing=8", "--json", tmp_path / "g.json",
        "--graphml", tmp_path / "new" / "g.graphml",
    )  # fmt: skip
    assert code == 0
    assert "uncalibrated" in out
    assert "layer2.0.downsample.0" in out, "names are not cut: pins need them"
    assert "pin 'nothing' matched nothing" in out
    assert json.loads((tmp_path / "g.json").read_text())
    assert (tmp_path / "new" / "g.graphml").exists()
    assert call("--version")[1].startswith("ddq-search ")


# -- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cortex-a53-rpi3-lowbit-nean"], ["cortex-a53-rpi3-lowbit-neon"]),
        (["--set", "training.float_epoch=3"], ["training.float_epoch", "float_epochs"]),
        (["--set", "nothing.at.all=3"], ["unknown configuration key 'nothing'"]),
        (["--set", "training.float_epochs=-3"], ["training.float_epochs", "-3"]),
        (["--set", "seed"], ["expected KEY=VALUE"]),
        (["--set", "search.baselines=[greedy, foo]"], ["search.baselines.1", "'hawq-ilp'", "got 'foo'"]),
        (["--set", "search.baselines=foo"], ["expected a list of lsq-uniform, random", "hawq-ilp", "got 'foo'"]),
        (["--seed", "-1"], ["seed"]),
        (["--seed", "9" * 30], ["seed"]),
        (["--latency", "0"], ["latency", "positive"]),
        (["--latency", "-5%"], ["latency", "positive"]),
        (["--flash", "nan"], ["flash", "positive"]),
        (["--latency", "3 KiB"], ["latency", "'3 KiB'", "ms"]),
        (["--latency", "1%"], ["impossible by itself", "achievable from", "layers that hold"]),
        (["--flash", "1"], ["flash budget", "achievable from"]),
        (["--data", "no/such/folder"], ["no data at 'no/such/folder'"]),
        (["--model", "resnet9"], ["did you mean 'resnet8'"]),
        (["--model", "no_such_module:net"], ["no_such_module"]),
        (["--weights", "no.pth"], ["no weights file at", "no.pth"]),
        (["--config", "no.toml"], ["cannot read configuration no.toml"]),
        (["--pin", "conv1"], ["PATTERN=BITS"]),
        (["--pin", "=8"], ["PATTERN=BITS"]),
        (["--pin", "conv1=3"], ["conv1", "[3]"]),
        (["--set", "training.precision=fp16"], ["needs training.device = 'cuda'"]),
        (["--mode", "ptq", "--set", "search.ptq_images=1"], ["search.ptq_images", "training.batch_size"]),
    ],
)
def test_mistakes_of_a_search(call: Call, tmp_path: Path, arguments: list[str], said: list[str]) -> None:
    _refused(call("search", "--data", "digits", "--out", tmp_path / "run", *FAST, *arguments), *said)
    assert not (tmp_path / "run").exists(), "what is refused leaves nothing behind"


def test_a_pair_of_budgets_that_exclude_each_other(call: Call, tmp_path: Path) -> None:
    answer = call(
        "search", "--data", "synthetic:3x32x32x10", "--device", "cortex-m7-stm32h743-cmsis-nn", "--flash", "55%",
        "--latency", "130%", "--out", tmp_path / "run",
    )  # fmt: skip
    _refused(answer, "achievable pair", "layers that hold the latency", "layers that hold the flash")


def test_wrong_usage_is_code_2(call: Call) -> None:
    _refused(call("search", "--frobnicate"), "No such option", code=2)
    _refused(call("serach"), "serach", code=2)
    _refused(call("verify", "x", "--samples", "0"), "--samples", code=2)


def test_mistakes_with_runs(call: Call, run: Path, tmp_path: Path) -> None:
    _refused(call(*SEARCH, "--out", run), "already holds a run", "--resume")
    _refused(call(*SEARCH, "--out", run, "--resume", "--seed", "5"), "another configuration (different: seed)")
    _refused(call("search", "--out", tmp_path / "typo", "--resume"), "holds no run")
    for command in ("verify", "price", "evaluate", "export", "report"):
        _refused(call(command, tmp_path / "typo"), "typo", "ddq-search search")
    _refused(call("verify", run), "holds no export", "ddq-search export")
    _refused(call("verify", run, "--policy", "p77"), "p77")
    _refused(call("price", run, "--policy", "p77"), "no policy 'p77'", "w8a8")
    _refused(call("export", run, "--format", "caffe"), "tflite")
    _refused(call("export", run, "--format", "onnx,caffe"), "unknown format 'caffe'")
    _refused(call("evaluate", run, "--split", "train"), "validation, test")
    (run / "front.json").write_text('{"points": 3')
    _refused(call("price", run), "front.json", "broken")
    (run / "front.json").write_text("{}")
    _refused(call("export", run), "front.json", "--resume")
    (run / "front.json").unlink()
    for command in ("verify", "price", "evaluate", "export", "report"):
        (run / "export" / "p00").mkdir(parents=True, exist_ok=True)
        arguments = ["--policy", "best"] if command != "report" else []
        _refused(call(command, run, *arguments), "--resume")
    (run / "config.toml").write_text("[")
    _refused(call("price", run), "is not TOML")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["weights"].update(conv9=8), "'weights/conv9' is not in this model"),
        (lambda d: d["weights"].update(conv1=3), "candidates are [2, 4, 8]"),
        (lambda d: d["weights"].update(conv1="8"), "candidates are [2, 4, 8]"),
        (lambda d: d["weights"].pop("conv1"), "no bitwidth for 'weights/conv1'"),
        (lambda d: d.update(version=9), "not a version 1"),
        (lambda d: d.pop("activations"), "'activations' must map"),
    ],
)
def test_mistakes_in_a_policy(call: Call, finished: Path, tmp_path: Path, change: Any, said: str) -> None:
    document = json.loads(next((finished / "policies").glob("*.json")).read_text())
    change(document)
    (tmp_path / "edited.json").write_text(json.dumps(document))
    _refused(call("price", finished, "--policy", tmp_path / "edited.json"), "edited.json", said)


def test_checkpoints_that_cannot_be_used(call: Call, run: Path) -> None:
    checkpoints = run / "checkpoints"
    whole = (checkpoints / "joint.safetensors").read_bytes()
    again = (*SEARCH, "--out", run, "--resume")
    (checkpoints / "joint.safetensors").write_bytes(whole[:1000])
    _refused(call(*again), "joint.safetensors is broken", "delete it")
    shutil.copy(checkpoints / "float.safetensors", checkpoints / "joint.safetensors")
    _refused(call(*again), "copy of 'float'", "delete it")
    tensors = {"x": torch.zeros(1)}
    save_file(tensors, checkpoints / "joint.safetensors", {"fingerprint": "0", "name": "joint", "facts": "{}"})
    _refused(call(*again), "belongs to another configuration")
    (checkpoints / "joint.safetensors").write_bytes(whole)
    with safe_open(checkpoints / "joint.safetensors", "pt") as file:
        metadata = file.metadata()
        fewer = {key: file.get_tensor(key) for key in file.keys() if "fc" not in key}  # noqa: SIM118 - not a mapping
    save_file(fewer, checkpoints / "joint.safetensors", metadata)
    _refused(call(*again), "joint.safetensors was written by another version")
    (checkpoints / "joint.safetensors").write_bytes(whole)
    assert call(*again)[0] == 0


def test_divergence_names_the_rate(call: Call, tmp_path: Path) -> None:
    diverging = ("--set", "training.joint_rate=1e30", "--set", "training.joint_epochs=5")
    _refused(call(*SEARCH, *diverging, "--out", tmp_path / "run"), "training.joint_rate", "--out")
    assert (tmp_path / "run" / "checkpoints" / "float.safetensors").exists(), "what was computed stays"


def test_output_that_cannot_be_written(call: Call, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _refused(call(*SEARCH, "--out", tmp_path / "file" / "run"), "cannot write")
    (run / "report.html").mkdir()
    _refused(call("report", run), "report.html")


def test_two_processes_on_one_run(call: Call, run: Path) -> None:
    import fcntl

    with (run / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _refused(call(*SEARCH, "--out", run, "--resume"), "in use by another process")


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_says_how_to_go_on() -> None:
    with pytest.raises(Interrupted, match="do this"), resumable("do this"):
        _interrupted_import()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(ValueError, match="else"), resumable("do this"):
        raise ValueError("something else")


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with resumable("do this"):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupted_import() -> None:
    """What a library may do with Ctrl-C while it is imported."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise RuntimeError("half imported") from None


def test_a_foreign_package_of_one_of_our_names(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "__init__.py").write_text("raise SystemExit('foreign code ran')")
    result = subprocess.run(
        [sys.executable, "-m", "ddq_search", "models"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "shadows it" in result.stderr
    assert "Traceback" not in result.stderr
