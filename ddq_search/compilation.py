"""``torch.compile`` of a network's forward pass, where this platform can; otherwise the eager one, with one note.

Whether it can is tried out on the first batch of a phase, forward and backward, before anything is learned from it: a
compiler that is missing or gives up costs one line and the try. Only batches of that batch's shape run compiled, so
nothing is compiled in mid-training. Choices are tensors to a compiled network (`ddq_search.quantizers.traced`), so one
graph serves a search whose choices change with every step; networks that mix their candidates stay eager.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddq_search.distributed import world_size

Forward = Callable[[Tensor], Tensor]
_REASON = 200
"""Characters of a compiler's complaint that a note repeats."""


class CompiledForward:
    """Runs a module, compiled where that works.

    Args:
        module: what runs; its mode stays as it is at the first call.
        tell: gets the note.
        backend: of ``torch.compile``.
    """

    def __init__(self, module: nn.Module, tell: Callable[[str], None], backend: str = "inductor") -> None:
        self._module, self._tell, self._backend = module, tell, backend
        self._shape: torch.Size | None = None
        self._compiled: Forward = module

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the module's output."""
        if self._shape is None:
            self._shape = x.shape
            self._try_out(x)
        return (self._compiled if x.shape == self._shape else self._module)(x)

    def _try_out(self, x: Tensor) -> None:
        if world_size() > 1:
            self._tell("training.compile is left out: processes exchange batch statistics within the forward pass")
            return
        module = self._module
        logger = logging.getLogger("torch._dynamo")
        level = logger.level
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                logger.setLevel(logging.ERROR)  # where the compiler leaves gaps is nothing the user can mend
                torch.compiler.reset()  # what other phases compiled
                compiled = torch.compile(lambda images: module(images), dynamic=False, backend=self._backend)
                trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
                torch.autograd.grad(compiled(x).sum(), trained, allow_unused=True)
            self._compiled = compiled
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self._tell(f"training.compile is left out, this platform cannot: {reason[:_REASON]}")
        finally:
            logger.setLevel(level)
            with torch.no_grad():
                for name, buffer in module.named_buffers():
                    buffer.copy_(before[name])
