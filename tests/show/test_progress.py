from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.nets import TinyNet
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.show.progress import StepsBar


class Recorded(StepsBar):
    """Notes what the bar says, whether it is drawn or not."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=2)
        self.seen: list[tuple[int, Any]] = []

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        self.seen.append((int(self.train_progress_bar.n), self.train_progress_bar.total))


def fit(tmp_path: Path, **settings: Any) -> Recorded:
    bar = Recorded()
    data = TensorDataset(torch.randn(10, 6), torch.zeros(10, dtype=torch.int64))
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=bar,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(ClassifierModule(TinyNet(), 3), DataLoader(data, 2), DataLoader(data, 5))
    assert "v_num" not in bar.get_metrics(trainer, trainer.lightning_module)
    return bar


def test_counts_to_max_steps_over_epochs(tmp_path: Path) -> None:
    bar = fit(tmp_path, max_steps=8)  # an epoch has five
    assert bar.seen == [(n, 8) for n in (0, 2, 2, 4, 4, 6, 6, 8)]


def test_counts_an_epochs_batches_without_max_steps(tmp_path: Path) -> None:
    assert fit(tmp_path, max_epochs=2).seen[-1] == (5, 5)


def test_validation_on_the_way_has_no_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, max_epochs=1)
    out = capsys.readouterr()
    assert "Validation" not in out.out + out.err
