"""Where a training computes and in which number format: the processor of this machine, not the device searched for.

Parameters, optimizer states, batch-norm statistics and quantizers are float32 on that processor; in ``bf16`` and
``fp16`` the products of the network are computed in 16 bits (`torch.autocast`), quantizers stay in float32
(`ddq_search.supernet`). Gates are trained in float64 in main memory, since some processors have no float64. Checkpoints
are in main memory and name no processor, so that a run can go on elsewhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddq_search.config import TrainingConfig
from ddq_search.distributed import world_size
from ddq_search.errors import ConfigError
from ddq_search.loss_scale import LossScale
from ddq_search.supernet import Supernet
from ddq_search.task import Batch

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """Where and how.

    Attributes:
        device: the processor.
        precision: ``float32``, ``bf16`` or ``fp16``.
        layout: memory layout of images and convolution weights: ``contiguous`` or ``channels_last``.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "float32"
    layout: str = "contiguous"

    @property
    def integer_device(self) -> torch.device:
        """Where integer programs run: they need float64, which only CPUs and CUDA devices have."""
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    def describe(self) -> str:
        """Returns the processor's name, such as ``cuda:0 (NVIDIA H100 80GB HBM3)``."""
        if self.device.type == "cuda":
            return f"{self.device} ({torch.cuda.get_device_name(self.device)})"
        return str(self.device)

    def autocast(self) -> AbstractContextManager[object]:
        """Returns the context of a forward pass and its loss."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_HALVES[self.precision])

    def loss_scale(self) -> LossScale | None:
        """Returns a fresh loss scale where the number format needs one."""
        return LossScale() if self.precision == "fp16" else None

    def place_net(self, net: Supernet) -> Supernet:
        """Moves a supernet there, in that layout; returns it."""
        if self.layout == "channels_last":
            net.model.to(memory_format=torch.channels_last)
        return net.to(self.device)

    def place(self, x: Tensor) -> Tensor:
        """Returns inputs ``[N, ...]`` there, images in that layout."""
        return self.move(x.contiguous(memory_format=torch.channels_last) if self._turns(x) else x)

    def move(self, tensor: Tensor) -> Tensor:
        """Returns a tensor there. CUDA devices fetch it from page-locked memory while the CPU goes on."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        pinned = tensor.pin_memory() if tensor.device.type == "cpu" else tensor
        return pinned.to(self.device, non_blocking=True)

    def placed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields batches there, images in that layout."""
        for x, y in batches:
            yield self.place(x), self.move(y)

    def _turns(self, x: Tensor) -> bool:
        return self.layout == "channels_last" and x.ndim == 4


def widened(output: Tensor) -> Tensor:
    """Returns what a network computed in 16 bits as float32, anything wider as it is."""
    return output.float() if output.dtype in _HALVES.values() else output


def compute_of(settings: TrainingConfig) -> Compute:
    """Returns where and how these settings compute.

    Under ``torchrun``, ``cuda`` is one device for each process of a machine.

    Raises:
        ConfigError: this machine has no such processor.
    """
    return Compute(_present(settings.device), settings.precision, settings.memory_layout)


def trainable_compute(settings: TrainingConfig) -> Compute:
    """As `compute_of`, for training.

    Raises:
        ConfigError: this machine has no such processor, or training there needs another number format.
    """
    compute = compute_of(settings)
    if compute.precision == "fp16" and compute.device.type != "cuda":
        raise ConfigError(
            f"training.precision = 'fp16' needs training.device = 'cuda', not {settings.device!r}; bf16 and float32 "
            "train everywhere"
        )
    return compute


def _present(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise ConfigError("training.device = 'mps': torch finds no Metal device here; use 'cpu'")
        if world_size() > 1:
            raise ConfigError("training.device = 'mps' serves one process; run without torchrun, or use 'cpu'")
    elif device.type == "cuda":
        return _cuda(device)
    return device


def _cuda(device: torch.device) -> torch.device:
    count = torch.cuda.device_count()
    if count == 0:
        raise ConfigError(
            f"training.device = {str(device)!r}: torch {torch.__version__} finds no CUDA device here; use 'cpu', or "
            "install a GPU driver and a torch build for it"
        )
    index = device.index or 0
    if device.index is None and world_size() > 1:
        index = int(os.environ.get("LOCAL_RANK", "0"))
        if index >= count:
            raise ConfigError(
                f"training.device = 'cuda': process {index} of this machine finds {count} CUDA device(s); start at "
                f"most {count} (torchrun --nproc-per-node {count})"
            )
    if index >= count:
        known = ", ".join(f"cuda:{number}" for number in range(count))
        raise ConfigError(f"training.device = {str(device)!r}: there is no such CUDA device here, only {known}")
    return torch.device("cuda", index)
