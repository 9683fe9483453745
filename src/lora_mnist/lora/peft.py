"""PEFT's two files: ``adapter_config.json``, and ``adapter_model.safetensors`` beside it.

A tensor is called ``base_model.model.<layer>.lora_A.weight``, shape (rank, in_features), or
``...lora_B.weight``, shape (out_features, rank); those of other layers have the shapes of
:class:`.layer.LoRAParametrization`. DoRA has ``...lora_magnitude_vector`` too. A tensor that is
trained whole goes by its own name, as ``W + delta``, and is there as ``delta`` too, which PEFT
passes over: the difference of the others would be rounded.

PEFT's LoRA can do more than what is here. An option that changes what a finished adapter computes,
and that has no counterpart here, is refused by its name; so is every option that this version does
not know, as long as it is switched on.
"""

import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .layer import AdapterParametrization, LoRAParametrization
from .settings import LayerSettings
from .targets import by_pattern, listed
from .variants import DeltaParametrization, DoRAParametrization, PiSSAParametrization
from .weight import Weight

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

# What the ends of PEFT's keys are called here. Its A of an embedding is what is looked up: its pair
# is (lora_B^T, lora_A^T).
_PARTS = {
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora_embedding_A": "lora_B",
    "lora_embedding_B": "lora_A",
    "lora_magnitude_vector": "magnitude",
}
_KEY = re.compile(rf"base_model\.model\.(.*)\.({'|'.join(_PARTS)})")
_WHOLE = re.compile(r"(delta|base_model\.model)\.(.+)")
# Options that are read here, and those that do not change what a finished adapter computes.
_KNOWN = """
peft_type r lora_alpha use_rslora rank_pattern alpha_pattern use_dora bias modules_to_save
target_modules exclude_modules init_lora_weights task_type auto_mapping peft_version revision
base_model_name_or_path inference_mode lora_dropout megatron_core qalora_group_size eva_config
"""
# Initialisations that leave the base as it was; the others belong to a changed base.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")

Adapters = Mapping[str, tuple[Weight, AdapterParametrization]]  # one on each weight, by its name


def tensors_of(adapters: Adapters) -> dict[str, Tensor]:
    """The tensors of an adapter, as PEFT names and shapes them."""
    tensors: dict[str, Tensor] = {}
    for name, (weight, adapter) in adapters.items():
        start = f"base_model.model.{name}"
        if isinstance(adapter, LoRAParametrization):
            _, lora_A, lora_B = as_lora(adapter)
            if isinstance(weight.module, nn.Embedding):
                tensors[f"{start}.lora_embedding_A"] = lora_B.t()
                tensors[f"{start}.lora_embedding_B"] = lora_A.t()
            else:
                tensors[f"{start}.lora_A.weight"] = lora_A
                tensors[f"{start}.lora_B.weight"] = lora_B
        if isinstance(adapter, DoRAParametrization):
            ones = [1] * (weight.base.ndim - 2)
            shape = (1, -1, *ones) if ones else (-1,)
            tensors[f"{start}.lora_magnitude_vector"] = adapter.magnitude.view(shape)
        if isinstance(adapter, DeltaParametrization):
            key = f"{name}.weight".removeprefix(".") if weight.tensor == "weight" else name
            tensors[f"delta.{key}"] = adapter.delta
            layer = name.rpartition(".")[0]
            if layer in adapters and isinstance(adapters[layer][1], LoRAParametrization):
                # PEFT puts a layer with LoRA into one of its own.
                key = f"{layer}.base_layer.{weight.tensor}"
            tensors[f"base_model.model.{key}"] = weight.base + adapter.delta
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


def as_lora(adapter: LoRAParametrization) -> tuple[LayerSettings, Tensor, Tensor]:
    """The settings, ``lora_A`` and ``lora_B`` with which an adapter fits the original base.

    PiSSA amounts to plain LoRA of twice the rank, ``[lora_B, -start_B] @ [lora_A; start_A]`` at the
    same scaling, which PEFT's conversion gives too.
    """
    settings = adapter.settings
    if not isinstance(adapter, PiSSAParametrization):
        return settings, adapter.lora_A, adapter.lora_B
    alpha = settings.alpha * (math.sqrt(2) if settings.use_rslora else 2)
    settings = replace(settings, rank=2 * settings.rank, alpha=alpha)
    lora_A = torch.cat([adapter.lora_A, adapter.start_A])
    lora_B = torch.cat([adapter.lora_B, -adapter.start_B], dim=1)
    return settings, lora_A, lora_B


