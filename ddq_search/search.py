"""The search: float training, one joint training for all points of the front, projection, fine-tuning, judgement.

1. *float*: the model is trained in float32; it is the teacher and the starting point.
2. *joint*: weights, quantizer steps and gates are optimised together. Every point of the front has a gate set with
   budgets of its own; the sets take turns, so one supernet serves all of them.
3. *projection*: each gate set becomes the policy of its most likely gate pattern that keeps its budgets.
4. *fine-tuning*: each policy, and the uniform ones it is compared with, gets the same short training from the
   supernet's weights; batch-norm statistics are re-estimated.
5. *judgement*: validation figures come from integer codes only (`ddq_search.evaluation`). The float baseline gets
   the same total epochs. The test split is read once, after everything is chosen.
"""

from __future__ import annotations

from ddq_search import distributed
from ddq_search.baselines import KINDS, require_able, run_baselines, run_method
from ddq_search.joint import conclude, train_gates, train_jointly, train_supernet
from ddq_search.judgement import Front
from ddq_search.methods import INFERRING, MIXING
from ddq_search.problem import Problem
from ddq_search.ptq import ptq
from ddq_search.record import RunDirectory
from ddq_search.relaxed import search_relaxed
from ddq_search.solve import refuse_solved
from ddq_search.stages import Stages, begin
from ddq_search.supernet import Supernet
from ddq_search.training import Progress, Silent


def search(problem: Problem, record: RunDirectory, progress: Progress | None = None) -> Front:
    """Runs or resumes a search to its end and writes its results into the run directory.

    Raises:
        RunError: training diverged, a checkpoint or file cannot be used, or the directory holds a solved run.
    """
    distributed.from_first(lambda: refuse_solved(record))
    if problem.config.search.mode == "ptq":
        return ptq(problem, record, progress)
    progress = progress or Silent()
    if problem.config.search.method in KINDS:
        require_able(problem, problem.config.search.method)
    begin(problem, record, progress)
    stages = Stages(problem, record, progress)
    teacher = stages.train_float()
    front = front_of(stages, teacher)
    if problem.config.search.baselines:
        run_baselines(stages, teacher, problem.config.search.baselines)
    return front


def front_of(stages: Stages, teacher: Supernet) -> Front:
    """Searches from a trained float model with the configured method; writes the front into the run directory."""
    config = stages.problem.config.search
    if config.method in KINDS:
        return run_method(stages, teacher, config.method)
    if config.method in (*MIXING, *INFERRING):
        return search_relaxed(stages, teacher, config.method)
    if config.mode == "supernet":
        supernet = train_supernet(stages, teacher)
        return conclude(stages, train_gates(stages, supernet, teacher, config.solve_steps), teacher)
    return conclude(stages, train_jointly(stages, teacher), teacher)
