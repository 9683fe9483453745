"""An offset in PEFT's two files, and the offset that these files describe.

PEFT has no offset: it is saved as LoRA's bias or, for a kind without one, in the base's bias.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .layer import Adapter, LoRAParametrization, scaling_divisor
from .offset import Offset, bias_name, layer_name
from .peft_lora import START, AdapterFiles
from .weight import Weight

_DIRECTION = "offset.direction"


def make_zeros(
    name: str, offset: Offset, weights: Mapping[str, Weight]
) -> dict[str, LoRAParametrization]:
    """Return LoRA of zeros on an offset's layer, since PEFT has no offset without LoRA."""
    layer = layer_name(name)
    weight = weights[layer].original.detach()
    zeros = LoRAParametrization(weight.to("meta"))
    rows, columns = weight.shape
    saved = {"lora_A": weight.new_zeros(1, columns), "lora_B": weight.new_zeros(rows, 1)}
    zeros.load_state_dict(saved, assign=True)
    zeros.point = offset.point
    return {layer: zeros}


def build_offset_files(
    name: str,
    offset: Offset,
    weights: Mapping[str, Weight],
    lora: AdapterFiles,
    kind: type[LoRAParametrization],
) -> AdapterFiles:
    """Return the content for an offset on the bias ``name``, beside LoRA of this kind."""
    layer = layer_name(name)
    tensors, config = {_DIRECTION: offset.direction}, dict[str, Any]()
    files = AdapterFiles(tensors, config, {"layer": layer, "most": offset.most})
    if not offset.point.offset:
        return files
    moved, start = offset.point.offset * offset.direction, f"{START}{layer}."
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
        if key.startswith(START) and key.endswith("lora_B.weight"):
            tensors[f"{key.removesuffix('weight')}bias"] = moved.new_zeros(len(factor))
    alpha = lora.config["alpha_pattern"].get(f"^{layer}", lora.config["lora_alpha"])
    scaling = alpha / scaling_divisor(rank, lora.config["use_rslora"])  # PEFT multiplies by it
    tensors[f"{start}lora_B.bias"] = moved / scaling
    return files


def read_offset(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], weights: Mapping[str, Weight]
) -> dict[str, Adapter]:
    """Return the offset that the metadata describes, if any, by the name of its bias."""
    layer, direction = metadata.get("layer"), tensors.get(_DIRECTION)
    if layer is None:
        return {}
    name = bias_name(layer)
    is_bias = name in weights and isinstance(weights[name].module, nn.Linear)
    if not is_bias or direction is None or direction.shape != weights[name].original.shape:
        raise ValueError(f"layer={layer}: expected one with a bias of the size of its offset")
    return {name: Offset(direction, metadata["most"])}
