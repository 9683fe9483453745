"""Adapters on disk: a folder with PEFT's two files, tied to its base by a SHA-256.

:mod:`.peft_files` describes their content.
"""

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..files import atomic_write, read_json, write_json
from .base_state import base_state_dict, hash_tensors
from .errors import check_types
from .layer import Adapter
from .model import attach, lora_point, require_adapters
from .peft_files import METADATA, build_files, read_adapters
from .peft_lora import CONFIG_NAME, WEIGHTS_NAME, AdapterFiles
from .target_modules import format_names
from .weight import adapted_weights, float_parameters, lora_adapters

log = logging.getLogger(__name__)

#: The one key of the file's metadata, a JSON text: safetensors writes several in a random order.
_METADATA_KEY = "lora_mnist"


def save_adapter(
    model: nn.Module, folder: str | Path, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write the adapter of ``model`` to ``folder``, without the base.

    In PEFT the files compute the outputs of ``model`` at its scale and offset. Loaded here, the
    adapter has this scale and offset, and ``set_lora_scale(model, 1)`` makes it as trained. An
    adapter that is switched off is saved as if it were on: :func:`.model.set_lora_enabled` is of a
    network, not of its adapter.

    Args:
        model: network whose layers carry LoRA (see :func:`.model.add_lora`).
        folder: made if need be, and returned; an adapter already in it is replaced.
        metadata: JSON values for the file, beside those of the file that the adapter was loaded
            from, if any. With ``base_sha256`` the base is not hashed again.

    Raises:
        ValueError: if no layer carries LoRA, a layer carries several adapters, two have an offset,
            the layers differ in their points or kinds, or :func:`load_adapter` would refuse the
            files.
        OSError: if the folder cannot be written.
    """
    folder, files = Path(folder), adapter_files(model, metadata)
    content = {key: tensor.detach().cpu().contiguous() for key, tensor in files.tensors.items()}
    with atomic_write(folder / WEIGHTS_NAME) as path:
        path.write_bytes(save(content, {_METADATA_KEY: json.dumps(files.metadata)}))
    write_json(folder / CONFIG_NAME, files.config)
    _warn_of_peft(model)
    return folder


def adapter_files(model: nn.Module, metadata: Mapping[str, Any] | None = None) -> AdapterFiles:
    """Return the content of the files of :func:`save_adapter`; raise ValueError as it does."""
    require_adapters(model)
    weights, adapters = float_parameters(model), dict[str, Adapter]()
    for name, weight in weights.items():
        if len(weight.adapters) > 1:
            raise ValueError(f"{name} carries {len(weight.adapters)} adapters; expected one")
        for adapter in weight.adapters:
            adapters[name] = adapter
    lora_point(model)  # raises unless all adapters have the same point
    loras = lora_adapters(model)
    first, *others = loras or adapters.values()
    about = dict(first.metadata)
    for other in others:  # of several files, what they all say
        about = {key: value for key, value in about.items() if other.metadata.get(key) == value}
    about |= metadata or {}
    if "base_sha256" not in about:
        about["base_sha256"] = hash_tensors(base_state_dict(model))
    files = build_files(adapters, weights)
    files.config["lora_dropout"] = max((each.dropout for each in loras), default=0.0)
    files = files._replace(metadata=about | files.metadata)
    read_adapters(files, weights)  # what cannot be loaded is not saved
    return files


def load_adapter(model: nn.Module, folder: str | Path, base_sha256: str | None = None) -> nn.Module:
    """Put the adapter in ``folder`` on ``model``, which must be the base it was trained on.

    It has the scale and the offset with which it was saved; one of PEFT's has the scale 1. The
    folder may come from a stranger: nothing in it is run as code.

    Args:
        model: the base; changed in place, and returned, its own parameters frozen. On a model that
            carries LoRA already the adapter is stacked.
        folder: what :func:`save_adapter` or ``peft`` wrote.
        base_sha256: the SHA-256 of the base; ``None``: it is computed.

    Raises:
        ValueError: if the files are missing or damaged, ask for something that LoRA here lacks, do
            not fit the layers of ``model``, or were made for another base. ``model`` is then as it
            was.
    """
    folder, metadata = Path(folder), read_metadata(folder)
    try:
        if metadata:
            made_for = metadata["base_sha256"]
            sha256 = base_sha256 or hash_tensors(base_state_dict(model))
            if made_for != sha256:
                here = f"this one is {sha256}; expected the same base"
                raise ValueError(f"made for the base {made_for}, {here}")
        else:
            log.warning("the adapter does not say which base it was made for: not checked")
        tensors, config = load_file(folder / WEIGHTS_NAME), read_json(folder / CONFIG_NAME)
        files = AdapterFiles(tensors, config, metadata)
        attach(model, read_adapters(files, float_parameters(model)))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return model


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """Return the metadata of the adapter in ``folder``, {} for one of PEFT's; no tensor is read."""
    try:
        with safe_open(Path(folder, WEIGHTS_NAME), framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
        if not isinstance(metadata, dict):
            raise ValueError(f"{metadata}: expected a JSON object")
        if metadata:
            check_types(metadata, METADATA)
        return metadata
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ValueError(f"{folder}: expected a readable {WEIGHTS_NAME} ({error})") from error


def _warn_of_peft(model: nn.Module) -> None:
    """Warn of an adapter that PEFT would silently ignore, or compute in another way."""
    layers = []
    for name, weight in adapted_weights(model).items():
        module: Any = weight.module
        is_attention = isinstance(module, NonDynamicallyQuantizableLinear)
        is_usual = weight.attribute == "weight" and not is_attention
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):  # PEFT supports none of these
            is_plain = module.groups == 1 and module.padding_mode == "zeros"
            is_usual = is_plain and set(module.dilation) == {1}
        if weight.original.ndim > 1 and not is_usual:
            layers.append(name)
    if layers:
        warnings.warn(
            f"PEFT has no such adapter for {format_names(layers)}: use the saved adapter here",
            stacklevel=3,
        )
