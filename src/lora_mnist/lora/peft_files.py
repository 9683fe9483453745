"""An adapter's two files, LoRA and offset together, and the adapter that they describe.

PEFT computes from them the network's outputs at its point. The trained adapter is read from the
metadata, and from tensors ``trained.<name>`` where they differ from PEFT's. A stranger may have
written the files: they are accepted only if saving their adapter again gives the same files.
"""

from collections.abc import Mapping
from typing import Any

import torch

from .layer import Adapter, LoRAParametrization
from .offset import Offset
from .peft_lora import CONFIG_NAME, WEIGHTS_NAME, AdapterFiles, build_lora_files, read_loras
from .peft_offset import build_offset_files, make_zeros, read_offset
from .point import TRAINED, Point
from .weight import Weight

#: The metadata and their types; ``float`` is any number. ``trained`` is the config; ``layer`` and
#: ``most`` are an offset's. The caller may add others.
METADATA: dict[str, Any] = {"base_sha256": str, "scale": float, "offset": float, "trained": dict}
METADATA |= {"layer": str | None, "most": float}
#: PEFT's options that do not change a finished adapter's outputs, or follow from its tensors.
_HARMLESS = """
task_type auto_mapping peft_version revision base_model_name_or_path inference_mode lora_dropout
megatron_core qalora_group_size eva_config bias exclude_modules
"""
#: The accepted starts; with others PEFT changes the base itself.
_INITS = (True, "gaussian", "eva", "orthogonal")


def build_files(adapters: Mapping[str, Adapter], weights: Mapping[str, Weight]) -> AdapterFiles:
    """Return the files' content for the adapters of one network, by the names of their tensors."""
    loras: dict[str, LoRAParametrization] = {}
    offset: tuple[str, Offset] | None = None
    for name, adapter in sorted(adapters.items()):
        if isinstance(adapter, LoRAParametrization):
            loras[name] = adapter
        elif isinstance(adapter, Offset):
            if offset is not None:
                raise ValueError(f"{offset[0]} and {name} carry an offset; expected one")
            offset = name, adapter
    if offset is None:
        return build_lora_files(loras, weights)
    for_peft = loras or make_zeros(*offset, weights)
    files = build_lora_files(for_peft, weights)
    if not loras:
        files.metadata["trained"] = {}
    kind = type(next(iter(for_peft.values())))
    of_offset = build_offset_files(*offset, weights, files, kind)
    return AdapterFiles(*(both | its for both, its in zip(files, of_offset, strict=True)))


def read_adapters(files: AdapterFiles, weights: Mapping[str, Weight]) -> dict[str, Adapter]:
    """Return the adapters that the files describe, at their point, by their tensors' names."""
    tensors, config, metadata = files
    for key, tensor in tensors.items():
        is_usable = tensor.ndim > 0 and tensor.is_floating_point()
        if not (is_usable and tensor.float().isfinite().all()):
            raise ValueError(f"{key}: expected finite numbers")
    # PEFT's adapters have no metadata: their config has them as trained.
    trained, adapters = metadata.get("trained", config), dict[str, Adapter]()
    if trained or metadata.get("layer") is None:  # else it is an offset alone
        adapters = read_loras(tensors, trained, weights)
    point, about = TRAINED, {}
    if metadata:
        adapters |= read_offset(tensors, metadata, weights)
        point = Point(float(metadata["scale"]), float(metadata["offset"]))
        about = {key: value for key, value in metadata.items() if key not in METADATA}
    for name, adapter in adapters.items():
        adapter.to(weights[name].original)
        adapter.point, adapter.metadata = point, about
    _require_same(files, build_files(adapters, weights))
    return adapters


def _require_same(files: AdapterFiles, again: AdapterFiles) -> None:
    """Raise ValueError if the files differ from those written ``again`` from their adapters."""
    tensors, config, metadata = files
    for key in sorted(tensors.keys() ^ again.tensors.keys()):
        why = "belongs to no layer that can be adapted here" if key in tensors else "is missing"
        raise ValueError(f"{WEIGHTS_NAME}: {key} {why}")
    for key, tensor in again.tensors.items():
        expected, said = tensor.float().cpu(), tensors[key].float().cpu()
        if expected.shape != said.shape or not torch.allclose(expected, said, 1e-2, 1e-6):
            raise ValueError(f"{WEIGHTS_NAME}: {key} is not what the metadata ask for")
    for key, value in again.config.items() if metadata else ():
        if config.get(key) != value:
            here = f"{key}={config.get(key)} in {CONFIG_NAME}"
            raise ValueError(f"{here}: expected {value}, as {WEIGHTS_NAME} says")
    for key, value in config.items():
        is_known = key in again.config or key in _HARMLESS.split()
        is_start = key == "init_lora_weights" and value in _INITS
        if value and not is_known and not is_start:
            raise ValueError(f"{key}={value} is not supported; expected False")
