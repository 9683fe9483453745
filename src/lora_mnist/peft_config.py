"""PEFT's ``adapter_config.json``: what it says in terms of LoRA here, and what is refused.

PEFT's LoRA can do more than ``W + scaling * lora_B @ lora_A``. An option that changes what a
finished adapter computes, and that has no counterpart here, is refused by its name; so is every
option that this version does not know, as long as it is switched on.
"""

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from lora_mnist.lora import pattern_value

CONFIG_NAME = "adapter_config.json"

_REPRESENTED = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "init_lora_weights"),
}
# About training, or about where the adapter comes from: nothing that a finished adapter computes.
_IRRELEVANT = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout", "runtime_config", "megatron_core", "megatron_config"),
    *("qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
}
# The value of an option that is switched off, where it is not null.
_OFF = {
    "bias": "none",
    **dict.fromkeys(("use_dora", "lora_bias", "fan_in_fan_out", "use_qalora"), False),
    "ensure_weight_tying": False,
}
# Initialisations that leave the base as it was; the others belong to a changed base.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


class LayerSettings(NamedTuple):
    """How one layer is adapted."""

    rank: int
    alpha: float


def write_config(
    path: Path,
    model: nn.Module,
    settings: Mapping[str, LayerSettings],
    use_rslora: bool,
    dropout: float,
) -> None:
    """Write to ``path`` what PEFT needs to know of the layers of ``model`` in ``settings``."""
    # A key fits every layer whose name ends in it, unless it is tied to the start.
    keys = {
        name: f"^{name}" if any(other.endswith(f".{name}") for other in settings) else name
        for name in settings
    }
    ranks = {keys[name]: of.rank for name, of in settings.items()}
    alphas = {keys[name]: of.alpha for name, of in settings.items()}
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
        "lora_dropout": dropout,
        "target_modules": _target_modules(model, list(settings)),
        "bias": "none",
    }
    path.write_text(json.dumps(config, indent=2) + "\n")
    for name in settings:
        _warn_of_convolution(name, model.get_submodule(name))


def _warn_of_convolution(name: str, layer: nn.Module) -> None:
    """Of what PEFT, which sets up ``lora_A`` by stride and padding alone, would compute wrongly."""
    if not isinstance(layer, nn.Conv2d):
        return
    for option, usual in {"dilation": (1, 1), "padding_mode": "zeros"}.items():
        if (value := getattr(layer, option)) != usual:
            warnings.warn(
                f"{name} has {option}={value}, which PEFT ignores: there the saved adapter would "
                "compute something else",
                stacklevel=4,
            )


def _target_modules(model: nn.Module, names: list[str]) -> list[str] | str:
    """The names, or a regular expression where PEFT would find more layers by the names' ends."""
    if targeted_modules({"target_modules": names}, model) == set(names):
        return names
    return "|".join(re.escape(name) for name in names)


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in ``path``, once nothing in it was found that LoRA here cannot do.

    Raises:
        ValueError: otherwise, or if ``path`` is no LoRA configuration of PEFT.
    """
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"expected a readable {CONFIG_NAME} in it ({error})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"expected peft_type LORA in {CONFIG_NAME}")
    for key in ("r", "lora_alpha", "target_modules"):
        if config.get(key) is None:
            raise ValueError(f"expected the key {key} in {CONFIG_NAME}")
    for key in config.keys() - _REPRESENTED - _IRRELEVANT:
        off = _OFF.get(key)
        if config[key] and config[key] != off:
            raise ValueError(f"{key}={config[key]} is not supported; expected {off}")
    if (init := config.get("init_lora_weights")) not in _INITS:
        raise ValueError(
            f"init_lora_weights={init} is not supported: such an adapter belongs to a base that "
            "it changed; expected one that PEFT converted to plain LoRA when saving it"
        )
    _check_types(config)
    return config


def _check_types(config: dict[str, Any]) -> None:
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key)
        if pattern is not None and not isinstance(pattern, dict):
            raise ValueError(f"{key}={pattern}: expected a mapping in {CONFIG_NAME}")
    for key in ("target_modules", "exclude_modules"):
        names = config.get(key)
        if not (names is None or isinstance(names, str) or _is_list_of_str(names)):
            raise ValueError(f"{key}={names}: expected a list or a string in {CONFIG_NAME}")
    expressions = [
        *(config.get("rank_pattern") or {}),
        *(config.get("alpha_pattern") or {}),
        *(config[k] for k in ("target_modules", "exclude_modules") if type(config.get(k)) is str),
    ]
    for expression in expressions:
        try:
            re.compile(expression)
        except re.error as error:
            raise ValueError(
                f"{expression}: expected a regular expression in {CONFIG_NAME} ({error})"
            ) from error


def _is_list_of_str(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def layer_settings(config: Mapping[str, Any], name: str) -> LayerSettings:
    """Rank and alpha of the layer ``name``."""
    return LayerSettings(
        pattern_value(config.get("rank_pattern") or {}, name, config["r"]),
        pattern_value(config.get("alpha_pattern") or {}, name, config["lora_alpha"]),
    )


def targeted_modules(config: Mapping[str, Any], model: nn.Module) -> set[str]:
    """The modules of ``model`` that PEFT would adapt for ``config``."""
    return {
        name
        for name, _ in model.named_modules()
        if ".parametrizations" not in name
        and _names(config["target_modules"], name)
        and not _names(config.get("exclude_modules") or [], name)
    }


def _names(chosen: list[str] | str, name: str) -> bool:
    if isinstance(chosen, str):
        return re.fullmatch(chosen, name) is not None
    return any(name == end or name.endswith(f".{end}") for end in chosen)
