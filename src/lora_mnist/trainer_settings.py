"""Which values Lightning's Trainer and its callbacks can be given.

Of bad values the Trainer refuses some as it is made and others in the middle of a run; with the
rest it fails without naming them.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from omegaconf import DictConfig

from lora_mnist.errors import UserError
from lora_mnist.lora import is_number


class _Accepted(NamedTuple):
    """What a key accepts: a test, and how to say it."""

    test: Callable[[Any], bool]
    expected: str


def check_settings(settings: DictConfig) -> None:
    """Refuse values that no Trainer can work with, or that no run here could end well with.

    Args:
        settings: ``cfg.trainer``; keys that are not listed below are the Trainer's to check.

    Raises:
        UserError: naming the key, its value and what is accepted.
    """
    for key, accepted in _ACCEPTED.items():
        if key in settings and not accepted.test(value := settings[key]):
            told = "null" if value is None else value
            raise UserError(f"trainer.{key}={told}: expected {accepted.expected}")


def check_callbacks(callbacks: DictConfig | None) -> None:
    """Refuse what describes no callback, and no folder for one to write to.

    Args:
        callbacks: ``cfg.callbacks``, by name; null switches one off.

    Raises:
        UserError: naming the key, its value and what is accepted.
    """
    for name, callback in ((str(k), v) for k, v in (callbacks or {}).items()):
        if not isinstance(callback, DictConfig | None):
            raise UserError(f"callbacks.{name}={callback}: expected null, or a _target_")
        folder = callback.get("dirpath") if callback else None
        if not isinstance(folder, str | None):
            raise UserError(f"callbacks.{name}.dirpath={folder}: expected a folder, or null")


def _whole(least: int) -> _Accepted:
    return _Accepted(lambda v: type(v) is int and v >= least, f"an integer >= {least}")


def _or_null(accepted: _Accepted) -> _Accepted:
    return _Accepted(lambda v: v is None or accepted.test(v), f"{accepted.expected}, or null")


def _is_amount(value: object) -> bool:
    """Whether it is a number of batches, or a share of them."""
    return (type(value) is int and value >= 0) or (type(value) is float and 0 <= value <= 1)


def _is_interval(value: object) -> bool:
    """Whether it is a number of steps, a share of an epoch, or one of Lightning's times."""
    return isinstance(value, str) or (_is_amount(value) and value != 0)


#: Each is a process of its own; more would only be in each other's way.
_MOST_DEVICES = 8 * (os.cpu_count() or 1)

_FLAG = _Accepted(lambda v: isinstance(v, bool), "true or false")
_AMOUNT = _or_null(_Accepted(_is_amount, "batches (an integer >= 0) or a share (0.0 to 1.0)"))

_ACCEPTED = {
    "devices": _Accepted(
        lambda v: type(v) is not int or v <= _MOST_DEVICES, f"at most {_MOST_DEVICES} here"
    ),
    "num_nodes": _whole(1),
    "max_steps": _whole(-1),
    "max_epochs": _or_null(_whole(-1)),
    "min_steps": _or_null(_whole(0)),
    "min_epochs": _or_null(_whole(0)),
    "max_time": _or_null(_Accepted(lambda v: isinstance(v, str), "'DD:HH:MM:SS'")),
    "log_every_n_steps": _or_null(_whole(0)),
    "num_sanity_val_steps": _or_null(_whole(-1)),
    "check_val_every_n_epoch": _or_null(_whole(1)),
    "val_check_interval": _or_null(
        _Accepted(_is_interval, "steps (an integer >= 1) or a share of an epoch (0.0 to 1.0)")
    ),
    "accumulate_grad_batches": _whole(1),
    "gradient_clip_val": _or_null(
        _Accepted(lambda v: is_number(v) and v >= 0, "a finite number >= 0")
    ),
    "reload_dataloaders_every_n_epochs": _Accepted(
        lambda v: v == 0,
        "0, since the images stay in memory, and would come in the same order again",
    ),
    "fast_dev_run": _Accepted(
        lambda v: isinstance(v, int) and v >= 0, "true, false or an integer >= 0"
    ),
    "profiler": _or_null(
        _Accepted(lambda v: isinstance(v, str | DictConfig), "simple, advanced or a _target_")
    ),
    **dict.fromkeys(
        ["gradient_clip_algorithm", "model_registry"],
        _or_null(_Accepted(lambda v: isinstance(v, str), "a name")),
    ),
    **dict.fromkeys([f"limit_{kind}_batches" for kind in ("train", "val", "test")], _AMOUNT),
    **dict.fromkeys(["limit_predict_batches", "overfit_batches"], _AMOUNT),
    **dict.fromkeys(["enable_checkpointing", "enable_progress_bar"], _or_null(_FLAG)),
    **dict.fromkeys(["enable_model_summary", "benchmark"], _or_null(_FLAG)),
    **dict.fromkeys(["inference_mode", "use_distributed_sampler", "detect_anomaly"], _FLAG),
    **dict.fromkeys(["barebones", "sync_batchnorm", "enable_autolog_hparams"], _FLAG),
}