def serialized(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file with its metadata in order, which safetensors writes in a random one.

    The file begins with the length of its header, eight bytes, and the header, which is JSON.
    """
    file = save(tensors, metadata)
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return file[:8] + text.ljust(end - 8) + file[end:]


def config_of(adapters: Adapters) -> dict[str, Any]:
    """What PEFT needs to know of an adapter.

    PEFT takes a name for that of every layer that ends so: as a regular expression, and with a
    leading ``^`` in a pattern, it is one layer's alone.
    """
    settings = {}
    for name, (_, adapter) in adapters.items():
        if isinstance(adapter, LoRAParametrization):
            settings[name], _, _ = as_lora(adapter)
    whole = [name for name in adapters if name not in settings]
    modules_to_save = [name for name in whole if adapters[name][0].tensor == "weight"]
    biased = {name.rpartition(".")[0] for name in whole if name not in modules_to_save}
    ranks = {f"^{name}": of_layer.rank for name, of_layer in settings.items()}
    alphas = {f"^{name}": of_layer.alpha for name, of_layer in settings.items()}
    any_layer = next(iter(settings.values()), LayerSettings())
    return {
        "peft_type": "LORA",
        "r": any_layer.rank,
        "lora_alpha": any_layer.alpha,
        "rank_pattern": {key: rank for key, rank in ranks.items() if rank != any_layer.rank},
        "alpha_pattern": {key: alpha for key, alpha in alphas.items() if alpha != any_layer.alpha},
        "use_rslora": any_layer.use_rslora,
        "lora_dropout": any_layer.dropout,
        # The last is PEFT's word for none.
        "target_modules": "|".join(map(re.escape, settings)) or "dummy-target-modules",
        "use_dora": any_layer.use_dora,
        "bias": "all" if biased.difference(modules_to_save) else "none",
        "modules_to_save": modules_to_save or None,
    }


def warn_of_peft(adapters: Adapters) -> None:
    """Warn of LoRA that PEFT would pass over, or compute otherwise, and say nothing.

    It passes over weights of other names, as does attention over its layer at ``out_proj``. Of a
    convolution's options it heeds neither dilation nor another padding than zeros.
    """
    unknown = []
    for name, ((module, tensor), adapter) in adapters.items():
        is_known = tensor == "weight" and not isinstance(module, NonDynamicallyQuantizableLinear)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            is_known = set(module.dilation) == {1} and module.padding_mode == "zeros"
        if isinstance(adapter, LoRAParametrization) and not is_known:
            unknown.append(name)
    if unknown:
        warnings.warn(
            f"PEFT has no adapter of this form for {listed(unknown)}: use the saved adapter here",
            stacklevel=3,
        )


def read_metadata(folder: str | Path) -> dict[str, str]:
    """What the file of the adapter in ``folder`` says beside its tensors, of which none is read.

    ``base_sha256`` is the fingerprint of the base that it was made for; PEFT's adapters do not say.
    ``ValueError`` if the file cannot be read.
    """
    try:
        with safe_open(Path(folder, WEIGHTS_NAME), framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder}: expected a readable {WEIGHTS_NAME} ({error})") from error


def read_adapter(
    folder: Path,
) -> tuple[dict[str, dict[str, Tensor]], dict[str, LayerSettings | None]]:
    """The parts and the settings of the adapter on each tensor.

    The parts are ``lora_A``, ``lora_B`` and, of DoRA, ``magnitude``. Of a tensor that is trained
    whole, whose settings are ``None``, they are ``delta``, or ``trained`` where the file comes from
    PEFT. ``ValueError`` if the files ask for what is not done here.
    """
    try:
        config = json.loads((folder / CONFIG_NAME).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"expected a readable {CONFIG_NAME} in it ({error})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"expected peft_type LORA in {CONFIG_NAME}")
    for key, value in config.items():
        if key not in _KNOWN.split() and value:
            raise ValueError(f"{key}={value} is not supported; expected False")
    if (init := config.get("init_lora_weights")) not in _INITS:
        raise ValueError(
            f"init_lora_weights={init} is not supported: such an adapter belongs to a base that "
            "it changed; expected one that PEFT converted to plain LoRA when saving it"
        )
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / WEIGHTS_NAME).items():
        if factor := _KEY.fullmatch(key):
            layer, end = factor.groups()
            part = _PARTS[end]
            if "embedding" in end:
                tensor = tensor.t()
            if part == "magnitude":
                tensor = tensor.flatten()
        elif whole := _WHOLE.fullmatch(key):
            part = "delta" if whole[1] == "delta" else "trained"
            layer = whole[2].replace(".base_layer.", ".")
            layer = f".{layer}".removesuffix(".weight").removeprefix(".")
        else:
            raise ValueError(f"unexpected tensor {key} in {WEIGHTS_NAME}")
        parts.setdefault(layer, {})[part] = tensor
    if not parts:
        raise ValueError(f"{WEIGHTS_NAME} holds no tensor")
    factored = []
    for layer, of_layer in parts.items():
        if "lora_A" in of_layer:
            factored.append(layer)
        if "delta" in of_layer:
            of_layer.pop("trained", None)
    alpha, pattern = config.get("lora_alpha"), config.get("alpha_pattern")
    alphas = by_pattern("alpha_pattern", pattern, factored, alpha)
    settings: dict[str, LayerSettings | None] = dict.fromkeys(parts)
    for layer in factored:
        settings[layer] = LayerSettings(
            rank=parts[layer]["lora_A"].shape[:1].numel(),  # of rank_pattern, no key is read
            alpha=alphas[layer],
            use_rslora=config.get("use_rslora") or False,
            use_dora=config.get("use_dora") or False,
        )
    return parts, settings


def read_factors(folder: Path) -> dict[str, tuple[Tensor, Tensor, float]]:
    """What plain LoRA in ``folder`` adds to each weight, as ``lora_A``, ``lora_B`` and scaling.

    DoRA, and tensors that are trained whole, have no such factors.
    """
    parts, settings = read_adapter(folder)
    factors = {}
    for layer, of_layer in sorted(settings.items()):
        if of_layer and not of_layer.use_dora:
            tensors = parts[layer]
            factors[layer] = (tensors["lora_A"], tensors["lora_B"], of_layer.scaling)
    return factors
