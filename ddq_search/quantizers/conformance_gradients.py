"""Laws of the gradients: of the input, of what is learned, of gates and of shares; and of mixtures."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddq_search.precision import FLOAT_BITS
from ddq_search.quantizers.conformance_subject import Subject, close, integers, same
from ddq_search.quantizers.contract import Quantizer

_FAR = 1e4
"""A value this many times the sample's largest is beyond all levels."""


def gradients_are_finite(subject: Subject) -> None:
    """Input and every learned parameter have finite gradients at every candidate; some parameter has one at all."""
    quantizer, x = subject.calibrated(), subject.small
    learned = {name: p for name, p in quantizer.named_parameters() if p.requires_grad}
    reached = not learned
    for k, bits in integers(quantizer):
        quantizer.zero_grad()
        leaf = x.clone().requires_grad_()
        quantizer.fake_quantize(leaf, k).backward(_gradient(x))
        assert leaf.grad is not None, f"{bits} bits: the input receives no gradient"
        assert torch.isfinite(leaf.grad).all(), f"{bits} bits: the input's gradient is not finite"
        assert torch.count_nonzero(leaf.grad) > 0, f"{bits} bits: the input's gradient is 0 everywhere"
        for name, parameter in learned.items():
            if parameter.grad is not None:
                assert torch.isfinite(parameter.grad).all(), f"{bits} bits: the gradient of {name} is not finite"
                reached = reached or bool(parameter.grad.any())
    assert reached, f"none of {', '.join(learned)} receives a gradient"


def input_window(subject: Subject) -> None:
    """The input receives no gradient where it is far beyond the outermost level."""
    quantizer = subject.calibrated()
    x = subject.small.clone()
    x.flatten(1)[0, 0] = _FAR * float(x.abs().max())
    for k, bits in integers(quantizer):
        leaf = x.clone().requires_grad_()
        quantizer.fake_quantize(leaf, k).backward(torch.ones_like(x))
        assert leaf.grad is not None
        reach = float(quantizer.levels(x, k).detach().abs().max())
        assert reach < float(x.max()), f"{bits} bits: one outlier stretches the levels to {reach:.3g}"
        found = float(leaf.grad.flatten(1)[0, 0].abs())
        assert found < 1e-6, f"{bits} bits: a clipped value has a gradient of {found:.3g}"


def gates_feel_their_neighbours(subject: Subject) -> None:
    """``∂L/∂c_k = <g, x_q(k) − x_q(k−1)>`` at every candidate; gates change no value and no gradient of the input."""
    for candidates in ((2, 4, 8), (4, FLOAT_BITS)):
        quantizer, x = subject.calibrated(candidates), subject.small
        gradient = _gradient(x)
        values = [_value(quantizer, x, k).double() for k in range(len(candidates))]
        expected = torch.stack([(gradient * value).sum() for value in values]).diff()
        for k, bits in enumerate(candidates):
            plain, gated = x.clone().requires_grad_(), x.clone().requires_grad_()
            cumulative = torch.full((len(candidates) - 1,), 0.5, requires_grad=True)
            out = quantizer.fake_quantize(gated, k, cumulative)
            same(out.detach().double(), values[k], f"{bits} bits, with gates")
            out.backward(gradient)
            assert cumulative.grad is not None, f"{bits} bits: the gates receive no gradient"
            scale = float(torch.stack([(gradient * value).abs().sum() for value in values]).max())
            worst = float((cumulative.grad.double() - expected).abs().max())
            assert worst <= 1e-4 * scale, f"{bits} bits: gate gradients off by {worst:.3g} of {expected.tolist()}"
            quantizer.fake_quantize(plain, k).backward(gradient)
            assert plain.grad is not None
            assert gated.grad is not None
            same(gated.grad, plain.grad, f"{bits} bits, the input's gradient with gates")


def one_hot_mixture(subject: Subject) -> None:
    """A mixture with one share of 1 is that candidate; ``∂L/∂share_k = <g, x_q(k)>``."""
    quantizer, x = subject.calibrated(), subject.small
    gradient, columns = _gradient(x), quantizer.columns
    values = [_value(quantizer, x, k) for k in range(len(quantizer.candidates))]
    assert set(columns) <= set(range(len(values))), f"columns {columns} name no candidates"
    if len(columns) != len(values):
        return  # several strategies for a candidate: what they mix is theirs
    for position, k in enumerate(columns):
        shares = torch.zeros(len(columns))
        shares[position] = 1
        leaf = shares.clone().requires_grad_()
        out = quantizer.mix(x, leaf)
        close(out.detach(), values[k], f"mixture, all of {quantizer.candidates[k]} bits", 1e-5)
        out.backward(gradient)
        assert leaf.grad is not None, "shares receive no gradient"
        expected = torch.stack([(gradient * values[k]).sum() for k in columns])
        scale = float(torch.stack([(gradient * value).abs().sum() for value in values]).max())
        worst = float((leaf.grad - expected).abs().max())
        assert worst <= 1e-4 * scale, f"gradients of shares off by {worst:.3g} of {expected.tolist()}"


def mixtures_reach_everything(subject: Subject) -> None:
    """In a mixture with shares everywhere, input, shares and what is learned have finite gradients."""
    quantizer, x = subject.calibrated(), subject.small
    leaf = x.clone().requires_grad_()
    shares = torch.full((len(quantizer.columns),), 1 / len(quantizer.columns), requires_grad=True)
    quantizer.mix(leaf, shares).backward(_gradient(x))
    for name, tensor in (("the input", leaf), ("shares", shares), *quantizer.named_parameters()):
        if tensor.requires_grad and tensor.grad is not None:
            assert torch.isfinite(tensor.grad).all(), f"the gradient of {name} is not finite"
    for name, tensor in (("the input", leaf), ("shares", shares)):
        received = tensor.grad is not None and bool(tensor.grad.any())
        assert received, f"{name}: no gradient through a mixture"


def a_share_of_the_batch_scales_up(subject: Subject) -> None:
    """Gradients that are estimated on a share of equal samples are those of all samples."""
    x = subject.small if subject.is_weights else subject.small[:1].repeat(8, 1, 1, 1)
    gradient = _gradient(x if subject.is_weights else x[:1])
    gradient = gradient if subject.is_weights else gradient.repeat(8, 1, 1, 1)
    found: list[list[Tensor]] = []
    quantizer = subject.calibrated()
    for share in (1.0, 0.25):
        quantizer.gradient_share = share
        quantizer.zero_grad()
        cumulative = torch.full((2,), 0.5, requires_grad=True)
        quantizer.fake_quantize(x, 1, cumulative).backward(gradient)
        learned = [p.grad.clone() for p in quantizer.parameters() if p.grad is not None]
        assert cumulative.grad is not None
        found.append([*learned, cumulative.grad])
    for whole, estimated in zip(*found, strict=True):
        close(estimated, whole, f"gradients from a quarter of the batch ({subject.role})")


def _gradient(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(2)) + 0.1 * x.sign()


def _value(quantizer: Quantizer, x: Tensor, choice: int) -> Tensor:
    return quantizer.fake_quantize(x, choice).detach()


LAWS: tuple[Callable[[Subject], None], ...] = (
    gradients_are_finite, input_window, gates_feel_their_neighbours, one_hot_mixture, mixtures_reach_everything,
    a_share_of_the_batch_scales_up,
)  # fmt: skip
"""Laws in the order in which they are checked."""
