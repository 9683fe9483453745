"""Which keys a command takes, and what their values have to be: a configuration, checked once."""

import math
import operator
import posixpath
import re
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf, open_dict

from lora_mnist.config.command import Run, is_in, key_of
from lora_mnist.errors import UserError, as_value
from lora_mnist.project import CONFIGS

#: The commands, by the names of their configurations.
COMMANDS = ("train", "eval", "predict", "export", "demo")
#: The files that with their defaults have all keys.
_CONFIGS = (*COMMANDS, "stage/pretrain", "stage/lora")
#: Groups in which a user may add any key: it is handed on, or a name of the user's own.
_OPEN = ("callbacks", "logger", "net", "sweep.columns", "trials")

# Hydra takes a new key only with a + before it. In a group that has any_keys among its defaults it
# takes any.
_any_keys = OmegaConf.create({})
OmegaConf.set_struct(_any_keys, False)
ConfigStore.instance().store("any_keys", _any_keys, provider="lora_mnist")


def checked_copy(cfg: DictConfig, run: Run | None = None) -> DictConfig:
    """A copy of ``cfg`` with the keys of its command alone, the run's folder and one ``target``.

    A key that no command has is refused, and so are a value that a key cannot have, a value in
    place of a group and a typed key of another command: Hydra finds some of these on the command
    line, but none in a user's files. A copy of a copy is equal to it.
    """
    typed = None if run is None or run.typed is None else [key_of(text) for text in run.typed]
    content: Any = OmegaConf.to_container(cfg)
    _refuse_unknown_keys(content)
    checked = _without_groups_of_others(cfg, typed)
    _resolve_digit(checked, typed or ())
    if run is not None:
        checked.paths.run = str(run.folder)
        for key in sorted(dotted(content), key=lambda key: key.count(".")):  # ${seed} after seed
            OmegaConf.select(checked, key)  # raises for a ${name} of nothing
    check_values(checked)
    return checked


def _refuse_unknown_keys(content: Mapping[str, Any], group: str = "") -> None:
    """Refuse a key that no command has, and a value in place of a group.

    Not those in a value, such as a layer's name in ``lora.rank_pattern``, nor arguments of a
    function, of which there may be more than are configured.
    """
    known = all_keys()
    for name, value in content.items():
        key = f"{group}{name}"
        if key not in known:
            raise UserError(unknown_key(key))
        if not known[key] or (key == "trials" and value is None):
            continue
        if value is None:
            raise UserError(f"{key}: is empty; expected its keys, or no such line")
        if not isinstance(value, dict):
            chosen = f"a file chooses a group by 'defaults: [override /{key}: {as_value(value)}]'"
            raise UserError(f"{key}: {as_value(value)}: expected its keys; {chosen}")
        if key not in _OPEN and "_target_" not in value and f"{key}._target_" not in known:
            _refuse_unknown_keys(value, f"{key}.")


def _without_groups_of_others(cfg: DictConfig, typed: Collection[str] | None) -> DictConfig:
    """A copy without what only other commands and stages have, of which nothing may be typed."""
    own = keys_in(cfg.stage if cfg.stage in COMMANDS else "train")
    if cfg.stage not in COMMANDS:
        own = own | keys_in(f"stage/{cfg.stage}")
    checked = cfg.copy()
    for name in cfg:
        if name in own:
            continue
        # From Python each key is as good as typed.
        if typed is None or any(is_in(key, str(name)) for key in typed):
            raise UserError(f"{name!s}: nothing reads this key with stage={cfg.stage}")
        with open_dict(checked):
            del checked[name]
    return checked


def _resolve_digit(checked: DictConfig, typed: Collection[str]) -> None:
    """Make ``target`` what ``digit`` says: its other name, of which the typed one goes first.

    In the files ``target`` repeats ``digit``, which experiment=repair sets to ``weakest``.
    """
    digit, target, typed = (
        checked.get("digit"),
        checked.get("target"),
        {"digit", "target"} & {*typed},
    )
    if typed == {"digit"}:
        checked.target = digit
    elif typed == {"target"} or digit in (None, target) or (not typed and digit == "weakest"):
        return  # a file's own target goes before the recipe's digit
    else:
        other = f"expected no other class than target={as_value(target)}, since both mean the same"
        raise UserError(f"digit={as_value(digit)}: {other}")


