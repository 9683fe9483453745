"""What PEFT's two files say of adapters, and the adapters that files say.

PEFT computes from them what the network does at its point. The adapter as trained is read here from
the metadata, and from tensors ``trained.<name>`` where PEFT's are others.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .errors import check_types
from .layer import Adapter, LoRAParametrization, scaling_divisor
from .model import KINDS
from .offset import Offset
from .point import TRAINED, Point
from .target_modules import by_pattern, is_named, listed
from .weight import Weight

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_START, _TRAINED, _DIRECTION = "base_model.model.", "trained.", "offset.direction"
#: The types of what is read, where ``float`` is any number: a stranger may have written the files.
#: ``trained`` is the config; ``layer`` and ``most`` are an offset's. The caller may add others.
METADATA: dict[str, Any] = {"base_sha256": str, "scale": float, "offset": float, "trained": dict}
METADATA |= {"layer": str | None, "most": float}
_CONFIG: dict[str, Any] = {"target_modules": str | list, "exclude_modules": str | list | None}
_CONFIG |= {"lora_alpha": float, "alpha_pattern": dict | None, "use_rslora": bool | None}
#: PEFT's options that do not change what a finished adapter computes, or that its tensors show.
_HARMLESS = """
task_type auto_mapping peft_version revision base_model_name_or_path inference_mode lora_dropout
megatron_core qalora_group_size eva_config bias exclude_modules
"""
#: With others an adapter fits only the base that they changed.
_INITS = (True, "gaussian", "eva", "orthogonal")


class AdapterFiles(NamedTuple):
    """The content of an adapter's two files, or what LoRA or an offset gives to it."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    metadata: dict[str, Any]


def files_of(adapters: Mapping[str, Adapter], weights: Mapping[str, Weight]) -> AdapterFiles:
    """What the files say of the adapters of one network, by the names of their tensors."""
    loras, offsets = {}, {}
    for name, adapter in sorted(adapters.items()):
        if isinstance(adapter, LoRAParametrization):
            loras[name] = adapter
        elif isinstance(adapter, Offset):
            offsets[name] = adapter
    if loras:
        files = _files_of_loras(loras, weights)
    else:
        loras = _zeros_for(offsets, weights)
        files = _files_of_loras(loras, weights)
        files.metadata["trained"] = {}
    kind = type(next(iter(loras.values())))
    for name, offset in offsets.items():
        own = _files_of_offset(name, offset, weights, files, kind)
        files = AdapterFiles(*(both | its for both, its in zip(files, own, strict=True)))
    return files


def adapters_of(files: AdapterFiles, weights: Mapping[str, Weight]) -> dict[str, Adapter]:
    """The adapters that the files say, at their point, by the names of their tensors."""
    tensors, config, metadata = files
    for key, tensor in tensors.items():
        is_usable = tensor.ndim > 0 and tensor.is_floating_point()
        if not (is_usable and tensor.float().isfinite().all()):
            raise ValueError(f"{key}: expected finite numbers")
    # PEFT's adapters have no metadata: their config has them as trained.
    trained, adapters = metadata.get("trained", config), dict[str, Adapter]()
    if trained or metadata.get("layer") is None:  # else it is an offset alone
        adapters = _loras_in(tensors, trained, weights)
    point, about = TRAINED, {}
    if metadata:
        adapters |= _offset_in(tensors, metadata, weights)
        point = Point(float(metadata["scale"]), float(metadata["offset"]))
        about = {key: value for key, value in metadata.items() if key not in METADATA}
    for name, adapter in adapters.items():
        adapter.to(weights[name].original)
        adapter.point, adapter.metadata = point, about
    # What a file says has to be there, whoever wrote it, and nothing else.
    _require_same(files, files_of(adapters, weights))
    return adapters


# --- LoRA -----------------------------------------------------------------------------------------


