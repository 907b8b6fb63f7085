"""Post-training quantization: the same search without training weights, on a few calibration images without labels.

Gates and quantizer steps follow the distance between the quantized and the float model's outputs. The images are the
first ones of one shuffled epoch, the same for calibration, gates, steps and batch-norm statistics. The float baseline
is the float model itself. Validation figures need labels, as ever; choosing and tuning do not.
"""

from __future__ import annotations

from ddq_search.batches import SameBatches
from ddq_search.errors import ConfigError
from ddq_search.joint import conclude, train_gates
from ddq_search.judgement import Candidate, Front
from ddq_search.methods import INFERRING, MIXING
from ddq_search.policy import Policy
from ddq_search.problem import STATISTICS_EPOCH, Problem
from ddq_search.record import RunDirectory
from ddq_search.relaxed import search_relaxed
from ddq_search.stages import Stages, begin
from ddq_search.supernet import Supernet
from ddq_search.training import Progress, Silent


def ptq(problem: Problem, record: RunDirectory, progress: Progress | None = None) -> Front:
    """Runs or resumes a post-training search to its end and writes its results into the run directory.

    Raises:
        ConfigError: fewer calibration images than one batch.
        RunError: a checkpoint or file cannot be used.
    """
    stages, teacher = _prepared(problem, record, progress or Silent())
    if problem.config.search.method in (*MIXING, *INFERRING):
        return search_relaxed(stages, teacher, problem.config.search.method)
    net = stages.calibrated(teacher)
    return conclude(stages, train_gates(stages, net, teacher, problem.config.search.solve_steps), teacher)


def quantize_policy(
    problem: Problem, record: RunDirectory, policy: Policy, progress: Progress | None = None
) -> Candidate:
    """Quantizes the float model at one given policy as `ptq` does its own, without a search; raises as `ptq` does."""
    stages, teacher = _prepared(problem, record, progress or Silent())
    return stages.finetune(policy, stages.calibrated(teacher), teacher)


def _prepared(problem: Problem, record: RunDirectory, progress: Progress) -> tuple[Stages, Supernet]:
    """Returns the stages, which see the calibration images alone, and the float model."""
    training = problem.config.training
    batches = problem.config.search.ptq_images // training.batch_size
    if batches == 0:
        raise ConfigError(
            f"search.ptq_images = {problem.config.search.ptq_images} is less than one batch; lower "
            f"training.batch_size ({training.batch_size})"
        )
    begin(problem, record, progress)
    settings = training.model_copy(
        update={
            "distillation": 1.0,
            "norm_batches": min(training.norm_batches, batches),
            "calibration_batches": min(training.calibration_batches, batches),
        }
    )
    calibration = SameBatches(problem.source, STATISTICS_EPOCH, batches)
    stages = Stages(problem, record, progress, settings=settings, calibration=calibration)
    return stages, stages.train_float()
