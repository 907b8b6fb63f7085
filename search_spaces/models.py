"""The models that can be searched: families of our own, torchvision's, and the user's own code.

A model is named by a specification: ``resnet8``, ``torchvision:mobilenet_v2`` or ``package.module:callable``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddq_search.errors import ConfigError
from search_spaces.depthwise import ds_cnn, mobilenetv2_cifar
from search_spaces.mlp import mlp
from search_spaces.resnet import resnet8, resnet20, resnet32, resnet56
from search_spaces.super_resolution import espcn

FAMILIES: dict[str, Callable[..., nn.Module]] = {
    builder.__name__: builder for builder in (resnet8, resnet20, resnet32, resnet56, mobilenetv2_cifar, ds_cnn, mlp)
}
"""Our own builders by name; each takes ``in_channels`` and ``classes``, and ``image_size`` where it matters."""

_AUXILIARY = ("googlenet", "inception_v3")
"""torchvision models that return a tuple in training mode unless told not to."""


UPSCALERS: dict[str, Callable[..., nn.Module]] = {builder.__name__: builder for builder in (espcn,)}
"""Our own builders of networks that enlarge images by name; each takes ``in_channels`` and ``factor``."""


def list_models() -> list[str]:
    """Returns the names of our own families; any ``torchvision:NAME`` and ``package.module:callable`` also works."""
    return [*FAMILIES, *UPSCALERS]


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
    size = _size(image_size)
    if spec in UPSCALERS:
        raise ConfigError(
            f"model {spec!r} enlarges images and gives no class scores; give it data such as sample-images or "
            f"patches:PATH, or choose from {', '.join(FAMILIES)}"
        )
    offered = {"in_channels": in_channels, "classes": classes, "num_classes": classes, "image_size": size}
    if spec.startswith("torchvision:"):
        model = _from_torchvision(spec.partition(":")[2], in_channels, classes)
    else:
        model = _named(spec, FAMILIES, offered)
    shape = _output_shape(spec, model, (1, in_channels, *size))
    if len(shape) != 2 or shape[1] < classes:
        raise ConfigError(f"model {spec!r} returns shape {shape}; expected scores [N, {classes}], one per class")
    return model


def build_upscaler(spec: str, in_channels: int, factor: int, image_size: int | tuple[int, int]) -> nn.Module:
    """Returns a fresh, untrained model that enlarges images ``[N, in_channels, *image_size]`` by a factor.

    Args:
        spec: a family that enlarges images, or ``package.module:callable`` as in `build_model`, with those of the
            keyword arguments ``in_channels, factor, upscale_factor, image_size`` that it names.
        in_channels: channels of an image, and of the result.
        factor: how many times as high and wide the result is.
        image_size: height and width of an image, or one number for both.

    Raises:
        ConfigError: the name is unknown, the user's code fails, or the result does not enlarge such an image so.
    """
    size = _size(image_size)
    if spec in FAMILIES or spec.startswith("torchvision:"):
        raise ConfigError(
            f"model {spec!r} gives class scores, but this data asks for enlarged images; choose from "
            f"{', '.join(UPSCALERS)} or package.module:callable, or give other --data"
        )
    offered = {"in_channels": in_channels, "factor": factor, "upscale_factor": factor, "image_size": size}
    model = _named(spec, UPSCALERS, offered)
    shape = _output_shape(spec, model, (1, in_channels, *size))
    wanted = (1, in_channels, factor * size[0], factor * size[1])
    if shape != wanted:
        expected = ", ".join(map(str, wanted[1:]))
        raise ConfigError(f"model {spec!r} returns shape {shape}; expected images [N, {expected}]")
    return model


def build_without_data(spec: str, in_channels: int, classes: int, image_size: tuple[int, int]) -> nn.Module:
    """Returns a classifier, or a family that enlarges images by its own factor: what can be priced without data."""
    if spec in UPSCALERS:
        return UPSCALERS[spec](in_channels)
    return build_model(spec, in_channels, classes, image_size)


def _size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    return (image_size, image_size) if isinstance(image_size, int) else (int(image_size[0]), int(image_size[1]))


def _named(spec: str, families: Mapping[str, Callable[..., nn.Module]], offered: Mapping[str, Any]) -> nn.Module:
    if spec in families:
        model: nn.Module = _call(families[spec], offered)
        return model
    if ":" in spec:
        return _from_user(spec, offered)
    known = ", ".join([*families, *(["torchvision:NAME"] if families is FAMILIES else [])])
    raise ConfigError(
        f"unknown model {spec!r}{_closest(spec, families)}; choose from {known} or package.module:callable"
    )


def _call(builder: Callable[..., Any], offered: Mapping[str, Any]) -> Any:
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


def _from_user(spec: str, offered: Mapping[str, Any]) -> nn.Module:
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
        model = _call(target, offered)
    except Exception as error:
        raise ConfigError(f"model {spec!r}: calling it failed: {_told(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {spec!r} returned a {type(model).__name__}; it must return a torch.nn.Module")
    return model


def _output_shape(spec: str, model: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            output = model(torch.zeros(shape))
    except Exception as error:
        raise ConfigError(f"model {spec!r} does not accept images of shape {shape[1:]}: {_told(error)}") from error
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(output, torch.Tensor):
        raise ConfigError(f"model {spec!r} returns a {type(output).__name__}; it must return one tensor")
    return tuple(output.shape)


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
