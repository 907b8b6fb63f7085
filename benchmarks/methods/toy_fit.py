"""DQ's toy: the quantizer of Gaussian samples, learned by gradient in the six parametrisations, from one start.

    python benchmarks/methods/toy_fit.py [--steps 1000] [--seeds 3] [--out FILE] [--plot FILE]

Minimises ``E (Q(x) − x)²`` over fresh samples of N(0, 1) by plain SGD on the raw parameters (b, d, q_min, q_max),
from two bits that reach to 1. Every parametrisation has the same start, samples, learning rate and constraint. After a
step the parameters are projected (Euclidean) to bitwidths of 2 up to the setting's limit. b is rounded, q_min and
q_max of powers of two too, q_max of U3 is a whole number of steps, all straight-through.

Settings: ``free``, up to 8 bits; ``tight``, up to 4 bits, where powers of two are fitted too (more octaves than eight
gain nothing); ``tight, step a power of two``, as the paper trains. The paper's own settings of this experiment are not
at hand: start, samples and limits are ours.

Error: mean over the last quarter, on 20,000 quantiles of N(0, 1). Oscillation: standard deviation of the error there,
and of the logarithm of the second parameter (d in U1, q_min in P1, q_max otherwise).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddq_search.quantizers.dq_gradients import instead_of, p1, p2, p3, to_power_of_two, top_level, u1, u2, u3

RATES = (0.01, 0.1, 0.5)
SETTINGS = {
    "free": ("u1", "u2", "u3"),
    "tight": ("u1", "u2", "u3", "p1", "p2", "p3"),
    "tight, step a power of two": ("u1", "u2", "u3"),
}
START_BITS, START_LARGEST, SAMPLES, EVERY, SMALLEST = 2, 1.0, 1000, 10, 1e-4
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Fit:
    """One fit; see the module docstring."""

    setting: str
    case: str
    rate: float
    seed: int
    error: float
    error_std: float
    log_parameter_std: float
    end: tuple[float, float]
    curve: tuple[float, ...]


class ToyQuantizer:
    """Two raw parameters of one case, in a setting."""

    def __init__(self, case: str, setting: str) -> None:
        self.case = case
        self.most_bits = 8 if setting == "free" else 4
        self.power_of_two = "power of two" in setting
        reach = 2 ** (START_BITS - 1) - 1
        small = START_LARGEST / (reach if case[0] == "u" else 2**reach)
        start = {"1": (START_BITS, small), "2": (START_BITS, START_LARGEST), "3": (small, START_LARGEST)}[case[1]]
        self.parameters = [torch.tensor(float(value), requires_grad=True) for value in start]

    def __call__(self, x: Tensor) -> Tensor:
        first, second = self.parameters
        if self.case == "u1":
            return u1(x, _rounded(first), self._step(second))
        if self.case == "u2":
            top = top_level(_rounded(first), True)
            step = self._step(second / top)
            return u3(x, step, instead_of(second, top * step)) if self.power_of_two else u2(x, _rounded(first), second)
        if self.case == "u3":
            step = self._step(first)
            top = (second.detach() / step.detach()).round().clamp(1, 2 ** (self.most_bits - 1) - 1)
            return u3(x, step, instead_of(second, top * step.detach()))
        if self.case == "p3":
            return p3(x, to_power_of_two(first), to_power_of_two(second))
        return (p1 if self.case == "p1" else p2)(x, _rounded(first), to_power_of_two(second))

    def _step(self, step: Tensor) -> Tensor:
        return to_power_of_two(step) if self.power_of_two else step

    @torch.no_grad()
    def project(self) -> None:
        first, second = self.parameters
        if self.case[1] != "3":
            first.clamp_(START_BITS, self.most_bits)
            second.clamp_min_(SMALLEST)
            return
        first.clamp_min_(SMALLEST)
        ends = [2.0 ** (bits - 1) - 1 for bits in (START_BITS, self.most_bits)]
        low, high = ends if self.case == "u3" else (2.0**end for end in ends)
        for ratio, sign in ((high, 1), (low, -1)):  # second ≤ high · first, second ≥ low · first
            excess = (second - ratio * first).item()
            if sign * excess > 0:
                second.sub_(excess / (1 + ratio**2))
                first.add_(excess * ratio / (1 + ratio**2))


def _rounded(bits: Tensor) -> Tensor:
    return instead_of(bits, bits.round())


def fit(setting: str, case: str, rate: float, seed: int, steps: int) -> Fit:
    quantizer, generator = ToyQuantizer(case, setting), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(quantizer.parameters, lr=rate)
    judged = torch.special.ndtri((torch.arange(20_000) + 0.5) / 20_000)
    errors, seconds = [], []
    for step in range(1, steps + 1):
        x = torch.randn(SAMPLES, generator=generator)
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
        quantizer.project()
        if step % EVERY == 0:
            with torch.no_grad():
                errors.append((quantizer(judged) - judged).square().mean().item())
            seconds.append(math.log(quantizer.parameters[1].item()))
    tail = len(errors) // 4
    last, moved = torch.tensor(errors[-tail:]), torch.tensor(seconds[-tail:])
    end = tuple(round(parameter.item(), 4) for parameter in quantizer.parameters)
    return Fit(setting, case, rate, seed, last.mean().item(), last.std().item(), moved.std().item(), end, tuple(errors))


COLOURS = {"1": "#d55e00", "2": "#e69f00", "3": "#0072b2"}
SIDE, LEFT, TOP, GAP = 300, 60, 50, 70


def draw(fits: Sequence[Fit], rate: float) -> str:
    """Error against steps at one rate, first seed: uniform levels up to 8 bits, powers of two up to 4."""
    panels = [("free", "u", "uniform levels, up to 8 bits"), ("tight", "p", "powers of two, up to 4 bits")]
    width, height = len(panels) * (LEFT + SIDE + GAP), TOP + SIDE + 60
    title = f"Fitting a quantizer to N(0, 1) by SGD, learning rate {rate:g}"
    body = [f'<text x="{LEFT}" y="18" font-size="14" font-weight="bold">{title}</text>']
    for number, (setting, kind, title) in enumerate(panels):
        curves = {f.case: f.curve for f in fits
                  if (f.setting, f.case[0], f.rate, f.seed) == (setting, kind, rate, 0)}  # fmt: skip
        body += _panel(LEFT + number * (LEFT + SIDE + GAP), title, curves)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(body)}</svg>\n"
    )


def _panel(left: float, title: str, curves: Mapping[str, Sequence[float]]) -> list[str]:
    values = [math.log10(value) for curve in curves.values() for value in curve]
    low, high = min(values) - 0.05, max(values) + 0.05
    found = [f'<rect x="{left}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#888"/>',
             f'<text x="{left}" y="{TOP - 8}">{title}</text>',
             f'<text x="{left + SIDE / 2}" y="{TOP + SIDE + 30}" text-anchor="middle">steps</text>']  # fmt: skip
    steps = EVERY * max(len(curve) for curve in curves.values())
    for share in (0, 0.5, 1):
        found.append(f'<text x="{left + share * SIDE}" y="{TOP + SIDE + 14}" text-anchor="middle">'
                     f"{share * steps:.0f}</text>")  # fmt: skip
    for mark in (s * 10.0**e for e in range(-5, 1) for s in (1, 2, 5)):
        if low <= math.log10(mark) <= high:
            y = TOP + SIDE * (high - math.log10(mark)) / (high - low)
            found.append(f'<text x="{left - 4}" y="{y + 4:.1f}" text-anchor="end">{mark:g}</text>')
            found.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + SIDE}" y2="{y:.1f}" stroke="#eee"/>')
    for index, (case, curve) in enumerate(curves.items()):
        points = " ".join(
            f"{left + SIDE * (i + 1) / len(curve):.1f},{TOP + SIDE * (high - math.log10(value)) / (high - low):.1f}"
            for i, value in enumerate(curve)
        )
        colour = COLOURS[case[1]]
        found.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        found.append(f'<text x="{left + SIDE - 60}" y="{TOP + 18 + 15 * index}" fill="{colour}" '
                     f'font-weight="bold">{case.upper()}</text>')  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "toy_fit.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "methods" / "toy-fit.svg")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fits = []
    for setting, cases in SETTINGS.items():
        for rate in RATES:
            for case in cases:
                own = [fit(setting, case, rate, seed, arguments.steps) for seed in range(arguments.seeds)]
                fits += own
                shown = " ".join(f"{f.error:.5f}±{f.error_std:.1e}" for f in own)
                print(f"{setting:28} rate {rate:<5g} {case}  error {shown}  ends {own[0].end}", flush=True)
    rows = [{key: value for key, value in asdict(f).items() if key != "curve"} for f in fits]
    command = f"python benchmarks/methods/toy_fit.py --steps {arguments.steps} --seeds {arguments.seeds}"
    facts = {"command": command, "torch": torch.__version__, "fits": rows}
    arguments.out.write_text(json.dumps(facts, indent=1) + "\n")
    arguments.plot.parent.mkdir(parents=True, exist_ok=True)
    arguments.plot.write_text(draw(fits, 0.1))


if __name__ == "__main__":
    main()
