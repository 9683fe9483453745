"""Adapters on disk: a folder with PEFT's two files, tied to its base by a fingerprint.

A tensor of ``adapter_model.safetensors`` is called ``base_model.model.<layer>.lora_A.weight``,
shape (rank, in_features), or ``...lora_B.weight``, shape (out_features, rank); in other layers they
have the shapes of :class:`.layer.LoRAParametrization`. An offset on the last layer is
``...lora_B.bias`` there, which PEFT adds times the scaling (its ``lora_bias``); DoRA has none, and
the base's bias stands there with the offset. The metadata have ``base_sha256``, the fingerprint of
the base, and whatever the caller adds.
"""

import json
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..files import atomic_write, read_json, write_json
from .base_state import base_state_dict, fingerprint
from .layer import Adapter, LoRAParametrization, scaling_divisor
from .model import KINDS, attach, lora_point, usable_adapters
from .offset import Offset
from .point import Point
from .weight import Weight, adaptable_weights, by_pattern, listed, lora_weights

log = logging.getLogger(__name__)

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
#: The one key of the file's metadata, a JSON text: safetensors writes several in a random order.
_METADATA_KEY = "lora_mnist"
# The start of PEFT's keys, and of those of tensors as trained where PEFT reads others at a scale.
_START, _TRAINED = "base_model.model.", "trained."
# Options that are read here, or do not change what a finished adapter computes. Any other one that
# is switched on is refused by its name.
_KNOWN = """
r use_rslora rank_pattern alpha_pattern target_modules exclude_modules
task_type auto_mapping peft_version revision base_model_name_or_path inference_mode lora_dropout
megatron_core qalora_group_size eva_config lora_bias
"""


