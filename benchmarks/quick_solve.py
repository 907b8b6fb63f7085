"""How long `solve --quick` takes for a new budget and for another device, from a saved supernet of ResNet-20.

python benchmarks/quick_solve.py --data PATH/TO/cifar10-jpeg.tar.xz --out benchmarks/results/quick_solve.json

The supernet is trained for one epoch: how well it was trained does not change what solving takes. Seconds on the wall
of whole commands, from the shell and back: starting Python, tracing, gates, evaluation on both splits. The questions
take turns; medians over the repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIRST, OTHER = "cortex-a53-rpi3-lowbit-neon", "cortex-m7-stm32h743-cmsis-nn"
QUESTIONS = {"another budget": ["--flash", "60%"], "another device": ["--device", OTHER, "--flash", "60%"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the configuration")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        epochs = [f"--set=training.{phase}_epochs=1" for phase in ("float", "joint")]
        more = [*epochs, "--set=training.finetune_epochs=0", "--set=search.points=1", "--set=search.relaxed_points=0"]
        settings = [*more, "--set=search.uniform=[]", *(f"--set={setting}" for setting in arguments.set)]
        target = ["--model", arguments.model, "--data", arguments.data, "--device", FIRST, "--flash", "80%"]
        _seconds(["search", "--mode", "supernet", *target, *settings, "--out", str(run)])
        times: dict[str, list[float]] = {question: [] for question in QUESTIONS}
        for repeat in range(arguments.repeats):
            for number, (question, flags) in enumerate(QUESTIONS.items()):
                out = str(Path(folder) / f"solved-{repeat}-{number}")
                times[question].append(_seconds(["solve", str(run), "--quick", *flags, "--out", out]))
    document = {
        "command": " ".join(["benchmarks/quick_solve.py", *sys.argv[1:]]),
        "seconds": {question: [round(each, 1) for each in found] for question, found in times.items()},
        "median_s": {question: round(statistics.median(found), 1) for question, found in times.items()},
    }
    print(json.dumps(document, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "ddq_search", *command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
