"""Fine-tuning where the supernet serves least: the points of a front share their epochs by what they lack.

A supernet's weights suit the policies of many bits better than those of few. All points together get P ×
``finetune_epochs``, as if each had its own. Half of that each point has for certain; the other half goes where the
distance to the float model's output exceeds that of the point that is served best (by the highest averages of
D'Hondt): not even that one's distance is 0, so that much of a distance is no sign of a lack. Points with more epochs
than an equal share train at a higher rate (`ddq_search.stages.rate_of`). Ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from ddq_search import distributed
from ddq_search.judgement import Candidate
from ddq_search.point_workers import train_all
from ddq_search.policy import Policy
from ddq_search.stages import Stages
from ddq_search.supernet import Supernet


def finetune_all(
    stages: Stages, policies: Sequence[Policy], supernet: Supernet, teacher: Supernet
) -> list[Candidate]:  # fmt: skip
    """Fine-tunes the policies of a searched supernet, each for its `epochs_of`."""
    tasks = list(zip(policies, epochs_of(stages, policies, supernet, teacher), strict=True))
    return train_all(stages, tasks, teacher, supernet)


def epochs_of(stages: Stages, policies: Sequence[Policy], supernet: Supernet, teacher: Supernet) -> list[int]:
    """Returns the fine-tuning epochs of every policy, those of uniform references as configured."""
    equal = stages.settings.finetune_epochs
    epochs = [equal] * len(policies)
    points = [index for index, policy in enumerate(policies) if policy.origin != "uniform"]
    if stages.settings.finetune_shares == "equal" or stages.frozen or equal < 2 or len(points) < 2:
        return epochs
    chosen = [policies[index] for index in points]
    lacking = distributed.from_first(lambda: distances(stages, chosen, supernet, teacher))
    for index, own in zip(points, shared(equal * len(points), lacking), strict=True):
        epochs[index] = own
    return epochs


def shared(total: int, distances: Sequence[float]) -> list[int]:
    """Returns integers that add up to ``total``, half of it in equal parts, at least one for each distance.

    >>> shared(12, [6.0, 2.0, 1.0])  # 2 each; the other 6 by excesses of 5, 1 and 0
    [7, 3, 2]
    """
    least, count = min(distances), len(distances)
    certain = max(1, total // (2 * count))
    parts = [0] * count
    for _ in range(total - certain * count):
        parts[max(range(count), key=lambda i: ((distances[i] - least) / (parts[i] + 1), -parts[i]))] += 1
    return [certain + part for part in parts]


def distances(stages: Stages, policies: Sequence[Policy], supernet: Supernet, teacher: Supernet) -> list[float]:
    """Returns each policy's distance to the float model's output with the supernet's weights."""
    measured, net = stages.distance_to(teacher, stages.settings.calibration_batches), stages.problem.placed_supernet()
    net.adopt(supernet)
    found = []
    for policy in policies:
        net.set_policy(policy.bits)
        found.append(measured(net))
    return found
