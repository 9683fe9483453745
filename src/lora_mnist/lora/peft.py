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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .layer import AdapterParametrization, LoRAParametrization
from .settings import LayerSettings
from .targets import by_pattern, is_among, listed
from .variants import DeltaParametrization, DoRAParametrization, PiSSAParametrization
from .weight import Weight

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

# The endings of the keys of lora_A and lora_B; PEFT's A of an embedding is what is looked up, and
# so its pair is (lora_B^T, lora_A^T).
_USUAL = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
_EMBEDDING = {"lora_A": "lora_embedding_B", "lora_B": "lora_embedding_A"}
_PARTS = {end: part for ends in (_USUAL, _EMBEDDING) for part, end in ends.items()}
_PARTS["lora_magnitude_vector"] = "magnitude"
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


def settings_of(adapter: AdapterParametrization) -> LayerSettings | None:
    """What PEFT needs to know of the adapter on one weight; ``None`` where that is trained whole.

    PiSSA amounts to plain LoRA of twice the rank, ``[lora_B, -start_B] @ [lora_A; start_A]`` at the
    same scaling, which PEFT's conversion gives too: so it fits the original base, here and in PEFT.
    """
    if not isinstance(adapter, LoRAParametrization):
        return None
    rank, alpha = adapter.rank, adapter.alpha
    if isinstance(adapter, PiSSAParametrization):
        rank, alpha = 2 * rank, alpha * (math.sqrt(2) if adapter.use_rslora else 2)
    return LayerSettings(
        rank,
        alpha,
        use_rslora=adapter.use_rslora,
        dropout=adapter.dropout,
        use_dora=isinstance(adapter, DoRAParametrization),
    )


