"""The valid values of keys, checked before anything heavy is imported."""

import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from lora_mnist.errors import UserError, format_value
from lora_mnist.project import expand_path
from lora_mnist.run_paths import LAST_CHECKPOINT, list_finished

# Valid values are described in words that messages repeat: alternatives joined by " or ", each a
# kind of _KINDS, perhaps with bounds ("a number >= 0 and < 1"), or a string ("auto"), which may not
# have " or " in it.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "a whole number": lambda value: type(value) is int,
    "a number": lambda value: type(value) in (int, float) and math.isfinite(value),
    "a string": lambda value: isinstance(value, str),
    "a list": lambda value: isinstance(value, list | ListConfig),
    "a class": lambda value: isinstance(value, str | int | float),
    "a list of classes": lambda value: isinstance(value, list | ListConfig) and len(value) > 0,
    "true": lambda value: value is True,
    "false": lambda value: value is False,
    "null": lambda value: value is None,
    "-1": lambda value: type(value) is int and value == -1,
}
_SIGNS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
_MISSING = object()
_BATCHES = "a whole number >= 1 or a number > 0 and <= 1 or null"  # their number, or their share
#: The keys that a trial may set, and their valid values.
_OF_TRIAL = {
    "optimizer.lr": "a number >= 0 or auto",
    "loss.target_weight": "a number >= 0 and <= 1 or auto or null",
    "batches.augmented": "true or false or auto",
    "lora.dropout": "a number >= 0 and < 1 or auto",
}
#: The valid values of these keys; other keys are checked where they are read.
EXPECTED = _OF_TRIAL | {
    "seed": "a whole number >= 0 and <= 4294967295",
    "compile": "true or false",
    "figures": "true or false or null",
    "refit": "true or false or auto",
    "head": "true or false",
    "mistakes_test": "a number >= 0 and <= 1",
    "batches.batch_size": "a whole number >= 1 or auto",
    "batches.replay": "a whole number >= 0 or auto",
    "batches.seed": "a whole number >= 0 or null",
    "data.split_seed": "a whole number or null",
    "data.eval_batch_size": "a whole number >= 1 or null",
    "data.num_workers": "a whole number >= 0 or null",
    "net._target_": "a string or null",
    "data._target_": "a string or null",
    "target": "a class or a list of classes or weakest or weak or null",
    "accelerator": "auto or cpu or gpu or mps",
    "lora.rank": "a whole number >= 1 or auto",
    "lora.alpha": "a number > 0",
    "lora.init_std": "a number > 0",
    "lora.use_rslora": "true or false",
    "lora.scale": "a number or auto",
    "lora.offset": "a number or auto",
    "scale": "a number or auto or null",  # of a saved adapter; null: as it was saved
    "offset": "a number or auto or null",
    "choose_by": "mean_accuracy or balanced_accuracy or accuracy",
    "lora.target_modules": "a string or a list",
    "paths.outputs": "a string",
    "paths.bases": "a string",
    "ckpt_path": "a string or null",
    "trainer.max_steps": "a whole number >= 1 or -1 or auto",
    "trainer.max_epochs": "a whole number >= 1 or -1 or null",
    "trainer.log_every_n_steps": "a whole number >= 0 or null",
    "trainer.check_val_every_n_epoch": "a whole number >= 1 or null",
    "trainer.accumulate_grad_batches": "a whole number >= 1",
    "trainer.val_check_interval": "a number > 0 or a string or null",
    "trainer.limit_train_batches": _BATCHES,
    "trainer.limit_val_batches": "a whole number >= 0 or a number >= 0 and <= 1 or null",
    "trainer.limit_test_batches": _BATCHES,  # a run ends in a test
}


def accepts(expected: str, value: Any) -> bool:
    """Return whether ``value`` is of a kind in ``expected``; nan and inf are no numbers."""
    for each in expected.split(" or "):
        kind, *bounds = re.split(r" (?:and )?(?=[<>])", each)
        is_taken = _KINDS[kind](value) if kind in _KINDS else value == kind
        for bound in bounds:
            sign, number = bound.split()
            is_taken = is_taken and _SIGNS[sign](value, float(number))
        if is_taken:
            return True
    return False


def check_values(cfg: DictConfig) -> None:
    """Raise for a value that its key cannot have, in the configuration or in one of its trials."""
    for key in EXPECTED:
        value = OmegaConf.select(cfg, key, default=_MISSING)
        if value is not _MISSING:
            _check_value(key, value)
    of_trials = ", ".join(_OF_TRIAL)
    for name, values in (cfg.get("trials") or {}).items():
        if not isinstance(values, Mapping | None):
            raise UserError(f"trials.{name}={format_value(values)}: expected some of {of_trials}")
        for key, value in (values or {}).items():
            if key not in _OF_TRIAL:
                raise UserError(f"trials.{name}.{key}: expected some of {of_trials}")
            _check_value(key, value, f"trials.{name}.")
    path = cfg.get("ckpt_path")
    if path is not None and not (expand_path(path).is_file() or list_finished(expand_path(path))):
        raise UserError(
            f"ckpt_path={path}: no such file; expected a checkpoint of a training, "
            f"RUN/{LAST_CHECKPOINT}, or the folder RUN of a repair with finished trainings"
        )


def _check_value(key: str, value: Any, where: str = "") -> None:
    """Raise for a value that its key cannot have; a text like a number is shown as ``'-1'``."""
    if not accepts(EXPECTED[key], value):
        shown = format_value(value) if str(value).strip("+-.e0123456789") else repr(value)
        raise UserError(f"{where}{key}={shown}: expected {EXPECTED[key]}")
