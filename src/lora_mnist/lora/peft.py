"""PEFT's two files: ``adapter_config.json``, and the names of the tensors beside it.

PEFT's LoRA can do more than ``W + scaling * lora_B @ lora_A``. An option that changes what a
finished adapter computes, and that has no counterpart here, is refused by its name; so is every
option that this version does not know, as long as it is switched on.
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .settings import LayerSettings
from .targets import by_pattern, is_among, listed
from .weight import Weight

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

# The endings of the keys of lora_A and lora_B; PEFT's A of an embedding is what is looked up, and
# so its pair is (lora_B^T, lora_A^T).
_USUAL = ("lora_A.weight", "lora_B.weight")
_EMBEDDING = ("lora_embedding_B", "lora_embedding_A")
_KEY = re.compile(rf"base_model\.model\.(.*)\.({'|'.join((*_USUAL, *_EMBEDDING))})")
# Options that are read here, and those that do not change what a finished adapter computes.
_KNOWN = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "init_lora_weights"),
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout", "runtime_config", "megatron_core", "megatron_config"),
    *("qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
}
# Initialisations that leave the base as it was; the others belong to a changed base.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


def tensors_of(layer: str, weight: Weight, lora_A: Tensor, lora_B: Tensor) -> dict[str, Tensor]:
    """The tensors of the adapter on ``weight``, called ``layer``, as PEFT keeps them."""
    is_embedding = isinstance(weight.module, nn.Embedding) and weight.tensor == "weight"
    tensors = {}
    for end, factor in zip(_EMBEDDING if is_embedding else _USUAL, (lora_A, lora_B), strict=True):
        kept = factor.detach().t() if is_embedding else factor.detach()
        tensors[f"base_model.model.{layer}.{end}"] = kept.cpu().contiguous()
    return tensors


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


def write_config(path: Path, model: nn.Module, settings: Mapping[str, LayerSettings]) -> None:
    """Write to ``path`` what PEFT needs to know of the layers of ``model`` in ``settings``."""
    # One for all layers in PEFT; where they differ, each alpha gives its scaling without it.
    use_rslora = all(of_layer.use_rslora for of_layer in settings.values())
    ranks, alphas = {}, {}
    for name, of_layer in settings.items():
        # A key fits every layer whose name ends in it, unless it is tied to the start.
        is_end = any(other.endswith(f".{name}") for other in settings)
        key = f"^{name}" if is_end else name
        ranks[key], alphas[key] = of_layer.rank, of_layer.alpha
        if of_layer.use_rslora != use_rslora:
            alphas[key] = of_layer.scaling * of_layer.rank
    # The names, or a regular expression where PEFT would find more layers by the names' ends.
    target_modules: list[str] | str = list(settings)
    for layer, _ in model.named_modules():
        is_named = is_among(settings, [layer])
        if is_named and layer not in settings and "parametrizations" not in layer.split("."):
            target_modules = "|".join(re.escape(name) for name in settings)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": max(ranks.values()),
        "lora_alpha": max(alphas.values()),
        "rank_pattern": ranks if len(set(ranks.values())) > 1 else {},
        "alpha_pattern": alphas if len(set(alphas.values())) > 1 else {},
        "use_rslora": use_rslora,
        "lora_dropout": max(of_layer.dropout for of_layer in settings.values()),
        "target_modules": target_modules,
        "bias": "none",
    }
    path.write_text(json.dumps(config, indent=2) + "\n")


def warn_of_peft(weights: Mapping[str, Weight]) -> None:
    """Warn of the adapted ``weights`` that PEFT would leave alone, or compute otherwise.

    Of a convolution's options it heeds stride and padding alone, and has another form for groups.
    For attention it has one adapter for the stacked weight and the output's together, and up to
    0.21 adds the output's update twice (PEFT's pull request 3774).
    """
    unknown = []
    for name, (module, tensor) in weights.items():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            options = (module.groups, set(module.dilation), module.padding_mode)
            is_known = options == (1, {1}, "zeros")
        else:
            is_known = isinstance(module, nn.Linear | nn.Embedding) and tensor == "weight"
        if not is_known or isinstance(module, NonDynamicallyQuantizableLinear):
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
    if not path.exists() and (pickled := path.with_suffix(".bin")).exists():
        raise ValueError(
            f"{pickled.name} is a pickle, which can run code when it is loaded; expected "
            f"{WEIGHTS_NAME}, which PEFT writes with safe_serialization=True"
        )
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"expected a readable {WEIGHTS_NAME} in it ({error})") from error


def read_adapter(
    folder: Path,
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, LayerSettings], dict[str, str]]:
    """``lora_A`` and ``lora_B``, and the settings, of each layer; and the file's metadata.

    No network is asked whether they fit it: that is what :func:`.adapter.load_adapter` does.

    Raises:
        ValueError: if the files cannot be read or ask for what LoRA here does not do.
    """
    try:
        config = json.loads((folder / CONFIG_NAME).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"expected a readable {CONFIG_NAME} in it ({error})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"expected peft_type LORA in {CONFIG_NAME}")
    for key, value in config.items():
        off = "none" if key == "bias" else False
        if key not in _KNOWN and value and value != off:
            raise ValueError(f"{key}={value} is not supported; expected {off}")
    if (init := config.get("init_lora_weights")) not in _INITS:
        raise ValueError(
            f"init_lora_weights={init} is not supported: such an adapter belongs to a base that "
            "it changed; expected one that PEFT converted to plain LoRA when saving it"
        )
    sides: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    with open_tensors(folder) as file:
        metadata = file.metadata() or {}
        for key in file.keys():  # noqa: SIM118 it is no mapping
            if not (found := _KEY.fullmatch(key)):
                raise ValueError(f"unexpected tensor {key} in {WEIGHTS_NAME}")
            layer, end = found.groups()
            tensor = file.get_tensor(key)
            is_B = end in (_USUAL[1], _EMBEDDING[1])
            sides[is_B][layer] = tensor.t() if end in _EMBEDDING else tensor
    if lone := sides[0].keys() ^ sides[1].keys():
        raise ValueError(f"lora_A or lora_B of {min(lone)} is missing from {WEIGHTS_NAME}")
    if not sides[0]:
        raise ValueError(f"{WEIGHTS_NAME} holds no tensor")
    factors = {layer: (lora_A, sides[1][layer]) for layer, lora_A in sides[0].items()}
    alpha, pattern = config.get("lora_alpha"), config.get("alpha_pattern")
    alphas = by_pattern("alpha_pattern", pattern, factors, alpha)
    use_rslora = config.get("use_rslora") or False
    settings = {}
    for layer, (lora_A, _) in factors.items():
        # Ranks of single layers stand in the tensors: no key of rank_pattern is read.
        has_one_rank = not config.get("rank_pattern")
        rank: Any = config.get("r") if has_one_rank else lora_A.shape[:1].numel()
        settings[layer] = LayerSettings(rank, alphas[layer], use_rslora=use_rslora)
    return factors, settings, metadata


def read_factors(folder: Path) -> dict[str, tuple[Tensor, Tensor, float]]:
    """``lora_A``, ``lora_B`` and the scaling of each layer of the adapter in ``folder``.

    Raises:
        ValueError: as :func:`read_adapter`.
    """
    factors, settings, _ = read_adapter(folder)
    return {layer: (*factors[layer], settings[layer].scaling) for layer in sorted(factors)}
