"""Adapters on disk, in PEFT's layout, tied to their base by its fingerprint.

An adapter is a folder of two files that ``peft`` loads unchanged; :mod:`.peft` says what they hold.
The metadata of its tensors names ``base_sha256``, the fingerprint of the base that the adapter was
trained on, and whatever the caller adds.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ..disk.files import atomic_write
from .base_state import base_state_dict, fingerprint
from .frozen import moved_tensors
from .model import attach, lora_names, lora_weights, named_adapters
from .peft import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    open_tensors,
    read_adapter,
    settings_of,
    tensors_of,
    warn_of_peft,
    write_config,
    write_tensors,
)
from .settings import is_number
from .targets import listed
from .weight import adaptable_weights

log = logging.getLogger(__name__)


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    name: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the LoRA weights of ``model`` to ``folder``; a few kilobytes, without the base.

    The adapter is written as trained, whether or not it is enabled and whatever its scale.

    Args:
        model: network whose layers carry LoRA (see :func:`.model.add_lora`).
        folder: made if need be, and returned; an adapter already in it is replaced.
        name: which adapter, where ``model`` carries several.
        metadata: more for the file's metadata, beside ``base_sha256``.

    Raises:
        ValueError: if no layer carries LoRA, no adapter has this name, there are several and none
            was named, or the base moved since it was given its adapter: nobody could load that.
        OSError: if the folder cannot be written.
    """
    folder = Path(folder)
    adapters = named_adapters(model, name)
    names = lora_names(model)
    if name is None and len(names) > 1:
        raise ValueError(f"name=None: expected one of the model's adapters: {', '.join(names)}")
    if moved := moved_tensors(model):
        raise ValueError(
            f"the base changed under its adapter: {listed(moved, most=3)}; expected it as it was "
            "at add_lora (freeze_base(model) makes this the base)"
        )
    if any(adapter.scale != 1 for adapter in adapters):
        log.warning("the adapter is saved as trained, without its scale")
    tensors: dict[str, Tensor] = {}
    settings = {}
    weights = lora_weights(model)
    for layer, weight in weights.items():
        for adapter in weight.adapters:
            if name in (None, adapter.name):
                settings[layer] = settings_of(adapter)
                tensors |= tensors_of(layer, weight, adapter)
    sha256 = fingerprint(base_state_dict(model))
    with atomic_write(folder / WEIGHTS_NAME) as path:
        write_tensors(path, tensors, {"format": "pt", "base_sha256": sha256, **(metadata or {})})
    with atomic_write(folder / CONFIG_NAME) as path:
        write_config(path, model, settings)
    warn_of_peft(model, settings, weights)
    return folder


def load_adapter(
    model: nn.Module,
    folder: str | Path,
    allow_other_base: bool = False,
    name: str | None = None,
    scale: float = 1.0,
) -> nn.Module:
    """Put the adapter in ``folder`` on ``model``, which must be the base it was trained on.

    The folder may come from a stranger: nothing in it is run as code.

    Args:
        model: the base; changed in place, and returned, its own parameters frozen. On a model that
            carries LoRA already the adapter is stacked.
        folder: what :func:`save_adapter` or ``peft`` wrote.
        allow_other_base: accept a base with another fingerprint, as long as the shapes fit.
        name: tells the adapter from others on ``model``; see :func:`.model.add_lora`.
        scale: how much of the adapter to apply; see :func:`.model.set_lora_scale`.

    Raises:
        ValueError: if ``scale`` or ``name`` cannot be used, or the files are missing or damaged,
            ask for what LoRA here does not do, do not fit the layers of ``model``, or were made for
            another base. ``model`` is then as it was.
    """
    weights = adaptable_weights(model)
    try:
        if not is_number(scale):
            raise ValueError(f"scale={scale}: expected a finite number")
        parts, settings, metadata = read_adapter(Path(folder))
        for layer, of_layer in parts.items():
            wanted = settings[layer]
            if layer not in weights or (wanted and weights[layer].base.ndim < 2):
                raise ValueError(
                    f"unexpected tensors of {layer} in {WEIGHTS_NAME}: the model has no such layer "
                    "that can be adapted"
                )
            base = weights[layer].base
            shape = tuple(base.shape)
            if wanted:
                ones = [1] * (base.ndim - 2)
                expected = {"lora_A": (wanted.rank, *shape[1:])}
                expected["lora_B"] = (shape[0], wanted.rank, *ones)
                if wanted.use_dora:
                    expected["magnitude"] = shape[:1]
            else:
                expected = {"delta" if "delta" in of_layer else "trained": shape}
            shapes = {part: tuple(tensor.shape) for part, tensor in of_layer.items()}
            if shapes != expected:
                raise ValueError(f"{layer}: expected the shapes {expected}, found {shapes}")
            for part, tensor in of_layer.items():
                is_float = tensor.is_floating_point()
                if not is_float or not tensor.to(base.dtype).isfinite().all():
                    raise ValueError(f"{part} of {layer}: expected finite floating-point numbers")
            if "trained" in of_layer:
                of_layer["delta"] = of_layer.pop("trained").to(base) - base.detach()
        made_for = metadata.get("base_sha256")
        if made_for is None:
            log.warning("the adapter does not say which base it was made for: not checked")
        elif not allow_other_base and made_for != (here := fingerprint(base_state_dict(model))):
            dataset = f" on {metadata['dataset']}" if "dataset" in metadata else ""
            raise ValueError(
                f"made for the base {made_for}{dataset}, this one is {here}; "
                "expected the same base, or allow_other_base=true"
            )
        adapters = attach(model, settings, name)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    for layer, adapter in adapters.items():
        adapter.load_state_dict(parts[layer])
        adapter.scale = scale
    return model


def adapter_sha256(folder: str | Path) -> str:
    """SHA-256, in hexadecimal, of the weights file of the adapter in ``folder``.

    Raises:
        OSError: if there is no such file.
    """
    with (Path(folder) / WEIGHTS_NAME).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_beneath(folder: str | Path) -> list[tuple[str, float]]:
    """What the adapter in ``folder`` stands on: file SHA-256 and scale of each adapter beneath it.

    The first is the lowest; empty for an adapter that was trained on its base alone.

    Raises:
        ValueError: if the folder holds no readable adapter, or what it says is no such list.
    """
    text = read_metadata(folder).get("stands_on", "[]")
    try:
        found = [(str(each["sha256"]), each["scale"]) for each in json.loads(text)]
        if not all(is_number(scale) for _, scale in found):
            raise ValueError("expected numbers")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder}: stands_on: {error}") from error
    return found


def read_metadata(folder: str | Path) -> dict[str, str]:
    """What the file of the adapter in ``folder`` says beside its tensors, of which none is read.

    ``base_sha256`` is the fingerprint of the base that it was made for; PEFT's adapters do not say.

    Raises:
        ValueError: if the folder holds no readable adapter.
    """
    try:
        with open_tensors(Path(folder)) as file:
            metadata: dict[str, str] = file.metadata() or {}
            return metadata
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
