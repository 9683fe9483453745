"""Builds a network, a data set or a transform from arguments that name it by ``_target_``."""

from collections.abc import Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from torch import nn

from lora_mnist.classifier.settings import Settings
from lora_mnist.data import ImageDataset, is_published
from lora_mnist.errors import PREPARE, UserError, format_value, report_group_errors, require_extra
from lora_mnist.project import DATA, import_from_here


def build(arguments: Any, is_transform: bool = False) -> Any:
    """Call each ``_target_`` with its arguments, like Hydra's ``instantiate``, without Hydra."""
    if isinstance(arguments, Mapping):
        values = {}
        for key, value in arguments.items():
            if key not in ("_convert_", "_recursive_"):
                values[key] = build(value, is_transform or key == "transform")
        if "_target_" not in values:
            return values
        name = values.pop("_target_")
        if name.startswith("timm."):
            require_extra(f"_target_={name}", "timm", "timm")
        try:
            function = resolve_name(name)
        except ModuleNotFoundError as error:
            error.msg += f", neither installed nor in {Path.cwd()}"
            raise
        is_partial = values.pop("_partial_", False)
        # Unlike with Hydra, a function of a picture may be a ``transform``: it is not called.
        if is_partial or (is_transform and _takes_a_picture(function, values)):
            return partial(function, **values)
        return function(**values)
    if isinstance(arguments, Sequence) and not isinstance(arguments, str):
        return [build(value, is_transform) for value in arguments]
    return arguments


def _takes_a_picture(function: Any, arguments: Mapping[str, Any]) -> bool:
    """Return whether ``function`` itself is a transform: it lacks one argument, the picture."""
    if isinstance(function, type):
        return False  # it makes one
    if isinstance(function, nn.Module):  # such as a Compose in the user's file
        return True
    missing = 0
    for name, parameter in signature(function).parameters.items():
        is_given = name in arguments or parameter.default is not parameter.empty
        if not is_given and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            missing += 1
    return missing == 1


def build_network(arguments: Mapping[str, Any]) -> nn.Module:
    """Build the network that these arguments describe, with fresh weights, in eval mode."""
    key = f"net._target_={arguments.get('_target_')}"
    with import_from_here(), report_group_errors(key):
        net = build(arguments)
    if not isinstance(net, nn.Module):
        raise UserError(f"{key}: returned a {type(net).__name__}")
    # In train mode, batch normalization would move its running statistics.
    return net.eval()


def build_dataset(settings: Settings) -> ImageDataset:
    """Build the data set of these settings; its images supply missing values."""
    for key, value in settings.data.items():
        if key in PREPARE and value is not None:
            raise UserError(f"data.{key}={format_value(value)}: expected prepare.{key}")
    given = {}
    for key, value in (settings.data | settings.prepare).items():
        if value is not None:
            given[key] = value
    if is_published(settings.data):
        if settings.given["data"].get("data_dir") != given.get("data_dir"):
            given["download"] = False  # never create or fill a folder that only a record names
        given.setdefault("data_dir", str(DATA))
    with import_from_here(), report_group_errors("data"):
        dataset = build(given)
    if not isinstance(dataset, ImageDataset):
        raise UserError(f"data._target_={given['_target_']}: returned a {type(dataset).__name__}")
    return dataset
