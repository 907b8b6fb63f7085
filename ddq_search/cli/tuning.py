"""``ddq-search tune``: studies over settings of the search, by one process or several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddq_search.cli import assembly
from ddq_search.cli.output import console, resumable, tell
from ddq_search.cli.progress import progress_for
from ddq_search.cli.settings import read_config
from ddq_search.cli.tables import trial_table


class WorkerProgress:
    """Lines of one worker among several; implements `ddq_search.training.Progress`."""

    def __init__(self, number: int) -> None:
        self._number = number

    def begin(self, phase: str, total: int, done: int) -> None:
        """Says only where a phase goes on."""
        if 0 < done < total:
            self.note(f"{phase}: {done} of {total} steps done before")

    def step(self, facts: Mapping[str, str]) -> None:
        """Ignores."""

    def note(self, text: str) -> None:
        """Prints a line."""
        tell(f"worker {self._number}: {text}")


def tune(
    config: Path | None,
    flags: Mapping[str, Any],
    pins: list[str] | None,
    settings: list[str] | None,
    out: Path,
    plan: Mapping[str, Any],
    space: Path | None,
    workers: int,
) -> None:
    """Runs or resumes a study; ``plan`` holds the fields of `ddq_search.tune_study.StudyPlan` but the space."""
    from ddq_search.tune import run_study
    from ddq_search.tune_queue import STOPPED
    from ddq_search.tune_space import load_space
    from ddq_search.tune_study import StudyPlan, shown
    from ddq_search.tune_workers import run_workers

    base = read_config(config, {**flags, "out": str(out)}, pins, settings)
    asked = StudyPlan(**plan, space=load_space(space, base) if space else None)
    device = assembly.assemble(base).device  # what does not fit is said before there is a study
    with resumable("the same command goes on"), progress_for(console) as progress:
        if workers == 1:
            study = run_study(base, assembly.assemble, out, asked, progress)
        else:
            study = run_workers(base, assembly.assemble, out, asked, workers, WorkerProgress, progress)
    console.print(trial_table(study.best_trials, study.metric_names or [], device.calibration))
    trials = study.get_trials(deepcopy=False)
    complete = sum(trial.state.name == "COMPLETE" for trial in trials)
    stopped = sum(STOPPED in trial.user_attrs for trial in trials)
    tell(f"trials: {complete} complete, {stopped} stopped early; their fronts and policies: {out / 'artifacts'}")
    tell(f"study: {shown(asked.storage) if asked.storage else out / 'tune.db'} ({study.study_name})")
