"""Adapters on disk, in PEFT's layout, tied to their base by its fingerprint.

An adapter is a folder of two files that ``peft`` loads unchanged; :mod:`.peft` says what they hold.
The metadata of its tensors has ``base_sha256``, the fingerprint of the base that the adapter was
trained on, and whatever the caller adds.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from ..disk.files import atomic_write, write_json
from .base_state import base_state_dict, fingerprint
from .model import attach, usable_adapters
from .peft import (
    CONFIG_NAME,
    METADATA_KEY,
    WEIGHTS_NAME,
    alphas_of,
    config_of,
    read_adapter,
    read_metadata,
    tensors_of,
    warn_of_peft,
)
from .weight import adaptable_weights, lora_weights

log = logging.getLogger(__name__)


def save_adapter(
    model: nn.Module, folder: str | Path, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write the LoRA weights of ``model`` to ``folder``; a few kilobytes, without the base.

    ``lora_A`` and ``lora_B`` are written as trained. The scale is a factor of ``lora_alpha`` in
    ``adapter_config.json``, so PEFT computes what ``model`` does now, and stands in the metadata
    with the alpha as trained: loaded here, the adapter has the scale that it was saved with, and
    ``set_lora_scale(model, 1)`` makes it as trained.

    Args:
        model: network whose layers carry LoRA (see :func:`.model.add_lora`).
        folder: made if need be, and returned; an adapter already in it is replaced.
        metadata: JSON values for the file, beside those of the file that the adapter was loaded
            from, if any. With ``base_sha256`` the base is not hashed again.

    Raises:
        ValueError: if no layer carries LoRA, a layer carries several adapters, or the layers differ
            in their scales.
        OSError: if the folder cannot be written.
    """
    folder = Path(folder)
    usable_adapters(model)
    chosen = {}
    for layer, weight in lora_weights(model).items():
        if len(weight.adapters) > 1:
            raise ValueError(f"{layer} carries {len(weight.adapters)} adapters; expected one")
        chosen[layer] = (weight, weight.adapters[0])
    scale, *others = {adapter.scale for _, adapter in chosen.values()}
    if others:
        raise ValueError(f"the layers have the scales {[scale, *others]}; expected one")
    about = dict(next(iter(chosen.values()))[1].metadata)
    for _, adapter in chosen.values():  # of several files, what they all say
        about = {key: value for key, value in about.items() if adapter.metadata.get(key) == value}
    about |= metadata or {}
    if "base_sha256" not in about:
        about["base_sha256"] = fingerprint(base_state_dict(model))
    about |= {"scale": float(scale), "trained": alphas_of(chosen)}
    with atomic_write(folder / WEIGHTS_NAME) as path:
        path.write_bytes(save(tensors_of(chosen), {METADATA_KEY: json.dumps(about)}))
    write_json(folder / CONFIG_NAME, config_of(chosen))
    warn_of_peft(model, chosen)
    return folder


def load_adapter(model: nn.Module, folder: str | Path, base_sha256: str | None = None) -> nn.Module:
    """Put the adapter in ``folder`` on ``model``, which must be the base it was trained on.

    It has the scale with which it was saved; one of PEFT's has 1. The folder may come from a
    stranger: nothing in it is run as code.

    Args:
        model: the base; changed in place, and returned, its own parameters frozen. On a model that
            carries LoRA already the adapter is stacked.
        folder: what :func:`save_adapter` or ``peft`` wrote.
        base_sha256: the fingerprint of the base; ``None``: it is computed.

    Raises:
        ValueError: if the files are missing or damaged, ask for something that LoRA here lacks, do
            not fit the layers of ``model``, or were made for another base. ``model`` is then as it
            was.
    """
    metadata = read_metadata(folder)
    weights = adaptable_weights(model)
    try:
        adapters = read_adapter(folder, metadata)
        for layer, adapter in adapters.items():
            if layer not in weights:
                raise ValueError(
                    f"unexpected tensors of {layer} in {WEIGHTS_NAME}: the model has no such layer "
                    "that can be adapted"
                )
            adapter.metadata = dict(metadata)
            for key in ("base_sha256", "scale", "trained"):  # saved anew, as they are then
                adapter.metadata.pop(key, None)
        made_for = metadata.get("base_sha256")
        if made_for is None:
            log.warning("the adapter does not say which base it was made for: not checked")
        else:
            here = base_sha256 or fingerprint(base_state_dict(model))
            if made_for != here:
                dataset = f" on {metadata['dataset']}" if "dataset" in metadata else ""
                raise ValueError(
                    f"made for the base {made_for}{dataset}, this one is {here}; "
                    "expected the same base"
                )
        attach(model, adapters)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return model
