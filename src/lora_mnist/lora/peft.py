"""PEFT's two files: ``adapter_config.json``, and ``adapter_model.safetensors`` beside it.

A tensor is called ``base_model.model.<layer>.lora_A.weight``, shape (rank, in_features), or
``...lora_B.weight``, shape (out_features, rank); those of other layers have the shapes of
:class:`.layer.LoRAParametrization`.

An option of PEFT's that is switched on, and that has no counterpart here, is refused by its name.
"""

import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .layer import LoRAParametrization, scaling_divisor
from .targets import by_pattern, listed
from .weight import Weight

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
#: The one key of the file's metadata, a JSON text: safetensors writes several in a random order.
METADATA_KEY = "lora_mnist"

# The ends of PEFT's keys, and their names here. An embedding looks its rows up: PEFT's A and B are
# lora_B^T and lora_A^T.
_PARTS = {
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora_embedding_A": "lora_B",
    "lora_embedding_B": "lora_A",
}
_KEY = re.compile(rf"base_model\.model\.(.*)\.({'|'.join(_PARTS)})")
# Options that are read here, and those that do not change what a finished adapter computes.
_KNOWN = """
peft_type r lora_alpha use_rslora rank_pattern alpha_pattern target_modules exclude_modules
init_lora_weights task_type auto_mapping peft_version revision base_model_name_or_path
inference_mode lora_dropout megatron_core qalora_group_size eva_config
"""
# These initialisations leave the base as it is. With any other, the adapter fits only the base that
# it changed.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")

Adapters = Mapping[str, tuple[Weight, LoRAParametrization]]  # one on each weight, by its name


def tensors_of(adapters: Adapters) -> dict[str, Tensor]:
    """The tensors of an adapter as trained, as PEFT names and shapes them."""
    tensors: dict[str, Tensor] = {}
    for name, (weight, adapter) in adapters.items():
        start = f"base_model.model.{name}"
        lora_A, lora_B = adapter.factors()
        if isinstance(weight.module, nn.Embedding):
            tensors[f"{start}.lora_embedding_A"] = lora_B.t()
            tensors[f"{start}.lora_embedding_B"] = lora_A.t()
        else:
            tensors[f"{start}.lora_A.weight"] = lora_A
            tensors[f"{start}.lora_B.weight"] = lora_B
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


def config_of(adapters: Adapters) -> dict[str, Any]:
    """The ``adapter_config.json`` of an adapter at its scale, which is a factor of each alpha."""
    ranks = {}
    for name, (_, adapter) in adapters.items():  # with ^ PEFT takes a name for one layer's alone
        ranks[f"^{name}"] = len(adapter.factors()[0])  # PiSSA has twice its own rank
    rank = next(iter(ranks.values()))
    _, first = next(iter(adapters.values()))
    return {
        "peft_type": "LORA",
        "r": rank,
        **alphas_of(adapters, first.scale),
        "rank_pattern": {key: each for key, each in ranks.items() if each != rank},
        "use_rslora": all(adapter.use_rslora for _, adapter in adapters.values()),
        "lora_dropout": max(adapter.dropout for _, adapter in adapters.values()),
        "target_modules": "|".join(map(re.escape, adapters)),
    }


def alphas_of(adapters: Adapters, scale: float = 1.0) -> dict[str, Any]:
    """``lora_alpha`` and ``alpha_pattern`` of an adapter at a scale; at 1 they are as trained."""
    alphas = {}
    use_rslora = all(adapter.use_rslora for _, adapter in adapters.values())
    for name, (_, adapter) in adapters.items():
        rank = len(adapter.factors()[0])  # PiSSA has twice its own rank, at the same scaling
        divisor = scaling_divisor(adapter.rank, adapter.use_rslora)
        alpha = adapter.alpha * (scaling_divisor(rank, use_rslora) / divisor)
        alphas[f"^{name}"] = alpha * scale
    alpha = next(iter(alphas.values()))
    others = {key: each for key, each in alphas.items() if each != alpha}
    return {"lora_alpha": alpha, "alpha_pattern": others}


