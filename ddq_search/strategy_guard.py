"""A guard of DQSS after training: strategies that were learned against one strategy for all tensors.

Without labels and with frozen weights the mixture is learned in a few steps on a few images, and choosing one strategy
per tensor out of it loses what the others contributed. A single strategy costs one look at the same images, so none is
left out of the comparison. Ours.
"""

from __future__ import annotations

from collections.abc import Mapping

from ddq_search.quantizers.strategies import StrategyQuantizer
from ddq_search.stages import Stages
from ddq_search.supernet import Supernet


def keep_nearest(stages: Stages, net: Supernet, policy: Mapping[str, int], teacher: Supernet) -> str | None:
    """Lets all tensors have one strategy where that is nearer to the float model's output than what was learned.

    Distances are means over the calibration images. A tensor without the strategy keeps its own.

    Args:
        stages: of a post-training search.
        net: a network of learned strategies; changed.
        policy: bits of every variable.
        teacher: the float model.

    Returns:
        The strategy, None for those learned.
    """
    quantizers = [each for each in net.tensor_quantizers() if isinstance(each, StrategyQuantizer)]
    learned = [each.chosen.clone() for each in quantizers]
    measured = stages.distance_to(teacher, stages.batches.train_batches(stages.settings.batch_size))
    net.set_policy(policy)

    def choose(name: str | None) -> None:
        for quantizer, own in zip(quantizers, learned, strict=True):
            quantizer.chosen.copy_(own)
            if name is not None:
                quantizer.choose(name)

    def distance(name: str | None) -> float:
        choose(name)
        return measured(net)

    names = dict.fromkeys(name for each in quantizers for name in each.names)
    nearest = min((None, *names), key=distance)
    choose(nearest)
    return nearest
