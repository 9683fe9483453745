"""Values that Lightning would take, and fail on later, are refused by key."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from lora_mnist.errors import UserError
from lora_mnist.trainer_settings import check_callbacks, check_settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": None}, "trainer.max_steps=null: expected an integer >= -1"),
        ({"max_steps": float("inf")}, "trainer.max_steps=inf: expected an integer >= -1"),
        ({"max_steps": True}, "trainer.max_steps=True: expected an integer >= -1"),
        ({"max_epochs": [1]}, r"trainer.max_epochs=\[1\]: expected an integer >= -1, or null"),
        ({"check_val_every_n_epoch": 0}, "trainer.check_val_every_n_epoch=0: expected an integer"),
        ({"log_every_n_steps": ""}, "trainer.log_every_n_steps=: expected an integer >= 0"),
        ({"limit_val_batches": 1.5}, "trainer.limit_val_batches=1.5: expected batches"),
        ({"limit_test_batches": float("nan")}, "trainer.limit_test_batches=nan: expected batches"),
        ({"overfit_batches": 1e308}, r"trainer.overfit_batches=1e\+308: expected batches"),
        ({"val_check_interval": 0}, "trainer.val_check_interval=0: expected steps"),
        ({"gradient_clip_val": -1}, "trainer.gradient_clip_val=-1: expected a finite number >= 0"),
        ({"max_time": 0.5}, "trainer.max_time=0.5: expected 'DD:HH:MM:SS', or null"),
        ({"fast_dev_run": "x"}, "trainer.fast_dev_run=x: expected true, false or an integer"),
        ({"enable_model_summary": "no"}, "trainer.enable_model_summary=no: expected true or false"),
        ({"detect_anomaly": None}, "trainer.detect_anomaly=null: expected true or false"),
        ({"devices": 10**9}, "trainer.devices=1000000000: expected at most"),
        ({"profiler": -0.5}, "trainer.profiler=-0.5: expected simple, advanced or"),
    ],
)
def test_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        check_settings(OmegaConf.create(settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"max_steps": -1, "max_epochs": None, "devices": 2},
        {"max_steps": 10**30, "max_time": "00:00:01:00", "devices": "auto"},
        {"limit_val_batches": 0.5, "limit_train_batches": 7, "val_check_interval": 0.25},
        {"fast_dev_run": True, "gradient_clip_val": 0.5, "profiler": {"_target_": "some.Profiler"}},
        {"some_new_key": object},
    ],
)
def test_accepts(settings: dict[str, Any]) -> None:
    check_settings(OmegaConf.create(settings, flags={"allow_objects": True}))


def test_callbacks() -> None:
    good = {"a": {"_target_": "some.Callback", "dirpath": None}, "b": None, "c": {"dirpath": "x"}}
    check_callbacks(OmegaConf.create(good))
    check_callbacks(None)
    with pytest.raises(UserError, match="^callbacks.a=3: expected null, or a _target_"):
        check_callbacks(OmegaConf.create({"a": 3}))
    with pytest.raises(UserError, match=r"^callbacks.a.dirpath=\[1\]: expected a folder, or null"):
        check_callbacks(OmegaConf.create({"a": {"dirpath": [1]}}))
