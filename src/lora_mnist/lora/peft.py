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

from .layer import LayerSettings
from .targets import by_pattern, is_among, listed
from .weight import Weight

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

_PREFIX = "base_model.model."

# The endings of the keys of lora_A and lora_B; PEFT's A of an embedding is what is looked up.
_USUAL = (".lora_A.weight", ".lora_B.weight")
_EMBEDDING = (".lora_embedding_B", ".lora_embedding_A")
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


def keys_of(name: str, weight: Weight) -> tuple[str, str]:
    """The keys under which ``lora_A`` and ``lora_B`` of ``weight``, called ``name``, are kept."""
    is_embedding = isinstance(weight.module, nn.Embedding) and weight.tensor == "weight"
    of_A, of_B = _EMBEDDING if is_embedding else _USUAL
    return f"{_PREFIX}{name}{of_A}", f"{_PREFIX}{name}{of_B}"


def transposed_if_embedding(key: str, factor: Tensor) -> Tensor:
    """A factor as it is kept under ``key``, from what it is here, or the reverse."""
    return factor.t() if key.endswith(_EMBEDDING) else factor


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


def write_config(
    path: Path, model: nn.Module, settings: Mapping[str, LayerSettings], dropout: float
) -> None:
    """Write to ``path`` what PEFT needs to know of the layers of ``model`` in ``settings``.

    ``use_rslora`` is one for all layers.
    """
    ranks, alphas = {}, {}
    for name, of_layer in settings.items():
        # A key fits every layer whose name ends in it, unless it is tied to the start.
        is_end = any(other.endswith(f".{name}") for other in settings)
        key = f"^{name}" if is_end else name
        ranks[key], alphas[key] = of_layer.rank, of_layer.alpha
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
        "use_rslora": next(iter(settings.values())).use_rslora,
        "lora_dropout": dropout,
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
    for name, weight in weights.items():
        module = weight.module
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            is_known = module.groups == 1 and set(module.dilation) == {1}
            is_known = is_known and module.padding_mode == "zeros"
        else:
            is_known = isinstance(module, nn.Linear | nn.Embedding) and weight.tensor == "weight"
        if not is_known or isinstance(module, NonDynamicallyQuantizableLinear):
            unknown.append(name)
    if unknown:
        warnings.warn(
            f"PEFT has no adapter of this form for {listed(unknown)}: use the saved adapter here",
            stacklevel=3,
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration in ``folder``, once nothing in it was found that LoRA here cannot do.

    Raises:
        ValueError: otherwise, or if there is no LoRA configuration of PEFT.
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
    for key, kinds, expected in (
        ("r", int, "an integer"),
        ("lora_alpha", int | float, "a number"),
        ("target_modules", str | list, "a string or a list"),
        ("use_rslora", bool | None, "true or false"),
        ("rank_pattern", dict | None, "a mapping"),
        ("alpha_pattern", dict | None, "a mapping"),
    ):
        if not isinstance(config.get(key), kinds):
            raise ValueError(f"{key}={config.get(key)}: expected {expected} in {CONFIG_NAME}")
    return config


def read_factors(folder: Path) -> dict[str, tuple[Tensor, Tensor, float]]:
    """``lora_A``, ``lora_B`` and the scaling of each layer of the adapter in ``folder``.

    No network is asked whether they fit it: that is what :func:`.adapter.load_adapter` does.

    Raises:
        ValueError: if the files cannot be read or ask for what LoRA here does not do.
    """
    config = read_config(folder)
    pairs = {}
    with open_tensors(folder) as file:
        keys = set(file.keys())
        for key in sorted(keys):
            for of_A, of_B in (_USUAL, _EMBEDDING):
                layer = key.removesuffix(of_A)
                if layer != key and layer + of_B in keys:
                    lora_A = transposed_if_embedding(key, file.get_tensor(key))
                    lora_B = transposed_if_embedding(layer + of_B, file.get_tensor(layer + of_B))
                    pairs[layer.removeprefix(_PREFIX)] = lora_A, lora_B
    settings = layer_settings(config, {layer: len(lora_A) for layer, (lora_A, _) in pairs.items()})
    return {layer: (*pair, settings[layer].scaling) for layer, pair in pairs.items()}


def layer_settings(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, LayerSettings]:
    """How each layer in ``ranks`` is adapted; ValueError if a value of ``config`` cannot be."""
    alphas = by_pattern("alpha_pattern", config.get("alpha_pattern"), ranks, config["lora_alpha"])
    use_rslora = bool(config.get("use_rslora"))
    return {
        name: LayerSettings(rank, alphas[name], use_rslora=use_rslora)
        for name, rank in ranks.items()
    }