def _files_of_loras(
    loras: Mapping[str, LoRAParametrization], weights: Mapping[str, Weight]
) -> AdapterFiles:
    """What LoRA on these weights says: as PEFT reads it, at its scale, and as it was trained."""
    first = next(iter(loras.values()))
    if any(adapter.config != first.config for adapter in loras.values()):
        raise ValueError("the layers have several kinds of adapters; expected one")
    point, use_rslora = first.point, all(adapter.use_rslora for adapter in loras.values())
    tensors, ranks, alphas = {}, {}, {}
    for name, adapter in loras.items():
        base, names = weights[name].original.detach(), adapter.names(weights[name].module)
        at_scale, as_trained = adapter.saved(base, point.scale), adapter.saved(base, 1.0)
        if lost := dict(adapter.named_parameters()).keys() - names.keys():
            raise ValueError(f"{name}: {type(adapter).__name__} does not save {', '.join(lost)}")
        for part, end in names.items():
            key = f"{_START}{name}.{end}"
            tensors[key] = _in_file(at_scale[part], end)
            if not torch.equal(at_scale[part], as_trained[part]):
                tensors[_TRAINED + key] = _in_file(as_trained[part], end)
        rank = len(as_trained[next(iter(names))])  # PiSSA has twice its own, at the same scaling
        divisor = scaling_divisor(adapter.rank, adapter.use_rslora)
        ranks[f"^{name}"] = rank  # with ^ PEFT takes a name for one layer's alone
        alphas[f"^{name}"] = adapter.alpha * (scaling_divisor(rank, use_rslora) / divisor)
    trained = {
        **first.config,
        "r": min(ranks.values()),
        "lora_alpha": min(alphas.values()),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "use_rslora": use_rslora,
        "target_modules": "|".join(map(re.escape, loras)),
    }
    factor = point.scale or 1.0  # at 0 the tensors change nothing
    pattern = {key: alpha * factor for key, alpha in alphas.items()}
    config = trained | {"lora_alpha": min(alphas.values()) * factor, "alpha_pattern": pattern}
    metadata = {knob: float(number) for knob, number in point._asdict().items()}
    return AdapterFiles(
        tensors, config, metadata | {"trained": trained, "layer": None, "most": 0.0}
    )


def _loras_in(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], weights: Mapping[str, Weight]
) -> dict[str, Adapter]:
    """LoRA as it was trained, on each layer that the config names."""
    check_types(config, _CONFIG)
    kinds = [kind for kind in KINDS.values() if kind.config.items() <= config.items()]
    if not kinds:
        raise ValueError(f"{CONFIG_NAME}: expected peft_type LORA")
    kind, targets = max(kinds, key=lambda each: len(each.config)), config["target_modules"]
    layers = {}
    for name, weight in weights.items():
        can_be_adapted = weight.original.ndim > 1 and kind.names(weight.module)
        is_left_out = is_named(name, config.get("exclude_modules") or [])
        if can_be_adapted and is_named(name, targets) and not is_left_out:
            layers[name] = weight
    if not layers:
        raise ValueError(f"target_modules={targets}: expected some of: {listed(weights)}")
    pattern = config.get("alpha_pattern")
    alphas = by_pattern("alpha_pattern", pattern, layers, config["lora_alpha"])
    loras: dict[str, Adapter] = {}
    for name, weight in layers.items():
        saved = {}
        for part, end in kind.names(weight.module).items():
            key = f"{_START}{name}.{end}"
            if key not in tensors:
                raise ValueError(f"{WEIGHTS_NAME}: {key} is missing")
            saved[part] = _in_file(tensors.get(_TRAINED + key, tensors[key]), end)
        rank = len(next(iter(saved.values())))
        meta = weight.original.detach().to("meta")  # no random number is drawn
        loras[name] = kind(meta, rank, alphas[name], use_rslora=config.get("use_rslora") or False)
        try:
            loras[name].load_state_dict(saved, assign=True)
        except RuntimeError as error:  # of other shapes
            raise ValueError(f"{name}: {' '.join(str(error).split())}") from error
    return loras


def _zeros_for(
    offsets: Mapping[str, Adapter], weights: Mapping[str, Weight]
) -> dict[str, LoRAParametrization]:
    """LoRA of zeros on the layer of an offset alone, since PEFT has no offset without LoRA."""
    name, offset = next(iter(offsets.items()))
    layer = name.removesuffix("bias").removesuffix(".")
    weight = weights[layer].original.detach()
    zeros = LoRAParametrization(weight.to("meta"))
    rows, columns = weight.shape
    saved = {"lora_A": weight.new_zeros(1, columns), "lora_B": weight.new_zeros(rows, 1)}
    zeros.load_state_dict(saved, assign=True)
    zeros.point = offset.point
    return {layer: zeros}


