"""Adapters on disk: a folder with PEFT's two files, tied to its base by a fingerprint.

A tensor of ``adapter_model.safetensors`` is called ``base_model.model.<layer>.lora_A.weight``,
shape (rank, in_features), or ``...lora_B.weight``, shape (out_features, rank); in other layers they
have the shapes of :class:`.layer.LoRAParametrization`. An offset on the last layer is
``...lora_B.bias`` there, which PEFT adds times the scaling (its ``lora_bias``); DoRA has none, and
the base's bias stands there with the offset. So PEFT computes what the network does at its point.

The adapter as trained is read here from the metadata: ``base_sha256``, the fingerprint of its base;
its point, ``scale`` and ``offset``; ``trained``, the config; ``layer`` and ``most`` of an offset.
Tensors that are others in training than for PEFT have names that begin with ``trained.``. All else
follows, and has to be there. The caller may add metadata.
"""

import json
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..files import atomic_write, read_json, write_json
from .base_state import base_state_dict, fingerprint
from .errors import is_number
from .layer import Adapter, LoRAParametrization, scaling_divisor
from .model import KINDS, attach, lora_point, usable_adapters
from .offset import Offset
from .point import Point
from .weight import (
    Weight,
    adaptable_weights,
    by_pattern,
    is_named,
    listed,
    lora_adapters,
    lora_weights,
)

log = logging.getLogger(__name__)

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
#: The one key of the file's metadata, a JSON text: safetensors writes several in a random order.
_METADATA_KEY = "lora_mnist"
_START, _TRAINED, _DIRECTION = "base_model.model.", "trained.", "offset.direction"
#: The types of what is read, where ``float`` is any number: a stranger may have written the files.
_METADATA: dict[str, Any] = {"base_sha256": str, "scale": float, "offset": float, "trained": dict}
_METADATA |= {"layer": str | None, "most": float}
_CONFIG: dict[str, Any] = {"target_modules": str | list, "exclude_modules": str | list | None}
_CONFIG |= {"lora_alpha": float, "alpha_pattern": dict | None, "use_rslora": bool | None}
#: PEFT's options that do not change what a finished adapter computes, or that its tensors show.
#: Any other one that is switched on is refused by its name.
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


