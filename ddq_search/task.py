"""What is learned from which data: a task is a loss, a metric, a direction and a unit; a source gives batches.

The core knows no data set. What it needs arrives as a `DataSource`; `LoaderSource` wraps a user's own loaders.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ddq_search.errors import ConfigError
from ddq_search.precision import ActivationGrid

Split = Literal["train", "validation", "test"]
Batch = tuple[Tensor, Tensor]


class DataSource(Protocol):
    """Batches of (input ``[N, ...]``, target), the same for the same arguments however often they are asked for.

    A source whose targets are raw pixels may have an ``output_grid`` besides: the grid of the network's output.
    """

    @property
    def name(self) -> str:
        """What the report calls the data."""

    @property
    def fingerprint(self) -> str:
        """Changes when the data or the split changes."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, batch left out."""

    @property
    def input_grid(self) -> ActivationGrid | None:
        """Grid on which the inputs lie exactly (raw pixels), or None: then it is calibrated."""

    def train(self, *, seed: int, epoch: int, batch_size: int) -> Iterator[Batch]:
        """Yields the shuffled, augmented training batches of one epoch; randomness depends on the arguments only."""

    def train_batches(self, batch_size: int) -> int:
        """Number of batches that `train` yields."""

    def plain(self, split: Split, batch_size: int) -> Iterator[Batch]:
        """Yields every sample of a split once, in order, without augmentation."""


class Task(Protocol):
    """Loss and metric of what the network does."""

    @property
    def metric(self) -> str:
        """Name of the metric, such as ``top-1``."""

    @property
    def direction(self) -> Literal["max", "min"]:
        """Whether more or less of the metric is better."""

    @property
    def unit(self) -> str:
        """Unit of the metric."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Returns the mean loss of a batch."""

    def distance(self, output: Tensor, reference: Tensor) -> Tensor:
        """Returns the mean distance to the float model's output (distillation)."""

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """Returns the metric of every sample, ``[N]``."""


def identity(task: Task) -> str:
    """Returns what tells two tasks apart: class, metric, and the plain values that they hold.

    >>> tasks = [SuperResolution(border) for border in (4, 4, 8)]
    >>> len({identity(task) for task in tasks})
    2
    """
    held = {k: v for k, v in getattr(task, "__dict__", {}).items() if isinstance(v, str | int | float | None)}
    names = [type(task).__module__, type(task).__qualname__, task.metric, task.direction, task.unit]
    return json.dumps([names, held], sort_keys=True)


@dataclass(frozen=True)
class Classification:
    """Cross-entropy and top-1 accuracy."""

    metric: str = "top-1"
    direction: Literal["max", "min"] = "max"
    unit: str = "%"
    loss_name: str = "cross-entropy"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of logits ``[N, classes]``."""
        return F.cross_entropy(output, target)

    def distance(self, output: Tensor, reference: Tensor) -> Tensor:
        """Kullback-Leibler divergence from the reference's class probabilities."""
        return F.kl_div(output.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="batchmean")

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """100 where the largest logit is the target's, else 0."""
        return 100.0 * (output.argmax(-1) == target)


BEST_PSNR_DB = 100.0
"""Ratio of an image without any error, whose own would be infinite."""


KNEE = 1e-4
"""Mean squared error, that of 40 dB, around which the loss of `SuperResolution` turns from linear to logarithmic."""


@dataclass(frozen=True)
class SuperResolution:
    """Logarithmic loss and peak signal-to-noise ratio of images ``[N, C, H, W]`` with pixels in 0 … 1.

    The loss of an image of mean squared error e is ``ln(1 + e / 10⁻⁴)``. Below 40 dB it follows PSNR, whose mean over
    images is the metric, so neither images full of detail nor samples of few bits outweigh the others; above, gradients
    fade where a logarithm's would grow. Ours.

    ``border`` pixels along every edge count nowhere: convolutions see padding there that a larger image would fill.
    """

    border: int = 0
    metric: str = "PSNR"
    direction: Literal["max", "min"] = "max"
    unit: str = "dB"
    loss_name: str = "ln(1 + mean squared error / 0.0001)"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """``ln(1 + e / 10⁻⁴)`` of every image's mean squared error e, averaged."""
        squared = (self._inside(output) - self._inside(target)).square().flatten(1).mean(1)
        return (squared / KNEE).log1p().mean()

    def distance(self, output: Tensor, reference: Tensor) -> Tensor:
        """The same of the difference to the reference's images, cut to 0 … 1 as quantized outputs are."""
        return self.loss(output, reference.clamp(0, 1))

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """``-10 log10`` of every image's mean squared error over pixels and channels, in dB, outputs cut to 0 … 1."""
        difference = self._inside(output).double().clamp(0, 1) - self._inside(target).double()
        squared = difference.square().flatten(1).mean(1)
        return -10.0 * squared.clamp(min=10 ** (-BEST_PSNR_DB / 10)).log10()

    def _inside(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        return images[:, :, self.border : height - self.border, self.border : width - self.border]


@dataclass(frozen=True)
class Measure:
    """Mean loss and metric over a split."""

    loss: float
    score: float


def measure(task: Task, outputs: Iterable[tuple[Tensor, Tensor]]) -> Measure:
    """Returns loss and metric averaged over (output, target) batches, weighted by their sizes."""
    loss = score = 0.0
    count = 0
    for output, target in outputs:
        loss += float(task.loss(output.float(), target)) * len(target)
        score += float(task.score(output, target).double().sum())
        count += len(target)
    if count == 0:
        raise ConfigError("the split holds no samples; check the data")
    return Measure(loss / count, score / count)


class LoaderSource:
    """A user's own loaders as a data source.

    The loaders' own shuffling decides the order of training batches; give them a seeded generator if a resumed run
    must equal an uninterrupted one.
    """

    input_grid: ActivationGrid | None = None

    def __init__(
        self,
        train: Iterable[Batch],
        validation: Iterable[Batch],
        test: Iterable[Batch] | None = None,
        name: str = "user",
    ) -> None:
        self._splits = {"train": train, "validation": validation, "test": validation if test is None else test}
        self.name = name
        if any(iter(loader) is loader for loader in self._splits.values()):
            raise ConfigError("a loader must be readable more than once: give a DataLoader or a list, not an iterator")
        first = next(iter(validation), None)
        if not (isinstance(first, tuple | list) and len(first) == 2 and torch.is_tensor(first[0])):
            raise ConfigError("a loader must yield pairs (input tensor, target tensor)")
        self.input_shape = tuple(first[0].shape[1:])

    @property
    def fingerprint(self) -> str:
        """Depends on the name and the input shape only: the loaders' content is the user's."""
        return hashlib.sha256(repr((self.name, self.input_shape)).encode()).hexdigest()[:16]

    def train(self, *, seed: int, epoch: int, batch_size: int) -> Iterator[Batch]:
        """Yields the training loader's batches; the loader's own batch size holds."""
        yield from ((x, y) for x, y in self._splits["train"])

    def train_batches(self, batch_size: int) -> int:
        """Length of the training loader."""
        return len(self._splits["train"])  # type: ignore[arg-type]

    def plain(self, split: Split, batch_size: int) -> Iterator[Batch]:
        """Yields a loader's batches."""
        yield from ((x, y) for x, y in self._splits[split])
