"""The points of a front share their fine-tuning by what the supernet's weights lack at their bits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddq_search.cli.assembly import assemble
from ddq_search.config import load_config
from ddq_search.finetune_shares import distances, epochs_of, shared
from ddq_search.policy import Policy, uniform
from ddq_search.record import RunDirectory
from ddq_search.stages import Stages, begin, rate_of
from ddq_search.training import Silent

SETTINGS = {
    "data.limit": 512, "training.float_epochs": 8, "training.calibration_batches": 2, "training.finetune_epochs": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    problem = assemble(load_config(None, SETTINGS))
    record = RunDirectory(tmp_path_factory.mktemp("run"))
    begin(problem, record, Silent())
    stages = Stages(problem, record, Silent())
    teacher = stages.train_float()
    return stages, stages.calibrated(teacher), teacher


def policies(stages, *bits, origin="search"):
    return [Policy(f"p{b}", uniform(stages.problem.space, b, b), origin) for b in bits]


def test_by_hand():
    # one each; excesses 5, 1, 0: first; then 5/2, 5/3, 5/4 are above 1: first; then 5/5 is not: second, which has less
    assert shared(8, [6.0, 2.0, 1.0]) == [5, 2, 1]
    assert shared(5, [6.0, 2.0, 1.0]) == [3, 1, 1]
    assert shared(18, [6.0, 2.0, 1.0]) == [11, 4, 3]  # 3 each; of the other 9 the second gets one, as 5/8 is above 1/2
    assert shared(7, [0.0, 0.0]) == [4, 3]  # nobody lacks more


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.integers(1, 5))
def test_all_is_shared_and_who_lacks_more_gets_no_less(needs, each):
    parts = shared(each * len(needs), needs)
    assert sum(parts) == each * len(needs)
    assert min(parts) >= max(1, each // 2)
    for need, part in zip(needs, parts, strict=True):
        for other, its in zip(needs, parts, strict=True):
            assert need <= other or part >= its


def test_narrow_policies_lack_more_and_get_more(searched):
    stages, net, teacher = searched
    points = policies(stages, 8, 2, 4)
    wide, narrow, middle = distances(stages, points, net, teacher)
    assert wide < middle < narrow
    epochs = epochs_of(stages, [*points, *policies(stages, 8, origin="uniform")], net, teacher)
    assert epochs[1] > epochs[2] >= epochs[0] >= 1
    assert sum(epochs[:3]) == 9
    assert epochs[3] == 3


def test_measuring_leaves_the_supernet_as_it_was(searched):
    stages, net, teacher = searched
    before = {name: value.clone() for name, value in net.state_dict().items()}
    distances(stages, policies(stages, 2), net, teacher)
    assert all((value == before[name]).all() for name, value in net.state_dict().items())


@pytest.mark.parametrize("change", [{"finetune_shares": "equal"}, {"finetune_epochs": 1}, {"finetune_epochs": 0}])
def test_alike_where_asked_for_or_where_there_is_nothing_to_share(searched, change):
    stages, net, teacher = searched
    settings = stages.settings.model_copy(update=change)
    other = Stages(stages.problem, stages.record, Silent(), settings=settings)
    assert epochs_of(other, policies(stages, 8, 2), net, teacher) == [settings.finetune_epochs] * 2


def test_more_epochs_than_an_equal_share_move_faster():
    settings = load_config(None, {"training.finetune_epochs": 2, "training.finetune_rate": 0.01}).training
    assert [rate_of(epochs, settings) for epochs in (1, 2, 3, 5)] == pytest.approx([0.01, 0.01, 0.015, 0.025])
    assert rate_of(9, settings) == settings.joint_rate == 0.03
    assert rate_of(9, settings.model_copy(update={"joint_rate": 0.001})) == 0.01  # never below its own
    assert rate_of(1, settings.model_copy(update={"finetune_epochs": 0})) == 0.01