def save_adapter(
    model: nn.Module, folder: str | Path, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write the LoRA weights of ``model`` to ``folder``; a few kilobytes, without the base.

    In PEFT they compute what ``model`` does now. Loaded here, the adapter has the scale and the
    offset that it was saved with, and ``set_lora_scale(model, 1)`` makes it as trained.

    Args:
        model: network whose layers carry LoRA (see :func:`.model.add_lora`).
        folder: made if need be, and returned; an adapter already in it is replaced.
        metadata: JSON values for the file, beside those of the file that the adapter was loaded
            from, if any. With ``base_sha256`` the base is not hashed again.

    Raises:
        ValueError: if no layer carries LoRA, a layer carries several adapters, the layers differ in
            their points or kinds, or :func:`load_adapter` would refuse the files.
        OSError: if the folder cannot be written.
    """
    folder, files = Path(folder), adapter_files(model, metadata)
    content = {key: tensor.detach().cpu().contiguous() for key, tensor in files.tensors.items()}
    with atomic_write(folder / WEIGHTS_NAME) as path:
        path.write_bytes(save(content, {_METADATA_KEY: json.dumps(files.metadata)}))
    write_json(folder / CONFIG_NAME, files.config)
    _warn_of_peft(model)
    return folder


def adapter_files(model: nn.Module, metadata: Mapping[str, Any] | None = None) -> AdapterFiles:
    """What :func:`save_adapter` writes; ``ValueError`` where it refuses to."""
    usable_adapters(model)
    adapters: dict[str, Adapter] = {}
    for name, weight in lora_weights(model).items():
        if len(weight.adapters) > 1:
            raise ValueError(f"{name} carries {len(weight.adapters)} adapters; expected one")
        (adapters[name],) = weight.adapters
    lora_point(model)  # one for all
    first, *others = lora_adapters(model)
    about = first.metadata
    for adapter in others:  # of several files, what they all say
        about = {key: value for key, value in about.items() if adapter.metadata.get(key) == value}
    about |= metadata or {}
    if "base_sha256" not in about:
        about["base_sha256"] = fingerprint(base_state_dict(model))
    files = _files_of(adapters, adaptable_weights(model))
    files.config["lora_dropout"] = max(each.dropout for each in (first, *others))
    files = files._replace(metadata=about | files.metadata)
    _adapters_in(files, model)  # what cannot be loaded is not saved
    return files


def load_adapter(model: nn.Module, folder: str | Path, base_sha256: str | None = None) -> nn.Module:
    """Put the adapter in ``folder`` on ``model``, which must be the base it was trained on.

    It has the scale and the offset with which it was saved; one of PEFT's has the scale 1. The
    folder may come from a stranger: nothing in it is run as code.

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
    folder, metadata = Path(folder), read_metadata(folder)
    try:
        if metadata:
            made_for, sha256 = metadata["base_sha256"], base_sha256
            sha256 = sha256 or fingerprint(base_state_dict(model))
            if made_for != sha256:
                here = f"this one is {sha256}; expected the same base"
                raise ValueError(f"made for the base {made_for}, {here}")
        else:
            log.warning("the adapter does not say which base it was made for: not checked")
        tensors, config = load_file(folder / WEIGHTS_NAME), read_json(folder / CONFIG_NAME)
        files = AdapterFiles(tensors, config, metadata)
        attach(model, _adapters_in(files, model))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return model


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """The metadata of the adapter in ``folder``, which one of PEFT's lacks; no tensor is read."""
    try:
        with safe_open(Path(folder, WEIGHTS_NAME), framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
        if metadata != {}:
            _check_types(metadata, _METADATA)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: expected a readable {WEIGHTS_NAME} ({error})") from error
    return dict(metadata)


def _check_types(values: Any, types: Mapping[str, Any]) -> None:
    """ValueError, unless ``values`` has each of these keys, with a value of its type."""
    for key, type_ in types.items():
        value = values.get(key) if isinstance(values, dict) else values
        if not (is_number(value) if type_ is float else isinstance(value, type_)):
            raise ValueError(f"{key}={value}: expected {getattr(type_, '__name__', type_)}")


def _files_of(adapters: Mapping[str, Adapter], weights: Mapping[str, Weight]) -> AdapterFiles:
    """What all of these give to the files, by the names of the tensors that they are on."""
    loras = {name: each for name, each in adapters.items() if isinstance(each, LoRAParametrization)}
    first = next(iter(loras.values()))
    if any(adapter.config != first.config for adapter in loras.values()):
        raise ValueError("the layers have several kinds of adapters; expected one")
    scale, use_rslora = first.point.scale, all(adapter.use_rslora for adapter in loras.values())
    tensors, ranks, alphas = {}, {}, {}
    for name, adapter in sorted(loras.items()):
        base, names = weights[name].base.detach(), adapter.names(weights[name].module)
        at_scale, as_trained = adapter.saved(base, scale), adapter.saved(base, 1.0)
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
        "target_modules": "|".join(map(re.escape, sorted(loras))),
    }
    factor = scale or 1.0  # at 0 the tensors change nothing
    pattern = {key: alpha * factor for key, alpha in alphas.items()}
    config = trained | {"lora_alpha": min(alphas.values()) * factor, "alpha_pattern": pattern}
    metadata = {"scale": float(scale), "offset": float(first.point.offset), "trained": trained}
    metadata |= {"layer": None, "most": 0.0}
    files = AdapterFiles(tensors, config, metadata)
    for name, offset in adapters.items():
        if isinstance(offset, Offset):
            _add_offset(files, name, offset, weights, first.has_bias)
    return files


def _add_offset(
    files: AdapterFiles, name: str, offset: Offset, weights: Mapping[str, Weight], has_bias: bool
) -> None:
    """Add the offset on the bias ``name`` to the files of LoRA."""
    tensors, config, metadata = files
    layer = name.removesuffix("bias").removesuffix(".")
    metadata |= {"layer": layer, "most": offset.most}
    tensors[_DIRECTION] = offset.direction
    start, moved = f"{_START}{layer}.", offset.point.offset * offset.direction
    is_adapted = any(key.startswith(start) for key in tensors)
    if offset.point.offset and not has_bias:
        config["bias"] = "lora_only"
        place = "base_layer.bias" if is_adapted else "bias"
        tensors[start + place] = weights[name].base.detach() + moved
    elif offset.point.offset:
        if not is_adapted:  # PEFT's bias needs factors beside it
            base, rank = weights[layer].base, config["r"]
            config["target_modules"] += f"|{re.escape(layer)}"
            tensors[f"{start}lora_A.weight"] = base.new_zeros(rank, base.shape[1])
            tensors[f"{start}lora_B.weight"] = base.new_zeros(len(base), rank)
        config["lora_bias"] = True  # of each layer
        for key in [key for key in tensors if key.startswith(_START)]:
            if key.endswith("lora_B.weight"):
                zeros = moved.new_zeros(len(tensors[key]))
                tensors[key.removesuffix("weight") + "bias"] = zeros
        alpha = config["alpha_pattern"].get(f"^{layer}", config["lora_alpha"])
        rank = len(tensors[f"{start}lora_A.weight"])
        scaling = alpha / scaling_divisor(rank, config["use_rslora"])  # PEFT multiplies by it
        tensors[f"{start}lora_B.bias"] = moved / scaling


def _in_file(tensor: Tensor, end: str) -> Tensor:
    """The factors of an embedding, which looks rows up, are transposed in files; and back."""
    return tensor.t() if "embedding" in end else tensor


def _adapters_in(files: AdapterFiles, model: nn.Module) -> dict[str, Adapter]:
    """The adapters that the files have, at their point, by the names of the tensors of ``model``.

    ValueError, unless they have all that config and metadata say, and nothing else.
    """
    (tensors, config, metadata), weights = files, adaptable_weights(model)
    for key, tensor in tensors.items():
        is_usable = tensor.ndim > 0 and tensor.is_floating_point()
        if not (is_usable and tensor.float().isfinite().all()):
            raise ValueError(f"{key}: expected finite numbers")
    # PEFT's adapters have no metadata: their config has them as trained.
    adapters, point = _loras_in(tensors, metadata.get("trained", config), weights), Point(1.0)
    if metadata:
        point = Point(float(metadata["scale"]), float(metadata["offset"]))
    if (layer := metadata.get("layer")) is not None:
        name, direction = f"{layer}.bias".removeprefix("."), tensors.get(_DIRECTION)
        is_bias = name in weights and isinstance(weights[name].module, nn.Linear)
        if not is_bias or direction is None or direction.shape != weights[name].base.shape:
            raise ValueError(f"layer={layer}: expected one with a bias of the size of its offset")
        adapters[name] = Offset(direction, metadata["most"])
    for name, adapter in adapters.items():
        adapter.to(weights[name].base).point = point
        adapter.metadata = {key: each for key, each in metadata.items() if key not in _METADATA}
    expected = _files_of(adapters, weights)
    for key in tensors.keys() ^ expected.tensors.keys():
        said = "belongs to no layer that can be adapted here" if key in tensors else "is missing"
        raise ValueError(f"{WEIGHTS_NAME}: {key} {said}")
    for key, tensor in expected.tensors.items():
        own, its = tensor.float().cpu(), tensors[key].float().cpu()
        if own.shape != its.shape or not torch.allclose(own, its, 1e-2, 1e-6):
            raise ValueError(f"{WEIGHTS_NAME}: {key} is not what the metadata ask for")
    for key, value in expected.config.items() if metadata else ():
        if config.get(key) != value:
            said = f"{key}={config.get(key)} in {CONFIG_NAME}"
            raise ValueError(f"{said}: expected {value}, as {WEIGHTS_NAME} says")
    for key, value in config.items():
        is_known = key in expected.config or key in _HARMLESS.split()
        is_start = key == "init_lora_weights" and value in _INITS
        if value and not is_known and not is_start:
            raise ValueError(f"{key}={value} is not supported; expected False")
    return adapters


def _loras_in(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], weights: Mapping[str, Weight]
) -> dict[str, Adapter]:
    """LoRA as it was trained, on each layer that the config names."""
    _check_types(config, _CONFIG)
    kinds = [kind for kind in KINDS.values() if kind.config.items() <= config.items()]
    if not kinds:
        raise ValueError(f"{CONFIG_NAME}: expected peft_type LORA")
    kind, targets = max(kinds, key=lambda each: len(each.config)), config["target_modules"]
    layers = {}
    for name, weight in weights.items():
        can_be_adapted = weight.base.ndim > 1 and kind.names(weight.module)
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
        meta = weight.base.detach().to("meta")  # no random number is drawn
        loras[name] = kind(meta, rank, alphas[name], use_rslora=config.get("use_rslora") or False)
        try:
            loras[name].load_state_dict(saved, assign=True)
        except RuntimeError as error:  # of other shapes
            raise ValueError(f"{name}: {' '.join(str(error).split())}") from error
    return loras


def _warn_of_peft(model: nn.Module) -> None:
    """Warn of an adapter that PEFT would ignore, or compute otherwise, without a word."""
    layers = []
    for name, weight in lora_weights(model).items():
        module: Any = weight.module
        is_attention = isinstance(module, NonDynamicallyQuantizableLinear)
        is_usual = weight.tensor == "weight" and not is_attention
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):  # PEFT's know none of these
            is_plain = module.groups == 1 and module.padding_mode == "zeros"
            is_usual = is_plain and set(module.dilation) == {1}
        if weight.base.ndim > 1 and not is_usual:
            layers.append(name)
    if layers:
        warnings.warn(
            f"PEFT has no adapter of this form for {listed(layers)}: use the saved adapter here",
            stacklevel=3,
        )
