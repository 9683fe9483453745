"""LoRA in PEFT's two files, at its scale and as trained: written and read."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import check_types
from .layer import Adapter, LoRAParametrization, scaling_divisor
from .model import KINDS
from .target_modules import format_names, is_named, resolve_pattern
from .weight import Weight

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
#: The prefix of PEFT's tensors, and the prefix before it of a trained tensor that differs.
START, _TRAINED = "base_model.model.", "trained."
#: The keys that LoRA is read from, and their types; ``float`` is any number.
_CONFIG: dict[str, Any] = {"target_modules": str | list, "exclude_modules": str | list | None}
_CONFIG |= {"lora_alpha": float, "alpha_pattern": dict | None, "use_rslora": bool | None}


class AdapterFiles(NamedTuple):
    """The content of an adapter's two files, or the part of LoRA or of an offset."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    metadata: dict[str, Any]


def build_lora_files(
    loras: Mapping[str, LoRAParametrization], weights: Mapping[str, Weight]
) -> AdapterFiles:
    """Return the files' content for LoRA on these weights: at its scale, for PEFT, and trained."""
    first = next(iter(loras.values()))
    if any(adapter.config != first.config for adapter in loras.values()):
        raise ValueError("the layers have several kinds of adapters; expected one")
    point, use_rslora = first.point, all(adapter.use_rslora for adapter in loras.values())
    tensors, ranks, alphas = {}, {}, {}
    for name, adapter in loras.items():
        base, names = weights[name].original.detach(), adapter.peft_names(weights[name].module)
        at_scale, as_trained = (
            adapter.peft_tensors(base, point.scale),
            adapter.peft_tensors(base, 1.0),
        )
        if lost := dict(adapter.named_parameters()).keys() - names.keys():
            raise ValueError(f"{name}: {type(adapter).__name__} does not save {', '.join(lost)}")
        for part, end in names.items():
            key = f"{START}{name}.{end}"
            tensors[key] = _in_file(at_scale[part], end)
            if not torch.equal(at_scale[part], as_trained[part]):
                tensors[_TRAINED + key] = _in_file(as_trained[part], end)
        rank = len(as_trained[next(iter(names))])  # PiSSA has twice its own, at the same scaling
        divisor = scaling_divisor(adapter.rank, adapter.use_rslora)
        ranks[f"^{name}"] = rank  # with ^ PEFT matches the name of a single layer
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
    metadata = {point_field: float(number) for point_field, number in point._asdict().items()}
    return AdapterFiles(
        tensors, config, metadata | {"trained": trained, "layer": None, "most": 0.0}
    )


def read_loras(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], weights: Mapping[str, Weight]
) -> dict[str, Adapter]:
    """Return the trained LoRA of each layer that the config names."""
    check_types(config, _CONFIG)
    kinds = [kind for kind in KINDS.values() if kind.config.items() <= config.items()]
    if not kinds:
        raise ValueError(f"{CONFIG_NAME}: expected peft_type LORA")
    # PiSSA and the other starts are saved as plain LoRA, which is the first kind.
    kind, targets = max(kinds, key=lambda each: len(each.config)), config["target_modules"]
    layers = {}
    for name, weight in weights.items():
        can_be_adapted = weight.original.ndim > 1 and kind.peft_names(weight.module)
        is_excluded = is_named(name, config.get("exclude_modules") or [])
        if can_be_adapted and is_named(name, targets) and not is_excluded:
            layers[name] = weight
    if not layers:
        raise ValueError(f"target_modules={targets}: expected some of: {format_names(weights)}")
    pattern = config.get("alpha_pattern")
    alphas = resolve_pattern("alpha_pattern", pattern, layers, config["lora_alpha"])
    loras: dict[str, Adapter] = {}
    for name, weight in layers.items():
        saved = {}
        for part, end in kind.peft_names(weight.module).items():
            key = f"{START}{name}.{end}"
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


def _in_file(tensor: Tensor, end: str) -> Tensor:
    """Transpose the factors of an embedding for PEFT's files, or back."""
    return tensor.t() if "embedding" in end else tensor