@cache
def keys_in(name: str) -> dict[str, bool]:
    """:func:`dotted` of ``configs/NAME.yaml`` and of the files that its defaults choose."""
    text = (CONFIGS / f"{name}.yaml").read_text()
    content: Any = OmegaConf.to_container(OmegaConf.create(text))
    content.pop("hydra", None)
    folder, keys = posixpath.dirname(name), dict[str, bool]()
    for default in content.pop("defaults", ()):
        ((group, choice),) = default.items() if isinstance(default, dict) else [("", default)]
        path = posixpath.join(folder, group, str(choice)).lstrip("/")
        # Else it is _self_, null, or optional.
        if group != "hydra" and (CONFIGS / f"{path}.yaml").is_file():
            keys |= keys_in(path)
    header = re.match(r"# @package (\S+)", text)
    package = header[1] if header else folder.replace("/", ".")
    for group in reversed(package.replace("_global_", "").split(".")):
        content = {group: content} if group else content
    return keys | dotted(content)


def dotted(nested: dict[str, Any], group: str = "") -> dict[str, bool]:
    """All keys of a configuration, groups before what is in them, and whether each is a group."""
    keys = {}
    for name, value in nested.items():
        key = f"{group}{name}"
        keys[key] = isinstance(value, dict)
        if keys[key]:
            keys |= dotted(value, f"{key}.")
    return keys


def all_keys() -> dict[str, bool]:
    """The keys of all commands."""
    keys: dict[str, bool] = {}
    for name in _CONFIGS:
        keys |= keys_in(name)
    return keys


def unknown_key(key: str) -> str:
    """What to say of a key that this command has not: which are most like it."""
    keys = [each for each in all_keys() if not is_in(each, "sweep.columns")]  # titles
    name, reason = key.rpartition(".")[2], "nothing reads this key"
    nearest = [each for each in keys if each != key and each.rpartition(".")[2] == name]
    if key in keys:
        readers = [each.replace("/", "=") for each in _CONFIGS if key in keys_in(each)]
        reason += f" here; it is one of {', '.join(readers)}"
    else:
        nearest = nearest or get_close_matches(key, keys, cutoff=0)
    return f"{key}: {reason}" + (f"; the nearest: {', '.join(nearest)}" if nearest else "")


# --- values ---------------------------------------------------------------------------------------


def _are_ranks(value: Any) -> bool:
    """Whether ``value`` has a whole number >= 1 for each of some names."""
    return isinstance(value, dict) and all(
        takes("a whole number >= 1", each) for each in value.values()
    )


