"""PEFT's ``adapter_config.json``: what it says in terms of LoRA here, and what is refused.

PEFT's LoRA can do more than ``W + scaling * lora_B @ lora_A``. An option that changes what a
finished adapter computes, and that has no counterpart here, is refused by its name; so is every
option that this version does not know, as long as it is switched on.

A configuration may come from a stranger. The layers and their ranks stand in the tensors, so
``rank_pattern`` and a regular expression in ``target_modules`` are never evaluated; the keys of
``alpha_pattern`` are, and must be simple enough to be matched in a moment.
"""

import json
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..disk.files import read_json
from .peft_layout import is_known_to_peft
from .settings import LayerSettings
from .targets import ends_in, listed
from .weight import Weight

CONFIG_NAME = "adapter_config.json"

_MOST_BYTES = 4 * 2**20

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


def write_config(
    path: Path, model: nn.Module, settings: Mapping[str, LayerSettings], dropout: float
) -> None:
    """Write to ``path`` what PEFT needs to know of the layers of ``model`` in ``settings``.

    Args:
        path: the file to write.
        model: the network that carries the adapter.
        settings: rank and scaling of each layer, with ``use_rslora`` for all or none.
        dropout: what the adapter was trained with.
    """
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
        "use_rslora": next(iter(settings.values())).use_rslora,
        "lora_dropout": dropout,
        "target_modules": _target_modules(model, list(settings)),
        "bias": "none",
    }
    path.write_text(json.dumps(config, indent=2) + "\n")


def _target_modules(model: nn.Module, names: list[str]) -> list[str] | str:
    """The names, or a regular expression where PEFT would find more layers by the names' ends."""
    found = {
        name
        for name, _ in model.named_modules()
        if "parametrizations" not in name.split(".") and any(ends_in(name, end) for end in names)
    }
    return names if found <= set(names) else "|".join(re.escape(name) for name in names)


def warn_of_peft(weights: Mapping[str, Weight]) -> None:
    """Warn of the adapted ``weights`` that PEFT would leave alone, or compute otherwise."""
    unknown = [name for name, weight in weights.items() if not is_known_to_peft(weight)]
    if unknown:
        _warn(f"PEFT has no adapter for {listed(unknown)}: use the saved adapter here")
    for name, weight in weights.items():
        for option, usual in {"dilation": 1, "padding_mode": "zeros"}.items():
            value = getattr(weight.module, option, usual)
            if {usual} != {*(value if isinstance(value, tuple) else [value])}:
                # PEFT sets up lora_A by stride and padding alone.
                _warn(
                    f"{name} has {option}={value}, which PEFT ignores: there the saved adapter "
                    "would compute something else"
                )


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in ``path``, once nothing in it was found that LoRA here cannot do.

    Raises:
        ValueError: otherwise, or if ``path`` is no LoRA configuration of PEFT.
    """
    try:
        config = read_json(path, _MOST_BYTES)
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
        if not isinstance(pattern, dict | None):
            raise ValueError(f"{key}={pattern}: expected a mapping in {CONFIG_NAME}")
    for key in ("target_modules", "exclude_modules"):
        names = config.get(key)
        if not isinstance(names, str | None) and not _is_list_of_str(names):
            raise ValueError(f"{key}={names}: expected a list or a string in {CONFIG_NAME}")
    if not isinstance(rslora := config.get("use_rslora"), bool | None):
        raise ValueError(f"use_rslora={rslora}: expected true or false in {CONFIG_NAME}")
    if type(rank := config["r"]) is not int:
        raise ValueError(f"r={rank}: expected an integer in {CONFIG_NAME}")


def _is_list_of_str(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def layer_settings(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, LayerSettings]:
    """How each weight is adapted.

    Args:
        config: from :func:`read_config`.
        ranks: the weights by name, and their ranks as the factors show them.

    Raises:
        ValueError: if a value is out of range, or a key of ``alpha_pattern`` cannot be used.
    """
    alphas = _alphas(config.get("alpha_pattern") or {}, ranks, config["lora_alpha"])
    use_rslora = bool(config.get("use_rslora"))
    return {
        name: LayerSettings(rank, alphas[name], use_rslora=use_rslora)
        for name, rank in ranks.items()
    }


# One character of a name: itself, an escaped one, or one of a class.
_ITEM = r"(?:[\w.\-]|\\[.\-dw]|\[\^?[\w\-]+\])"
# Nothing that is repeated is a group or optional: ``re`` then takes a polynomial number of steps.
_SIMPLE = re.compile(rf"(?:{_ITEM}[*+]?|\((?:\?:)?|[)|^$])*")
_LONGEST_KEY = 200
# Under a second for all keys; what it costs to compile one, in steps of a match.
_MOST_STEPS = 60_000_000
_STEPS_TO_COMPILE = 30_000


def _alphas(pattern: Mapping[str, Any], names: Collection[str], default: Any) -> dict[str, Any]:
    """What ``alpha_pattern`` says of each layer; the same as :func:`.targets.pattern_value`."""
    steps = 0
    for key in pattern:
        groups, repetitions = key.count("("), key.count("*") + key.count("+")
        is_simple = len(key) <= _LONGEST_KEY and _SIMPLE.fullmatch(key) is not None
        if not is_simple or groups > 1 or repetitions > 2:
            raise ValueError(
                f"alpha_pattern={key}: expected a layer's name or a simple expression: at most "
                f"{_LONGEST_KEY} characters, one group and two repetitions, none of a group"
            )
        each = sum(len(name) ** (1 + repetitions) for name in names)
        steps += _STEPS_TO_COMPILE + (1 + key.count("|")) * each
        if steps > _MOST_STEPS:
            raise ValueError(f"alpha_pattern: {len(pattern)} keys would take too long to match")
    try:
        keys = {re.compile(rf"(.*\.)?({key})$"): alpha for key, alpha in pattern.items()}
    except re.error as error:
        raise ValueError(f"alpha_pattern: expected regular expressions ({error})") from error
    return {
        name: next((alpha for key, alpha in keys.items() if key.match(name)), default)
        for name in names
    }


def check_targets(
    config: Mapping[str, Any], stored: Collection[str], names: Mapping[str, Collection[str]]
) -> None:
    """Compare a list in ``target_modules`` with the weights whose factors are stored.

    Args:
        config: from :func:`read_config`. A regular expression is not compared.
        stored: the weights that have factors.
        names: the names to which each adaptable weight of the network answers.

    Raises:
        ValueError: if the list omits a stored weight, or names one that is not stored.
    """
    chosen, excluded = config["target_modules"], config.get("exclude_modules") or []
    if isinstance(chosen, str) or isinstance(excluded, str):
        return
    chosen_ends, excluded_ends = set(chosen), set(excluded)
    for name, of_one in names.items():
        is_named = _is_any_in(chosen_ends, of_one) and not _is_any_in(excluded_ends, of_one)
        if name in stored and not is_named:
            raise ValueError(f"unexpected tensors of {name}, which target_modules={chosen} omits")
        if is_named and name not in stored:
            raise ValueError(f"the tensors of {name} are missing, which target_modules names")


def _is_any_in(ends: set[str], names: Collection[str]) -> bool:
    parts = [name.split(".") for name in names]
    return any(".".join(of[first:]) in ends for of in parts for first in range(len(of)))
