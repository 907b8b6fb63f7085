"""Post-training quantization: the same search without training weights, on a few calibration images without labels.

Gates and quantizer steps follow the distance between the quantized and the float model's outputs. The images are the
first ones of one shuffled epoch, the same for calibration, gates, steps and batch-norm statistics. The float baseline
is the float model itself. Validation figures need labels, as ever; choosing and tuning do not.
"""

from __future__ import annotations

from ddq_search.batches import SameBatches
from ddq_search.errors import ConfigError
from ddq_search.judgement import Front
from ddq_search.problem import STATISTICS_EPOCH, Problem, inputs
from ddq_search.record import RunDirectory
from ddq_search.stages import Stages, begin
from ddq_search.training import Progress, Silent


def ptq(problem: Problem, record: RunDirectory, progress: Progress | None = None) -> Front:
    """Runs or resumes a post-training search to its end and writes its results into the run directory.

    Raises:
        ConfigError: fewer calibration images than one batch.
        RunError: a checkpoint or file cannot be used.
    """
    progress = progress or Silent()
    begin(problem, record, progress)
    training = problem.config.training
    batches = problem.config.search.ptq_images // training.batch_size
    if batches == 0:
        raise ConfigError(
            f"search.ptq_images = {problem.config.search.ptq_images} is less than one batch; lower "
            f"training.batch_size ({training.batch_size})"
        )
    settings = training.model_copy(
        update={
            "distillation": 1.0,
            "norm_batches": min(training.norm_batches, batches),
            "calibration_batches": min(training.calibration_batches, batches),
        }
    )
    calibration = SameBatches(problem.source, STATISTICS_EPOCH, batches)
    stages = Stages(problem, record, progress, settings=settings, calibration=calibration)
    teacher = stages.train_float()
    net = problem.placed_supernet()
    net.model.load_state_dict(teacher.model.state_dict())
    net.calibrate(inputs(problem, settings.calibration_batches))
    return stages.conclude(stages.train_gates(net, teacher, problem.config.search.solve_steps), teacher)