def warn_of_peft(model: nn.Module, adapters: Adapters) -> None:
    """Warn of an adapter that PEFT would ignore, or compute otherwise, without a word."""
    every = [module for _, module in model.named_modules(remove_duplicate=False)]
    layers = []
    for name, (weight, _) in adapters.items():
        module: Any = weight.module
        is_attention = isinstance(module, NonDynamicallyQuantizableLinear)
        is_usual = weight.tensor == "weight" and not is_attention
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):  # PEFT's know neither of these
            is_usual = set(module.dilation) == {1} and module.padding_mode == "zeros"
        if not is_usual or every.count(module) > 1:  # PEFT takes the first of two names
            layers.append(name)
    if layers:
        warnings.warn(
            f"PEFT has no adapter of this form for {listed(layers)}: use the saved adapter here",
            stacklevel=3,
        )


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """The metadata of the adapter in ``folder``, empty of PEFT's; no tensor is read."""
    try:
        with safe_open(Path(folder, WEIGHTS_NAME), framework="pt") as file:
            return dict(json.loads((file.metadata() or {}).get(METADATA_KEY, "{}")))
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: expected a readable {WEIGHTS_NAME} ({error})") from error


def read_adapter(folder: str | Path, metadata: Mapping[str, Any]) -> dict[str, LoRAParametrization]:
    """The adapter of each layer, by its name, at the scale that it was saved with."""
    try:
        config = json.loads(Path(folder, CONFIG_NAME).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"expected a readable {CONFIG_NAME} in it ({error})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"expected peft_type LORA in {CONFIG_NAME}")
    for key, value in config.items():
        if key not in _KNOWN.split() and value and (key, value) != ("bias", "none"):
            raise ValueError(f"{key}={value} is not supported; expected False")
    if (init := config.get("init_lora_weights")) not in _INITS:
        raise ValueError(
            f"init_lora_weights={init} is not supported: such an adapter belongs to a base that "
            "it changed; expected one that PEFT converted to plain LoRA when saving it"
        )
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(Path(folder, WEIGHTS_NAME)).items():
        factor = _KEY.fullmatch(key)
        if factor is None:
            raise ValueError(f"unexpected tensor {key} in {WEIGHTS_NAME}")
        layer, end = factor.groups()
        parts.setdefault(layer, {})[_PARTS[end]] = tensor.t() if "embedding" in end else tensor
    if not parts:
        raise ValueError(f"{WEIGHTS_NAME} holds no tensor")
    # Of PEFT's adapters the config is all that is known: they are as trained.
    scale, trained = metadata.get("scale", 1.0), metadata.get("trained", config)
    if not isinstance(scale, int | float) or not math.isfinite(scale):
        raise ValueError(f"scale={scale} in {WEIGHTS_NAME}: expected a finite number")
    if not isinstance(trained, dict):
        raise ValueError(f"trained={trained} in {WEIGHTS_NAME}: expected lora_alpha")
    alphas, scaled = (
        by_pattern("alpha_pattern", each.get("alpha_pattern"), parts, each.get("lora_alpha"))
        for each in (trained, config)
    )
    adapters = {}
    for layer, factors in parts.items():
        for part in ("lora_A", "lora_B"):
            if part not in factors or factors[part].ndim < 2:
                raise ValueError(f"{part} of {layer}: expected a matrix in {WEIGHTS_NAME}")
        lora_A, lora_B = factors["lora_A"], factors["lora_B"]
        with torch.device("meta"):  # no random number is drawn
            weight = torch.empty(len(lora_B), *lora_A.shape[1:])
        use_rslora = config.get("use_rslora") or False
        adapter = LoRAParametrization(weight, len(lora_A), alphas[layer], use_rslora=use_rslora)
        if scaled[layer] != adapter.alpha * scale:
            raise ValueError(
                f"lora_alpha={scaled[layer]} of {layer} in {CONFIG_NAME}: expected "
                f"{adapter.alpha * scale}, as {WEIGHTS_NAME} says"
            )
        adapter.lora_A, adapter.lora_B = nn.Parameter(lora_A), nn.Parameter(lora_B)
        adapter.scale = float(scale)
        adapters[layer] = adapter
    return adapters
