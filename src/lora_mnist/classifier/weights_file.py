"""Reads and loads weights from files of any origin, without running code."""

import textwrap
from collections import Counter, OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from lora_mnist.classifier.huggingface import TARGET, rename_tensors
from lora_mnist.classifier.record import NO_RECORD, Record, read_record
from lora_mnist.errors import format_value
from lora_mnist.lora.base_state import hash_tensors
from lora_mnist.lora.errors import check_types


class Base(NamedTuple):
    """The weights in a file, and their description."""

    tensors: Mapping[str, Tensor]  # its state_dict; names may differ in a file from elsewhere
    sha256: str  # of the tensors, in hexadecimal; empty in a file that is not ours
    record: Record
    train_digests: Tensor | None = None  # of its training images; None: not known


def read_base(path: Path) -> Base:
    """Read the weights in ``path``, and a base's record, without running code from the file."""
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"  # after the length of the header: JSON
    content: Any
    try:
        if is_safetensors:
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
        is_ours = isinstance(content, Mapping) and isinstance(content.get("record"), Mapping)
        tensors = _find_tensors(content.get("state_dict") if is_ours else content)
    except Exception as error:  # neither library has a common class for errors of damaged files
        types = []
        with suppress(Exception):  # the file is not one of torch.save's
            types = sorted(get_unsafe_globals_in_checkpoint(path))
        reason = f"damaged, or not a weights file ({type(error).__name__})"
        if types:
            reason = f"holds {types[0]}, which is not loaded, since it could run code"
        raise ValueError(
            f"{reason}; expected weights alone, as torch.save(net.state_dict(), FILE) or "
            "safetensors writes them"
        ) from error
    record, sha256, train_digests = NO_RECORD, "", None
    if is_ours:
        check_types(content, {"train_digests": Tensor | None})
        record, train_digests = read_record(content["record"]), content.get("train_digests")
        sha256 = str(content.get("sha256"))
    if not tensors:
        raise ValueError(f"holds a {type(content).__name__} without tensors; expected a state_dict")
    return Base(tensors, sha256, record, train_digests)


def _find_tensors(content: Any) -> dict[str, Tensor]:
    """Return the tensors of nested dictionaries by dotted names."""
    if not isinstance(content, Mapping):
        return {}
    tensors, groups = {}, {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            tensors[str(key)] = value
        elif group := _find_tensors(value):
            groups[key] = group
    if not tensors and len(groups) == 1:
        return next(iter(groups.values()))  # the one key, such as state_dict, is not part of a name
    for key, group in groups.items():
        tensors |= {f"{key}.{name}": tensor for name, tensor in group.items()}
    return tensors


def load_weights(
    net: nn.Module,
    file: Base,
    prefix: str | None = None,  # of one of several networks in the file
    arguments: Mapping[str, Any] | None = None,  # of net, if it was built from keys
) -> Base:
    """Load the weights of a file into ``net``; ``ValueError``, if they do not fit."""
    if arguments is not None and arguments["_target_"] == TARGET:
        file = file._replace(tensors=rename_tensors(net, file.tensors))
    own: Any = net.state_dict()
    counts = Counter[str]()  # of the network's names in the file, by the prefix before them
    for name in file.tensors:
        parts = name.split(".")
        for number in range(len(parts)):
            end = ".".join(parts[number:])
            if end in own:
                counts[name.removesuffix(end)] += 1
    networks = [each for each, count in counts.items() if count == len(own)]
    names = ", ".join(each or "''" for each in networks) or "none"
    if prefix is None and len(networks) > 1:
        raise ValueError(f"holds {len(networks)} networks; expected base_prefix= one of {names}")
    if prefix is None:  # such as module.; tensors without it, such as a metric's, are ignored
        prefix = max(counts, key=lambda each: counts[each], default="")
    elif prefix not in counts:
        raise ValueError(f"base_prefix={prefix}: expected one of {names}")
    others = tuple(each for each in networks if each != prefix and each.startswith(prefix))
    chosen: Any = OrderedDict()
    for name, tensor in file.tensors.items():
        if not name.startswith(prefix) or name.startswith(others):
            continue
        name = name.removeprefix(prefix)
        if name in own and own[name].is_floating_point() and not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}; expected floating-point numbers")
        chosen[name] = tensor
    # Layers convert the tensors of older versions. A file with all current names is current.
    if prefix in networks:
        chosen._metadata = own._metadata
    try:
        net.load_state_dict(chosen)
    except RuntimeError as error:  # torch names every tensor that does not fit
        lines = [textwrap.shorten(line, 200) for line in str(error).splitlines()[:4]]
        hint = _build_hint(own, chosen, arguments) if arguments else ""
        expected = f"expected the tensors of the configured net{hint}"
        raise ValueError(f"{expected}; {' '.join(lines).rstrip('.')}") from error
    tensors = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity; expected finite numbers")
    return Base(tensors, hash_tensors(tensors), file.record, file.train_digests)


def _build_hint(
    own: Mapping[str, Tensor], stored: Mapping[str, Tensor], arguments: Mapping[str, Any]
) -> str:
    """Return a hint at the keys with which the stored tensors would fit the network."""
    key, (name, last) = outputs_key(arguments), list(own.items())[-1]
    if key and stored.keys() == own.keys() and stored[name].shape[:1] != last.shape[:1]:
        return f": {key}={len(stored[name])} has as many outputs"
    keys = [f"net.{key}={format_value(value)}" for key, value in arguments.items()]
    return f", or the keys that it was trained with in place of {' '.join(keys)}"


def outputs_key(arguments: Mapping[str, Any]) -> str | None:
    """Return the key that sets the number of outputs of a network with these arguments, or None."""
    parameters = signature(resolve_name(arguments["_target_"])).parameters
    for name in ("num_classes", "nc"):  # nc: Ultralytics
        if name in parameters:
            return f"net.{name}"
    has_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return "net.num_classes" if has_any else None  # as timm and torchvision hand them on
