import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from composed import composed
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lora_mnist.disk.checkpoint import Checkpoints
from lora_mnist.errors import UserError
from lora_mnist.show.tensorboard import Curves
from lora_mnist.trainer import build_trainer, trainer_at_work

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def build(folder: Path, *overrides: str, entry: str = "train", validates: bool = True) -> Trainer:
    stage = ["stage=pretrain"] if entry == "train" else []
    return build_trainer(composed(entry, *stage, "trainer=cpu", *overrides), folder, validates)


def test_everything_is_written_to_the_runs_folder(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    assert Path(trainer.default_root_dir) == tmp_path
    (logger,) = trainer.loggers
    assert isinstance(logger, TensorBoardLogger)
    assert Path(logger.log_dir) == tmp_path  # a base has no name of its own
    (checkpoint,) = trainer.checkpoint_callbacks
    assert Path(checkpoint.dirpath) == tmp_path / "checkpoints"
    assert trainer.max_epochs == 1
    assert trainer.limit_val_batches == 1.0


def test_another_place_for_checkpoints(tmp_path: Path) -> None:
    trainer = build(tmp_path, f"callbacks.checkpoint.dirpath={tmp_path}/elsewhere")
    assert Path(trainer.checkpoint_callback.dirpath) == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("overrides", "kinds"),
    [
        ((), [Checkpoints]),
        (("callbacks.checkpoint=null",), []),
        (("~callbacks.progress_bar",), [Checkpoints]),
        (("callbacks=averaging",), [Checkpoints, WeightAveraging]),
    ],
)
def test_callbacks(tmp_path: Path, overrides: tuple[str, ...], kinds: list[type]) -> None:
    found = [type(c) for c in build(tmp_path, *overrides).callbacks]
    assert [kind for kind in (Checkpoints, WeightAveraging) if kind in found] == kinds


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_only_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    bars = [c for c in build(tmp_path).callbacks if isinstance(c, ProgressBar)]
    assert len(bars) == is_terminal


@pytest.mark.parametrize(
    ("option", "kind"), [("tensorboard", TensorBoardLogger), ("csv", CSVLogger), ("none", None)]
)
def test_loggers(tmp_path: Path, option: str, kind: type | None) -> None:
    trainer = build(tmp_path, f"logger={option}")
    assert [type(logger) for logger in trainer.loggers] == ([kind] if kind else [])
    if option == "csv":
        trainer.logger.log_metrics({"a": 1}, 0)
        trainer.logger.save()
        assert (tmp_path / "csv" / "metrics.csv").is_file()
    assert not list(tmp_path.glob("events.*"))


def test_a_logger_that_asks_gets_a_name(tmp_path: Path) -> None:
    stage = ["stage=lora", "trainer=cpu"]
    for option, folder in (("tensorboard", "digit=9"), ("csv", "csv")):
        cfg = composed("train", *stage, f"logger={option}")
        trainer = build_trainer(cfg, tmp_path, name="digit=9")
        assert Path(trainer.logger.log_dir) == tmp_path / folder


@pytest.mark.parametrize(
    ("overrides", "interval", "epochs"),
    [
        (("trainer.max_steps=100",), 25, None),
        (("trainer.max_steps=3",), 1, None),
        (("trainer.max_steps=100", "+trainer.accumulate_grad_batches=2"), 50, None),
        ((), 0.25, 1),
        (("trainer.max_steps=100", "logger=none"), 1.0, 1),
        (("trainer.max_steps=100", "+trainer.val_check_interval=50"), 50, 1),
    ],
)
def test_a_logger_gets_a_curve(
    tmp_path: Path, overrides: tuple[str, ...], interval: float, epochs: int | None
) -> None:
    trainer = build(tmp_path, *overrides)
    assert trainer.val_check_interval == interval
    assert trainer.check_val_every_n_epoch == epochs
    curves = [c for c in trainer.callbacks if isinstance(c, Curves)]
    assert len(curves) == ("logger=none" not in overrides)


def test_a_job_of_a_sweep_is_validated_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: SimpleNamespace(mode=RunMode.MULTIRUN))
    assert build(tmp_path, "trainer.max_steps=100").val_check_interval == 1.0


def test_without_validation_images(tmp_path: Path) -> None:
    assert build(tmp_path, validates=False).limit_val_batches == 0


def test_an_entry_without_callbacks(tmp_path: Path) -> None:
    trainer = build(tmp_path, entry="eval")
    assert trainer.loggers == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+trainer.limit_test_batches=0", "trainer.limit_test_batches=0: expected > 0, since"),
        ("+trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0: expected an i"),
        ("+trainer.precision=bf16-true", "trainer.precision=bf16-true: expected 32-true or a mix"),
        ("trainer.devices=0", "trainer.devices=0: "),
        ("trainer.max_steps=-7", "trainer.max_steps=-7: "),
        ("+trainer.nope=1", "trainer: .*unexpected keyword argument 'nope'"),
        ("callbacks.checkpoint.nope=1", "callbacks.checkpoint: .*unexpected keyword argument"),
        ("callbacks.checkpoint.every_seconds=0", "callbacks.checkpoint.every_seconds=0: expected"),
        ("callbacks.checkpoint.every_steps=1.5", "callbacks.checkpoint.every_steps=1.5: expected"),
        (
            "+trainer.reload_dataloaders_every_n_epochs=1",
            "trainer.reload_dataloaders_every_n_epochs=1: expected 0, since the images",
        ),
        ("logger=csv", "logger: .*unexpected keyword argument 'nope'"),
        pytest.param(
            "trainer.accelerator=gpu",
            "trainer.accelerator=gpu: not on this machine; expected one of auto, cpu",
            marks=NO_GPU,
        ),
        ("trainer.accelerator=abacus", "trainer.accelerator=abacus: not on this machine; expected"),
    ],
)
def test_refuses_what_a_run_cannot_do(tmp_path: Path, override: str, message: str) -> None:
    nope = {"callbacks.checkpoint.nope=1": "+", "logger=csv": ""}
    overrides = [nope.get(override, "") + override]
    overrides += ["+logger.nope=1"] if override == "logger=csv" else []
    with pytest.raises(UserError, match=f"^{message}") as caught:
        build(tmp_path, *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("sweeping", "devices"), [(True, 2), (True, 1), (False, 2)])
def test_a_job_of_a_sweep_is_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweeping: bool, devices: int
) -> None:
    mode = RunMode.MULTIRUN if sweeping else RunMode.RUN
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: SimpleNamespace(mode=mode))
    overrides = ("trainer=ddp_sim", f"trainer.devices={devices}")
    if sweeping and devices > 1:
        with pytest.raises(UserError, match="trainer.devices=2: expected one process for each job"):
            build(tmp_path, *overrides)
    else:
        assert build(tmp_path, *overrides).world_size == devices


def test_what_lightning_finds_out_late_is_the_users_too() -> None:
    with pytest.raises(UserError, match=r"^trainer: You requested 0\.01 of it$"), trainer_at_work():
        raise MisconfigurationException("You requested\n 0.01 of it")
    with pytest.raises(RuntimeError), trainer_at_work():
        raise RuntimeError


def test_only_advice_on_workers_is_silenced() -> None:
    def warned() -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            advice = "The 'val_dataloader' does not have many workers which may be slow"
            with trainer_at_work():
                warnings.warn(advice, stacklevel=1)
                warnings.warn("something else", stacklevel=1)
        return [str(w.message) for w in caught]

    assert warned() == ["something else"]