def save_adapter(
    model: nn.Module, folder: str | Path, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write the LoRA weights of ``model`` to ``folder``; a few kilobytes, without the base.

    ``lora_A`` and ``lora_B`` are written as trained. The scale is a factor of ``lora_alpha`` in
    ``adapter_config.json``, so PEFT computes what ``model`` does now, and stands in the metadata
    with the alpha as trained: loaded here, the adapter has the scale that it was saved with, and
    ``set_lora_scale(model, 1)`` makes it as trained. At scale 0 the alpha stays, and PEFT reads
    zeros for ``lora_B``. An offset is added in PEFT, too.

    Args:
        model: network whose layers carry LoRA (see :func:`.model.add_lora`).
        folder: made if need be, and returned; an adapter already in it is replaced.
        metadata: JSON values for the file, beside those of the file that the adapter was loaded
            from, if any. With ``base_sha256`` the base is not hashed again.

    Raises:
        ValueError: if no layer carries LoRA, a layer carries several adapters, the layers differ in
            their points or kinds, or a kind has parameters that it does not save.
        OSError: if the folder cannot be written.
    """
    folder = Path(folder)
    usable_adapters(model)
    adapters: dict[str, Any] = {}
    offset, last = None, ""  # the offset, and the layer that has it
    for name, weight in lora_weights(model).items():
        if len(weight.adapters) > 1:
            raise ValueError(f"{name} carries {len(weight.adapters)} adapters; expected one")
        (adapter,) = weight.adapters
        if isinstance(adapter, Offset):
            offset, last = adapter, name.removesuffix("bias").removesuffix(".")
        else:
            adapters[name] = adapter
    scale, moved = lora_point(model)
    first = next(iter(adapters.values()))
    if any(adapter.config != first.config for adapter in adapters.values()):
        raise ValueError("the layers have several kinds of adapters; expected one")
    about = first.metadata
    for adapter in adapters.values():  # of several files, what they all say
        about = {key: value for key, value in about.items() if adapter.metadata.get(key) == value}
    about |= metadata or {}
    if "base_sha256" not in about:
        about["base_sha256"] = fingerprint(base_state_dict(model))
    weights = adaptable_weights(model)
    if offset is not None:
        numbers = {str(c): each for c, each in enumerate(offset.direction.tolist()) if each}
        about["offset"] = {"layer": last, "value": moved, "direction": numbers}
        about["offset"]["most"] = offset.most
        if moved and first.bias_key and last not in adapters:  # it needs factors beside it
            meta = LoRAParametrization(weights[last].base.to("meta"))  # no random number is drawn
            adapters[last] = meta.to_empty(device="cpu")
            for factor in meta.parameters():
                nn.init.zeros_(factor)
    config = _config_of(adapters, weights)
    trained = {key: config[key] for key in (first.alpha_key, "alpha_pattern")}
    about |= {"scale": float(scale), "trained": trained}
    tensors: dict[str, Tensor] = {}
    for name, adapter in adapters.items():
        module, base = weights[name].module, weights[name].base
        saved, turned = adapter.saved(), adapter.turned(base)
        keys = {part: f"{_START}{name}.{end}" for part, end in adapter.names(module).items()}
        if lost := dict(adapter.named_parameters()).keys() - (keys.keys() & saved.keys()):
            raise ValueError(f"{name}: {type(adapter).__name__} does not save {', '.join(lost)}")
        own = {keys[part]: tensor for part, tensor in (saved | turned).items()}
        own |= {_TRAINED + keys[part]: saved[part] for part in turned}
        for key, tensor in own.items():
            tensors[key] = tensor.t() if isinstance(module, nn.Embedding) else tensor
        if offset is not None and moved and adapter.bias_key:
            config["lora_bias"] = True  # of each layer
            bias = torch.zeros(len(base))
            if name == last:
                scaling = adapter.scaling * (scale or 1.0)  # by which PEFT multiplies it
                bias = moved * offset.direction / scaling
            tensors[f"{_START}{name}.{adapter.bias_key}"] = bias
    if offset is not None and moved and not first.bias_key:
        config["bias"] = "lora_only"  # the base's own stands in the file, with the offset
        base = weights[f"{last}.bias".removeprefix(".")].base
        key = f"{_START}{last}.base_layer.bias" if last in adapters else f"{_START}{last}.bias"
        tensors[key] = base + moved * offset.direction
    content = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with atomic_write(folder / WEIGHTS_NAME) as path:
        path.write_bytes(save(content, {_METADATA_KEY: json.dumps(about)}))
    write_json(folder / CONFIG_NAME, config | _at_scale(trained, first.alpha_key, scale))
    _warn_of_peft(model, {name: weights[name] for name in adapters})
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
    try:
        adapters = _read_adapters(Path(folder), metadata, adaptable_weights(model))
        made_for, dataset = metadata.get("base_sha256"), metadata.get("dataset")
        if made_for is None:
            log.warning("the adapter does not say which base it was made for: not checked")
        else:
            sha256 = base_sha256 or fingerprint(base_state_dict(model))
            if made_for != sha256:
                base = f"{made_for} on {dataset}" if dataset else made_for
                raise ValueError(
                    f"made for the base {base}, this one is {sha256}; expected the same base"
                )
        attach(model, adapters)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return model


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """The metadata of the adapter in ``folder``, which one of PEFT's lacks; no tensor is read."""
    try:
        with safe_open(Path(folder, WEIGHTS_NAME), framework="pt") as file:
            return dict(json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}")))
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: expected a readable {WEIGHTS_NAME} ({error})") from error


def _read_adapters(
    folder: Path, metadata: Mapping[str, Any], weights: Mapping[str, Weight]
) -> dict[str, Adapter]:
    """The adapter of each of ``weights`` that has one, as it was saved: its scale, its offset."""
    config, kind = _read_config(folder)
    places: dict[str, tuple[str, str]] = {}
    for name, weight in weights.items():
        if weight.base.ndim > 1:
            for part, end in {**kind.names(weight.module), "bias": kind.bias_key}.items():
                places[f"{_START}{name}.{end}"] = name, part
    parts: dict[str, dict[str, Tensor]] = {}
    tensors = load_file(folder / WEIGHTS_NAME)
    offset, record = None, metadata.get("offset") or {}
    moved = float(record.get("value", 0.0))
    if record:
        last = f"{record['layer']}.bias".removeprefix(".")
        if last not in weights:
            raise ValueError(f"offset: expected a layer with a bias, not {record['layer']}")
        direction = torch.zeros(len(weights[last].base))
        for number, value in record["direction"].items():
            direction[int(number)] = value
        offset = Offset(direction, record["most"])
        offset.point = Point(metadata.get("scale", 1.0), moved)
        for end in ("base_layer.bias", "bias"):
            bias = tensors.pop(f"{_START}{record['layer']}.{end}", None)
            if bias is not None and not torch.allclose(bias, offset(weights[last].base.cpu())):
                raise ValueError(f"{last} in {WEIGHTS_NAME} is not the base's with the offset")
    # Tensors as trained are last, and replace those of the scale.
    for key in sorted(tensors, key=lambda key: key.startswith(_TRAINED)):
        name, part = places.get(key.removeprefix(_TRAINED), ("", ""))
        if not part:
            raise ValueError(f"{WEIGHTS_NAME}: {key} belongs to no layer that can be adapted here")
        is_embedding = isinstance(weights[name].module, nn.Embedding)
        tensor = tensors[key].t() if is_embedding else tensors[key]
        parts.setdefault(name, {})[part] = tensor
    # PEFT's adapters have no metadata: their config has the alphas as trained.
    scale, trained = metadata.get("scale", 1.0), config
    if "trained" in metadata:
        trained = metadata["trained"]
        for key, value in _at_scale(trained, kind.alpha_key, scale).items():
            if config.get(key) != value:
                raise ValueError(
                    f"{key}={config.get(key)} in {CONFIG_NAME}: expected {value}, as "
                    f"{WEIGHTS_NAME} says"
                )
    pattern, alpha = trained.get("alpha_pattern"), trained.get(kind.alpha_key)
    alphas = by_pattern("alpha_pattern", pattern, parts, alpha)
    use_rslora = config.get("use_rslora") or False
    about = dict(metadata)
    for key in ("base_sha256", "scale", "trained", "offset"):  # save_adapter writes them anew
        about.pop(key, None)
    adapters: dict[str, Adapter] = {}
    for layer, saved in parts.items():
        bias = saved.pop("bias", None)
        weight = weights[layer].base.detach().to("meta")  # no random number is drawn
        rank = len(saved.get(next(iter(kind.names(weights[layer].module))), ()))
        adapter = kind(weight, rank, alphas[layer], use_rslora=use_rslora)
        try:
            adapter.load_state_dict(saved, assign=True)
        except RuntimeError as error:  # of other shapes
            raise ValueError(f"{layer}: {' '.join(str(error).split())}") from error
        adapter.point, adapter.metadata = Point(float(scale), moved), about
        adapters[layer] = adapter
        if bias is not None and bias.any() and not record:
            expected = "expected zeros, or an offset that the metadata say"
            raise ValueError(f"{kind.bias_key} of {layer} is not supported; {expected}")
    if offset is not None:
        adapters[last] = offset
    return adapters


def _read_config(folder: Path) -> tuple[dict[str, Any], type[LoRAParametrization]]:
    """The content of ``adapter_config.json``, and the kind that computes what it asks for."""
    config = read_json(folder / CONFIG_NAME)
    kinds = [kind for kind in KINDS.values() if kind.config.items() <= config.items()]
    if not kinds:
        types = sorted({kind.config["peft_type"] for kind in KINDS.values()})
        raise ValueError(f"{CONFIG_NAME}: expected peft_type {' or '.join(types)}")
    kind = max(kinds, key=lambda kind: len(kind.config))
    for key, value in config.items():
        is_known = key in _KNOWN.split() or key in kind.config or key == kind.alpha_key
        if not is_known and value and value not in kind.harmless.get(key, ()):
            raise ValueError(f"{key}={value} is not supported; expected False")
    return config, kind


def _config_of(
    adapters: Mapping[str, LoRAParametrization], weights: Mapping[str, Weight]
) -> dict[str, Any]:
    """The ``adapter_config.json`` of an adapter as trained."""
    ranks, alphas = {}, {}
    use_rslora = all(adapter.use_rslora for adapter in adapters.values())
    for name, adapter in adapters.items():
        first = next(iter(adapter.names(weights[name].module)))
        rank = len(adapter.saved()[first])  # PiSSA has twice its own, at the same scaling
        divisor = scaling_divisor(adapter.rank, adapter.use_rslora)
        ranks[f"^{name}"] = rank  # with ^ PEFT takes a name for one layer's alone
        alphas[f"^{name}"] = adapter.alpha * (scaling_divisor(rank, use_rslora) / divisor)
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        **adapter.config,
        "r": rank,
        adapter.alpha_key: alpha,
        "alpha_pattern": {key: each for key, each in alphas.items() if each != alpha},
        "rank_pattern": {key: each for key, each in ranks.items() if each != rank},
        "use_rslora": use_rslora,
        "lora_dropout": max(adapter.dropout for adapter in adapters.values()),
        "target_modules": "|".join(map(re.escape, adapters)),
    }


