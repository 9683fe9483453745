"""Lightning's Trainer as a run has it: its callbacks, its loggers, how often it validates."""

from pathlib import Path
from typing import Any

import pytest
import torch
from composed import composed
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lora_mnist.errors import UserError
from lora_mnist.project import Run
from lora_mnist.settings import checked
from lora_mnist.trainer import make_trainer


def made(folder: Path, *overrides: str) -> Any:
    run = Run(folder)
    return make_trainer(checked(composed("train", "trainer=cpu", *overrides), run), run)


def test_loggers_and_callbacks_write_into_the_runs_folder(tmp_path: Path) -> None:
    trainer = made(tmp_path, "stage=lora", "logger=[csv,tensorboard]", "callbacks=best")
    csv, tensorboard = trainer.loggers
    assert isinstance(csv, CSVLogger)
    assert isinstance(tensorboard, TensorBoardLogger)
    assert {csv.save_dir, tensorboard.save_dir, trainer.default_root_dir} == {str(tmp_path)}
    _, best = trainer.checkpoint_callbacks
    assert best.dirpath == f"{tmp_path}/checkpoints"
    trainer = made(tmp_path, "stage=lora", "logger=none", "callbacks.checkpoint=null")
    assert trainer.loggers == trainer.checkpoint_callbacks == []


def test_lists_of_presets_keep_all(tmp_path: Path) -> None:
    presets = "callbacks=[best,early_stopping,rich,lr_monitor]"
    trainer = made(tmp_path, "stage=lora", presets, "logger=[csv,tensorboard]")
    names = {type(callback).__name__ for callback in trainer.callbacks}
    assert {"LastCheckpoint", "ModelCheckpoint", "EarlyStopping"} <= names
    assert {"RichModelSummary", "RichProgressBar", "LearningRateMonitor"} <= names
    assert len(trainer.loggers) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^trainer\.accelerator=gpu: .*; expected auto, or cpu$"):
        made(tmp_path, "stage=lora", "trainer.accelerator=gpu")