def tensors_of(layer: str, weight: Weight, adapter: AdapterParametrization) -> dict[str, Tensor]:
    """The tensors of ``adapter`` on the weight called ``layer``, as PEFT names and shapes them."""
    tensors: dict[str, Tensor] = {}
    if isinstance(adapter, DeltaParametrization):
        key = f"{layer}.weight".removeprefix(".") if weight.tensor == "weight" else layer
        theirs = key
        for other in Weight(weight.module, "weight").adapters:
            if isinstance(other, LoRAParametrization) and other.name == adapter.name:
                # PEFT puts a layer with LoRA into one of its own.
                theirs = f"{key.removesuffix(weight.tensor)}base_layer.{weight.tensor}"
        tensors[f"base_model.model.{theirs}"] = weight.base + adapter.delta
        tensors[f"delta.{key}"] = adapter.delta
    if isinstance(adapter, LoRAParametrization):
        factors: dict[str, Tensor] = {"lora_A": adapter.lora_A, "lora_B": adapter.lora_B}
        if isinstance(adapter, PiSSAParametrization):
            factors["lora_A"] = torch.cat([adapter.lora_A, adapter.start_A])
            factors["lora_B"] = torch.cat([adapter.lora_B, -adapter.start_B], dim=1)
        is_embedding = isinstance(weight.module, nn.Embedding) and weight.tensor == "weight"
        for part, end in (_EMBEDDING if is_embedding else _USUAL).items():
            factor = factors[part].t() if is_embedding else factors[part]
            tensors[f"base_model.model.{layer}.{end}"] = factor
    if isinstance(adapter, DoRAParametrization):
        dimensions = weight.base.ndim
        shape = (1, -1, *[1] * (dimensions - 2)) if dimensions > 2 else (-1,)
        magnitude = adapter.magnitude.view(shape)
        tensors[f"base_model.model.{layer}.lora_magnitude_vector"] = magnitude
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, of the same bytes for the same tensors and metadata.

    safetensors writes metadata in random order. The file begins with the length of its header,
    eight bytes, and the header, which is JSON.
    """
    file = save(tensors, metadata)
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    path.write_bytes(file[:8] + text.ljust(end - 8) + file[end:])


def write_config(
    path: Path, model: nn.Module, all_settings: Mapping[str, LayerSettings | None]
) -> None:
    """Write to ``path`` what PEFT needs to know of the layers of ``model`` in ``all_settings``."""
    settings = {name: of_layer for name, of_layer in all_settings.items() if of_layer}
    layers = _layers(model)
    whole = [name for name in all_settings if name not in settings]
    modules_to_save = [name for name in whole if name in layers]
    has_biases = False
    for name in whole:
        layer = name.rpartition(".")[0]
        has_biases |= name not in modules_to_save and layer not in modules_to_save
    ranks, alphas = {}, {}
    for name, of_layer in settings.items():
        # A key fits every layer whose name ends in it, unless it is tied to the start.
        is_end = any(other.endswith(f".{name}") for other in settings)
        key = f"^{name}" if is_end else name
        ranks[key], alphas[key] = of_layer.rank, of_layer.alpha
    # The names, or a regular expression where PEFT would find more layers by the names' ends.
    target_modules: list[str] | str = list(settings)
    for layer in layers:
        if is_among(settings, [layer]) and layer not in settings:
            target_modules = "|".join(re.escape(name) for name in settings)
    if not settings:
        target_modules = "dummy-target-modules"  # PEFT's word for none
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": max(ranks.values(), default=1),
        "lora_alpha": max(alphas.values(), default=1.0),
        "rank_pattern": ranks if len(set(ranks.values())) > 1 else {},
        "alpha_pattern": alphas if len(set(alphas.values())) > 1 else {},
        "use_rslora": all(of_layer.use_rslora for of_layer in settings.values()),
        "lora_dropout": max((of_layer.dropout for of_layer in settings.values()), default=0.0),
        "target_modules": target_modules,
        "use_dora": any(of_layer.use_dora for of_layer in settings.values()),
        "bias": "all" if has_biases else "none",
        "modules_to_save": modules_to_save or None,
    }
    path.write_text(json.dumps(config, indent=2) + "\n")


def _layers(model: nn.Module) -> list[str]:
    names = [name for name, _ in model.named_modules()]
    return [name for name in names if "parametrizations" not in name.split(".")]


def warn_of_peft(
    model: nn.Module, settings: Mapping[str, LayerSettings | None], weights: Mapping[str, Weight]
) -> None:
    """Warn of the adapted ``weights`` that PEFT would leave alone, or compute otherwise.

    Its ``modules_to_save`` are all layers whose names end in the given one.
    Of a convolution's options it heeds stride and padding alone, and has another form for groups.
    For attention it has one adapter for the stacked weight and the output's together, and up to
    0.21 adds the output's update twice (PEFT's pull request 3774).
    """
    unknown = []
    for name, of_layer in settings.items():
        module, tensor = weights[name]
        if of_layer is None:
            alike = [layer for layer in _layers(model) if layer.endswith(name)]
            is_known = tensor != "weight" or alike == [name]
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            options = (module.groups, set(module.dilation), module.padding_mode)
            is_known = options == (1, {1}, "zeros")
        else:
            is_known = isinstance(module, nn.Linear | nn.Embedding) and tensor == "weight"
            is_known &= not isinstance(module, NonDynamicallyQuantizableLinear)
        if not is_known:
            unknown.append(name)
    if unknown:
        warnings.warn(
            f"PEFT has no adapter of this form for {listed(unknown)}: use the saved adapter here",
            stacklevel=3,
        )


@contextmanager
def open_tensors(folder: Path) -> Iterator[Any]:
    """The safetensors file of the adapter in ``folder``, none of its tensors read.

    Raises:
        ValueError: if the file cannot be opened, or what is read from it is damaged.
    """
    path = folder / WEIGHTS_NAME
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"expected a readable {WEIGHTS_NAME} in it ({error})") from error


def read_adapter(
    folder: Path,
) -> tuple[dict[str, dict[str, Tensor]], dict[str, LayerSettings | None], dict[str, str]]:
    """The parts and the settings of the adapter on each tensor; and the file's metadata.

    The parts are ``lora_A``, ``lora_B`` and, of DoRA, ``magnitude``. Of a tensor that is trained
    whole, whose settings are ``None``, they are ``delta``, or ``trained`` where the file comes from
    PEFT. No network is asked whether they fit it: that is what :func:`.adapter.load_adapter` does.

    Raises:
        ValueError: if the files cannot be read or ask for what is not done here.
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
    with open_tensors(folder) as file:
        metadata = file.metadata() or {}
        for key in file.keys():  # noqa: SIM118 it is no mapping
            tensor = file.get_tensor(key)
            if factor := _KEY.fullmatch(key):
                layer, end = factor.groups()
                part = _PARTS[end]
                if end in _EMBEDDING.values():
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
    return parts, settings, metadata


def read_factors(folder: Path) -> dict[str, tuple[Tensor, Tensor, float]]:
    """What the adapter in ``folder`` adds to each tensor, as ``lora_A``, ``lora_B`` and scaling.

    A ``delta`` is such a product too. What depends on the base is left out: DoRA, and tensors that
    PEFT trained whole.

    Raises:
        ValueError: as :func:`read_adapter`.
    """
    parts, settings, _ = read_adapter(folder)
    factors = {}
    for layer, of_layer in sorted(parts.items()):
        of_settings, delta = settings[layer], of_layer.get("delta")
        if of_settings and not of_settings.use_dora:
            factors[layer] = (of_layer["lora_A"], of_layer["lora_B"], of_settings.scaling)
        elif delta is not None and delta.ndim < 2:
            factors[layer] = (torch.ones(1, 1), delta.view(-1, 1), 1.0)
        elif delta is not None:
            factors[layer] = (delta, torch.eye(len(delta)), 1.0)
    return factors
