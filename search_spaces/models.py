"""The models that can be searched: families of our own, torchvision's, and the user's own code.

A model is named by a specification: ``resnet8``, ``torchvision:mobilenet_v2`` or ``package.module:callable``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddq_search.errors import ConfigError
from search_spaces.depthwise import ds_cnn, mobilenetv2_cifar
from search_spaces.mlp import mlp
from search_spaces.resnet import resnet8, resnet20, resnet32, resnet56

FAMILIES: dict[str, Callable[..., nn.Module]] = {
    builder.__name__: builder for builder in (resnet8, resnet20, resnet32, resnet56, mobilenetv2_cifar, ds_cnn, mlp)
}
"""Our own builders by name; each takes ``in_channels`` and ``classes``, and ``image_size`` where it matters."""

_AUXILIARY = ("googlenet", "inception_v3")
"""torchvision models that return a tuple in training mode unless told not to."""


def list_models() -> list[str]:
    """Returns the names of our own families; any ``torchvision:NAME`` and ``package.module:callable`` also works."""
    return list(FAMILIES)


def build_model(spec: str, in_channels: int, classes: int, image_size: int | tuple[int, int]) -> nn.Module:
    """Returns a fresh, untrained model for images ``[N, in_channels, *image_size]``.

    Args:
        spec: a family of `list_models`; ``torchvision:NAME``, whose first convolution is rebuilt when the images do
            not have three channels; or ``package.module:callable``, which runs that code with those of the keyword
            arguments ``in_channels, classes, num_classes, image_size`` that it names. The working directory is
            searched last.
        in_channels: channels of an image.
        classes: number of classes.
        image_size: height and width of an image, or one number for both.

    Raises:
        ConfigError: the name is unknown, the user's code fails, or the result does not map such an image to scores
            of all classes.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else (int(image_size[0]), int(image_size[1]))
    if spec in FAMILIES:
        model: nn.Module = _call(FAMILIES[spec], in_channels, classes, size)
    elif spec.startswith("torchvision:"):
        model = _from_torchvision(spec.partition(":")[2], in_channels, classes)
    elif ":" in spec:
        model = _from_user(spec, in_channels, classes, size)
    else:
        close = _closest(spec, FAMILIES)
        raise ConfigError(
            f"unknown model {spec!r}{close}; choose from {', '.join(FAMILIES)}, torchvision:NAME or "
            "package.module:callable"
        )
    _check_scores(spec, model, (1, in_channels, *size), classes)
    return model


def _call(builder: Callable[..., Any], in_channels: int, classes: int, image_size: tuple[int, int]) -> Any:
    offered = {"in_channels": in_channels, "classes": classes, "num_classes": classes, "image_size": image_size}
    try:
        accepted = set(inspect.signature(builder).parameters)
    except (TypeError, ValueError):  # built-in callables have no signature
        accepted = set()
    return builder(**{name: value for name, value in offered.items() if name in accepted})


def _from_torchvision(name: str, in_channels: int, classes: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(f"torchvision has no model {name!r}{_closest(name, known)}; known: {', '.join(known)}")
    options: dict[str, Any] = {"aux_logits": False, "init_weights": True} if name in _AUXILIARY else {}
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    if in_channels != 3:
        _rebuild_stem(model, in_channels)
    return model


def _rebuild_stem(model: nn.Module, in_channels: int) -> None:
    path, stem = next((path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d))
    parent, _, attribute = path.rpartition(".")
    rebuilt = nn.Conv2d(
        in_channels,
        stem.out_channels,
        stem.kernel_size,  # type: ignore[arg-type]
        stem.stride,  # type: ignore[arg-type]
        stem.padding,  # type: ignore[arg-type]
        stem.dilation,  # type: ignore[arg-type]
        bias=stem.bias is not None,
    )
    nn.init.kaiming_normal_(rebuilt.weight, mode="fan_out", nonlinearity="relu")
    setattr(model.get_submodule(parent), attribute, rebuilt)


def _from_user(spec: str, in_channels: int, classes: int, image_size: tuple[int, int]) -> nn.Module:
    module_name, _, attribute = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(f"model {spec!r}: importing {module_name!r} failed: {_told(error)}") from error
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            public = [name for name in vars(target) if not name.startswith("_")]
            raise ConfigError(f"model {spec!r}: {module_name!r} has no {attribute!r}{_closest(part, public)}")
        target = getattr(target, part)
    if isinstance(target, nn.Module):
        return target
    if not callable(target):
        raise ConfigError(f"model {spec!r} is a {type(target).__name__}; name a class or function that makes a model")
    try:
        model = _call(target, in_channels, classes, image_size)
    except Exception as error:
        raise ConfigError(f"model {spec!r}: calling it failed: {_told(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {spec!r} returned a {type(model).__name__}; it must return a torch.nn.Module")
    return model


def _check_scores(spec: str, model: nn.Module, shape: tuple[int, ...], classes: int) -> None:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            scores = model(torch.zeros(shape))
    except Exception as error:
        raise ConfigError(f"model {spec!r} does not accept images of shape {shape[1:]}: {_told(error)}") from error
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(scores, torch.Tensor) or scores.ndim != 2 or scores.shape[1] < classes:
        found = f"shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else f"a {type(scores).__name__}"
        raise ConfigError(f"model {spec!r} returns {found}; expected scores [N, {classes}], one per class")


def _closest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = (
        "" if "/torch/" in place.filename or "importlib" in place.filename else f" ({place.filename}:{place.lineno})"
    )
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}{where}"