#: What a value has to be, in words.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "a whole number": lambda value: type(value) is int,
    "a number": lambda value: type(value) in (int, float) and math.isfinite(value),
    "a text": lambda value: isinstance(value, str),
    "a list": lambda value: isinstance(value, list),
    "ranks by name, as in {linear1: 4}": _are_ranks,
    "true": lambda value: value is True,
    "false": lambda value: value is False,
    "null": lambda value: value is None,
}
_SIGNS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
_MISSING = object()
_SHARE = "a number > 0 or null"  # of batches, or their number
#: The keys that a trial may set.
_OF_TRIAL = r"(optimizer|loss)\..+|scheduler(\..+)?|batches\.augment|lora\.dropout"
_OF_TRIALS = "keys of optimizer, scheduler and loss, batches.augment, or lora.dropout"
#: Keys whose values no part of a library refuses, or refuses too late, and what they take: the
#: types above with bounds, and words.
EXPECTED = {
    "seed": "a whole number >= 0 and <= 4294967295",
    "compile": "true or false",
    "figures": "true or false or null",
    "refit": "true or false or auto",
    "mistakes_test": "a number >= 0 and <= 1",
    "batches.batch_size": "a whole number >= 1 or auto",
    "batches.replay": "a whole number >= 0 or auto",
    "batches.seed": "a whole number >= 0 or null",
    "data.split_seed": "a whole number or null",
    "data.eval_batch_size": "a whole number >= 1 or null",
    "data.num_workers": "a whole number >= 0 or null",
    "net._target_": "a text or null",
    "data._target_": "a text or null",
    "accelerator": "auto or cpu or gpu or mps",
    "optimizer.lr": "a number >= 0 or auto",
    "lora.rank": "a whole number >= 1 or auto",
    "lora.alpha": "a number > 0",
    "lora.init_std": "a number >= 0",
    "lora.dropout": "a number >= 0 and < 1",
    "lora.use_rslora": "true or false",
    "lora.scale": "a number or auto",
    "lora.offset": "a number or auto",
    "scale": "a number or auto or null",
    "offset": "a number or auto or null",
    "choose_by": "balanced_accuracy or accuracy",
    "lora.target_modules": "a text or a list",
    "lora.rank_pattern": "ranks by name, as in {linear1: 4} or null",
    "paths.outputs": "a text",
    "paths.bases": "a text",
    "ckpt_path": "a text or null",
    "trainer.max_steps": "a whole number >= 1 or -1 or auto",
    "trainer.max_epochs": "a whole number >= 1 or -1 or null",
    "trainer.log_every_n_steps": "a whole number >= 0 or null",
    "trainer.accumulate_grad_batches": "a whole number >= 1",
    "trainer.check_val_every_n_epoch": "a whole number >= 1 or null",
    "trainer.val_check_interval": "a number > 0 or a text or null",
    "trainer.limit_train_batches": _SHARE,
    "trainer.limit_val_batches": "a number >= 0 or null",
    "trainer.limit_test_batches": _SHARE,  # a run ends in a test
}


def takes(expected: str, value: Any) -> bool:
    """Whether ``value`` is one of what ``expected`` names; nan and infinity are no numbers."""
    for each in expected.split(" or "):
        kind, *bounds = re.split(r" (?:and )?(?=[<>])", each)
        is_taken = _KINDS[kind](value) if kind in _KINDS else as_value(value) == kind
        for bound in bounds:
            sign, number = bound.split()
            is_taken = is_taken and _SIGNS[sign](value, float(number))
        if is_taken:
            return True
    return False


def check_values(cfg: DictConfig) -> None:
    """Refuse a value that its key cannot have, in the configuration or in one of its trials."""
    _check(cfg)
    for name, settings in settings_of_trials(cfg).items():
        _check(with_settings(cfg, settings), f"trials.{name}: ")


def _check(cfg: DictConfig, where: str = "") -> None:
    """Refuse a value that its key cannot have; ``where`` begins the line."""
    for key, expected in EXPECTED.items():
        value = OmegaConf.select(cfg, key, default=_MISSING)
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value)
        if value is not _MISSING and not takes(expected, value):
            raise UserError(f"{where}{key}={as_value(value)}: expected {expected}")


def settings_of_trials(cfg: DictConfig, typed: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """What each of ``trials`` sets, by key; a ``typed`` key counts for all of them."""
    # augment= and batches.augment= are the same.
    typed = [key.removeprefix("batches.") for key in typed]
    trials = {}
    for name, values in (cfg.get("trials") or {}).items():
        if not isinstance(values, Mapping | None):
            raise UserError(f"trials.{name}={as_value(values)}: expected {_OF_TRIALS}")
        settings: dict[str, Any] = {}
        for key, value in (values or {}).items():
            own = str(key).removeprefix("batches.")
            if not re.fullmatch(_OF_TRIAL, str(key)):
                raise UserError(f"trials.{name}: {key}: expected {_OF_TRIALS}")
            if not any(is_in(own, each) or is_in(each, own) for each in typed):
                settings[key] = value
        trials[name] = settings
    return trials


def with_settings(cfg: DictConfig, settings: Mapping[str, Any]) -> DictConfig:
    """A copy of ``cfg`` that has these values by key."""
    cfg = cfg.copy()
    for key, value in settings.items():
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return cfg
