"""Trained weights from a file, without executing anything that the file contains."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from ddq_search.errors import ConfigError
from ddq_search.listing import some

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts commonly save the weights among other things."""


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copies the weights of a ``.safetensors``, ``.pth`` or ``.pt`` file into the model.

    Every tensor of the model must be in the file and the reverse; counters of batch norms may be missing. A
    ``module.`` prefix (left by data-parallel training) and a surrounding ``{"state_dict": …}`` are understood.
    Nothing is copied unless everything fits.

    Raises:
        ConfigError: the file is missing, broken, holds Python objects other than tensors, or does not fit the model.
    """
    source = Path(path)
    state = _without_prefix(_read(source))
    target = model.state_dict()
    missing = [name for name in target if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in target]
    if missing or unexpected:
        kinds = (("lacks", missing), ("adds", unexpected))
        facts = [f"{what} {some(map(repr, names), 4)}" for what, names in kinds if names]
        raise ConfigError(f"weights {source} are not of this model: the file {' and '.join(facts)}")
    for name, value in state.items():
        if value.shape != target[name].shape:
            raise ConfigError(
                f"weights {source}: {name!r} has shape {tuple(value.shape)}, the model needs "
                f"{tuple(target[name].shape)}; check the number of classes and channels"
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ConfigError(f"weights {source}: {name!r} contains NaN or infinity; the training diverged")
    model.load_state_dict(state, strict=False)


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ConfigError(f"no weights file at {path}")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise ConfigError(f"weights {path} are not a readable safetensors file: {error}") from error
    if path.suffix not in (".pth", ".pt"):
        raise ConfigError(f"weights {path}: the name must end in .safetensors, .pth or .pt")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickle protocols; what matters is an error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"weights {path} hold Python objects beside tensors, which are not loaded because that executes code: save "
            "model.state_dict() instead"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__).partition(". ")[0]
        raise ConfigError(f"weights {path} are not a readable PyTorch file (truncated or damaged?): {said}") from error
    return _tensors(path, content)


def _tensors(path: Path, content: Any) -> dict[str, torch.Tensor]:
    if isinstance(content, Mapping):
        for key in _WRAPPERS:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ConfigError(f"weights {path} are not a mapping from names to tensors: save model.state_dict()")
    return dict(content)


def _without_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if state and all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state