def _at_scale(trained: Mapping[str, Any], alpha_key: str, scale: float) -> dict[str, Any]:
    """The alphas of an adapter at a scale, which is a factor of each; at 0 they stay."""
    factor = scale or 1.0
    pattern = {key: alpha * factor for key, alpha in trained.get("alpha_pattern", {}).items()}
    return {alpha_key: trained.get(alpha_key, 0) * factor, "alpha_pattern": pattern}


def _warn_of_peft(model: nn.Module, weights: Mapping[str, Weight]) -> None:
    """Warn of an adapter that PEFT would ignore, or compute otherwise, without a word."""
    every = [module for _, module in model.named_modules(remove_duplicate=False)]
    layers = []
    for name, weight in weights.items():
        module: Any = weight.module
        is_attention = isinstance(module, NonDynamicallyQuantizableLinear)
        is_usual = weight.tensor == "weight" and not is_attention
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):  # PEFT's know none of these
            is_plain = module.groups == 1 and module.padding_mode == "zeros"
            is_usual = is_plain and set(module.dilation) == {1}
        if not is_usual or every.count(module) > 1:  # PEFT takes the first of two names
            layers.append(name)
    if layers:
        warnings.warn(
            f"PEFT has no adapter of this form for {listed(layers)}: use the saved adapter here",
            stacklevel=3,
        )
