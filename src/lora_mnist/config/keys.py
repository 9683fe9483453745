"""The keys of each command, and the one check of a configuration against them."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf import DictConfig, OmegaConf, open_dict

from lora_mnist.config.run import Run, is_in
from lora_mnist.config.values import check_values
from lora_mnist.errors import UserError, format_value
from lora_mnist.project import COMMANDS, CONFIGS, expand_path

#: Commands with keys of their own; train.py has two, by its stages.
_STAGES = ("pretrain", "lora", *list(COMMANDS)[1:])
#: Keys of paths, without ``images``, which takes patterns and lists, and without networks' keys.
_PATHS = (
    *("paths.outputs", "paths.bases", "data.data_dir"),
    *("adapter", "base_ckpt", "ckpt_path", "mistakes", "out"),
)
# Hydra makes folders below paths.outputs before these are resolved.
OmegaConf.register_new_resolver("lora_mnist.at_home", lambda p: str(expand_path(p)), replace=True)
#: Groups in which a user may add any key: an argument of a function, or a name.
_OPEN = ("callbacks", "logger", "net", "sweep.columns", "trials")

# In a group that has any_keys among its defaults Hydra takes a new key without a + before it.
_any_keys = OmegaConf.create({})
OmegaConf.set_struct(_any_keys, False)
ConfigStore.instance().store("any_keys", _any_keys, provider="lora_mnist")


def resolve_configuration(cfg: DictConfig, run: Run | None = None) -> DictConfig:
    """Return a copy of ``cfg`` with the keys of its command alone, and with valid values.

    In the copy, ``target`` is resolved, ``paths.run`` is the run's folder, and no path begins with
    ``~``. Raise UserError for a key or a value that cannot be used. A second call changes nothing:
    the command line makes one before torch is imported, and each command makes its own.
    """
    given_keys = None if run is None or run.command_line is None else run.keys
    resolved = _own_keys(cfg, given_keys)
    _resolve_digit(resolved, given_keys or ())
    if run is not None:
        resolved.paths.run = str(run.folder)
        OmegaConf.to_container(resolved, resolve=True)  # raises for an unknown ${name}
    check_values(resolved)
    for key in _PATHS:
        if str(path := OmegaConf.select(resolved, key)).startswith("~"):
            OmegaConf.update(resolved, key, str(expand_path(path)))
    return resolved


def _own_keys(cfg: DictConfig, given_keys: Collection[str] | None) -> DictConfig:
    """Return a copy with the command's own keys. Raise UserError for an unknown key."""
    content: Any = OmegaConf.to_container(cfg)
    own, copied = list_command_keys(cfg.stage), cfg.copy()
    # Hydra finds some unknown keys on the command line, but none in a user's files.
    for name, value in content.items():
        _refuse_unknown_keys({name: value}, own if name in own else list_all_keys())
        if name in own:
            continue
        # A user's file may be for several commands. From Python each key counts as set.
        for key in [name] if given_keys is None else given_keys:
            if is_in(key, name) or (key == "augment" and name == "batches"):  # the group of it
                raise UserError(f"{key}: nothing reads this key with stage={cfg.stage}")
        with open_dict(copied):
            del copied[name]
    return copied


def _refuse_unknown_keys(
    content: Mapping[str, Any], known: Mapping[str, bool], group: str = ""
) -> None:
    """Raise for a key that is not ``known``, and for a value in place of a group."""
    for name, value in content.items():
        key = f"{group}{name}"
        if key not in known:
            raise UserError(describe_unknown_key(key))
        if not known[key] or (key == "trials" and value is None):
            continue
        if not isinstance(value, dict):
            chosen = f"to select a group, write 'defaults: [override /{key}: NAME]'"
            raise UserError(f"{key}: {format_value(value)}: expected keys and values; {chosen}")
        # A function may have more arguments than are configured.
        if key not in _OPEN and "_target_" not in value and f"{key}._target_" not in known:
            _refuse_unknown_keys(value, known, f"{key}.")


def _resolve_digit(cfg: DictConfig, given_keys: Collection[str]) -> None:
    """Resolve ``target`` and ``digit``, its other name; raise if they name different classes.

    ``target`` is ``${digit}`` until a file of the user's or the command line sets it.
    """
    digit, target = cfg.get("digit"), cfg.get("target")
    if "digit" in given_keys and "target" not in given_keys:
        cfg.target = digit  # the command line overrides a file
    elif "digit" not in given_keys and ("target" in given_keys or digit == "weakest"):
        return  # the user's target overrides the recipe's weakest
    elif digit not in (None, target):
        other = (
            f"expected no other class than target={format_value(target)}, since both mean the same"
        )
        raise UserError(f"digit={format_value(digit)}: {other}")


@cache
def list_command_keys(stage: str) -> dict[str, bool]:
    """Return the keys, by :func:`list_keys`, of a command, or of a stage of train.py."""
    name, overrides = (stage, []) if stage in COMMANDS else ("train", [f"stage={stage}"])
    if (CONFIGS / "local" / "default.yaml").is_file():
        overrides.append("~local@_global_")  # the user's
    around = get_gh_backup()  # the Hydra in which a command, or a caller in Python, runs
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(name, overrides)
    restore_gh_from_backup(around)
    return list_keys(OmegaConf.to_container(cfg))


def list_keys(nested: Any, group: str = "") -> dict[str, bool]:
    """Return each key of a configuration, groups before their keys, and whether it is a group."""
    keys = {}
    for name, value in nested.items():
        key = f"{group}{name}"
        keys[key] = isinstance(value, dict)
        if keys[key]:
            keys |= list_keys(value, f"{key}.")
    return keys


def list_all_keys() -> dict[str, bool]:
    """Return the keys of all commands."""
    keys: dict[str, bool] = {}
    for stage in _STAGES:
        keys |= list_command_keys(stage)
    return keys


def describe_unknown_key(key: str) -> str:
    """Return the message about an unknown key, with similar keys."""
    keys = [each for each in list_all_keys() if not is_in(each, "sweep.columns")]  # titles
    name, reason = key.rpartition(".")[2], "nothing reads this key"
    nearest = [each for each in keys if each != key and each.rpartition(".")[2] == name]
    if key in keys:
        readers = [stage for stage in _STAGES if key in list_command_keys(stage)]
        reason += f" here; it is a key of {', '.join(readers)}"
    else:
        nearest = nearest or get_close_matches(key, keys, cutoff=0)
    return f"{key}: {reason}" + (f"; the nearest: {', '.join(nearest)}" if nearest else "")
