"""The contract of every quantizer family, ours and yours, as checks that a test calls.

    from ddq_search.quantizers.conformance import check_family

    def test_my_family():
        check_family(FAMILY)

A check raises `AssertionError` with the family, the role (weights, two-sided or one-sided activations), the law and
what is wrong. The laws are functions of `conformance_values` (levels, codes, deployment) and `conformance_gradients`;
`LAWS` names them all.

Some laws say what is usual, not what deployment needs (`EXCEPTABLE`): a family that breaks one on purpose states the
reason in `Family.exceptions`. An exception to a law that holds is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from ddq_search.quantizers import conformance_gradients, conformance_values
from ddq_search.quantizers.conformance_subject import Subject
from ddq_search.quantizers.contract import Quantizer
from ddq_search.quantizers.registry import Family

LAWS: dict[str, Callable[[Subject], None]] = {
    law.__name__: law for law in (*conformance_values.LAWS, *conformance_gradients.LAWS)
}
"""Law → check."""

EXCEPTABLE = ("fixed_points", "error_falls_with_bits", "input_window", "one_hot_mixture")
"""Laws that a family may break with a reason."""


def check_family(family: Family) -> None:
    """Runs every law on the weights and the activations of a family.

    Raises:
        AssertionError: a law is broken without a stated reason, or an exception is stated that is none.
    """
    _require_facts(family)
    subjects = list(subjects_of(family))
    for name, law in LAWS.items():
        broken = [problem for subject in subjects if (problem := problem_of(law, subject))]
        if name not in family.exceptions:
            assert not broken, broken[0]
        else:
            assert broken, f"quantizer family {family.name!r}: {name!r} holds; remove it from its exceptions"


def subjects_of(family: Family) -> Iterator[Subject]:
    """Returns what the laws are checked on: Gaussian weights, two-sided and rectified activations."""
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    if family.weights is not None:
        rows = 4
        sizes = torch.tensor([0.03, 0.1, 0.5, 2.0])[:, None]
        make: Callable[[tuple[int, ...]], Quantizer] = partial(_weights, family, rows)
        yield Subject(family, "weights", make, (values.reshape(rows, -1) * sizes).reshape(rows, 100, 25, 10))
    if family.activations is not None:
        images = values.reshape(100, 10, 10, 10)
        yield Subject(family, "two-sided activations", partial(_activations, family, False), images + 0.2)
        yield Subject(family, "one-sided activations", partial(_activations, family, True), images.relu())


def _weights(family: Family, rows: int, candidates: tuple[int, ...]) -> Quantizer:
    assert family.weights is not None
    return family.weights(candidates, rows)


def _activations(family: Family, nonnegative: bool, candidates: tuple[int, ...]) -> Quantizer:
    assert family.activations is not None
    return family.activations(candidates, nonnegative)


def problem_of(law: Callable[[Subject], None], subject: Subject) -> str:
    """Returns how a law is broken, or nothing."""
    where = f"quantizer family {subject.family.name!r}, {subject.role}, {law.__name__}"
    try:
        law(subject)
    except AssertionError as error:
        return f"{where}: {error}"
    except Exception as error:
        return f"{where}: raises {type(error).__name__}: {error}"
    return ""


def _require_facts(family: Family) -> None:
    where = f"quantizer family {family.name!r}"
    assert family.name, "a quantizer family has no name"
    assert family.source, f"{where} names no source; write 'ours' where it is your own"
    assert family.weights or family.activations, f"{where} has neither weights nor activations"
    assert not (family.codebook and family.points), f"{where} has codebooks and points; a layer has one of them"
    for name, reason in family.exceptions.items():
        assert name in EXCEPTABLE, f"{where}: {name!r} allows no exception; these do: {', '.join(EXCEPTABLE)}"
        assert reason.strip(), f"{where}: the exception to {name!r} has no reason"