def _in_file(tensor: Tensor, end: str) -> Tensor:
    """The factors of an embedding, which looks rows up, are transposed in files; and back."""
    return tensor.t() if "embedding" in end else tensor


# --- an offset ------------------------------------------------------------------------------------


def _files_of_offset(
    name: str,
    offset: Offset,
    weights: Mapping[str, Weight],
    lora: AdapterFiles,
    kind: type[LoRAParametrization],
) -> AdapterFiles:
    """What an offset on the bias ``name`` says beside LoRA of this kind, whose files are there."""
    layer = name.removesuffix("bias").removesuffix(".")
    tensors, config = {_DIRECTION: offset.direction}, dict[str, Any]()
    files = AdapterFiles(tensors, config, {"layer": layer, "most": offset.most})
    if not offset.point.offset:
        return files
    moved, start = offset.point.offset * offset.direction, f"{_START}{layer}."
    is_adapted = f"^{layer}" in lora.config["rank_pattern"]
    if not kind.has_bias_in_peft:  # PEFT reads the base's bias, with the offset
        config["bias"] = "lora_only"
        place = "base_layer.bias" if is_adapted else "bias"
        tensors[start + place] = weights[name].original.detach() + moved
        return files
    rank = lora.config["rank_pattern"].get(f"^{layer}", lora.config["r"])
    if not is_adapted:  # LoRA of zeros, for PEFT to have a place for its bias
        weight = weights[layer].original
        config["target_modules"] = f"{lora.config['target_modules']}|{re.escape(layer)}"
        tensors[f"{start}lora_A.weight"] = weight.new_zeros(rank, weight.shape[1])
        tensors[f"{start}lora_B.weight"] = weight.new_zeros(len(weight), rank)
    # PEFT has lora_bias for all layers or for none, so every other layer gets zeros.
    config["lora_bias"] = True
    for key, factor in (lora.tensors | tensors).items():
        if key.startswith(_START) and key.endswith("lora_B.weight"):
            tensors[f"{key.removesuffix('weight')}bias"] = moved.new_zeros(len(factor))
    alpha = lora.config["alpha_pattern"].get(f"^{layer}", lora.config["lora_alpha"])
    scaling = alpha / scaling_divisor(rank, lora.config["use_rslora"])  # PEFT multiplies by it
    tensors[f"{start}lora_B.bias"] = moved / scaling
    return files


def _offset_in(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], weights: Mapping[str, Weight]
) -> dict[str, Adapter]:
    """The offset that the metadata name, if any."""
    layer, direction = metadata.get("layer"), tensors.get(_DIRECTION)
    if layer is None:
        return {}
    name = f"{layer}.bias".removeprefix(".")
    is_bias = name in weights and isinstance(weights[name].module, nn.Linear)
    if not is_bias or direction is None or direction.shape != weights[name].original.shape:
        raise ValueError(f"layer={layer}: expected one with a bias of the size of its offset")
    return {name: Offset(direction, metadata["most"])}


# --- what files say, and no more ------------------------------------------------------------------


def _require_same(files: AdapterFiles, again: AdapterFiles) -> None:
    """ValueError, unless files say what those do that were made ``again`` of their adapters."""
    tensors, config, metadata = files
    for key in tensors.keys() ^ again.tensors.keys():
        said = "belongs to no layer that can be adapted here" if key in tensors else "is missing"
        raise ValueError(f"{WEIGHTS_NAME}: {key} {said}")
    for key, tensor in again.tensors.items():
        own, its = tensor.float().cpu(), tensors[key].float().cpu()
        if own.shape != its.shape or not torch.allclose(own, its, 1e-2, 1e-6):
            raise ValueError(f"{WEIGHTS_NAME}: {key} is not what the metadata ask for")
    for key, value in again.config.items() if metadata else ():
        if config.get(key) != value:
            said = f"{key}={config.get(key)} in {CONFIG_NAME}"
            raise ValueError(f"{said}: expected {value}, as {WEIGHTS_NAME} says")
    for key, value in config.items():
        is_known = key in again.config or key in _HARMLESS.split()
        is_start = key == "init_lora_weights" and value in _INITS
        if value and not is_known and not is_start:
            raise ValueError(f"{key}={value} is not supported; expected False")
