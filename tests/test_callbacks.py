import io
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.demos.boring_classes import BoringModel

from lora_mnist.callbacks import ProgressBar


@pytest.mark.parametrize(("refresh_rate", "told"), [(1, 1), (10**9, 50)])
def test_is_told_of_a_step_as_often_as_it_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refresh_rate: int, told: int
) -> None:
    steps = []
    monkeypatch.setattr(
        RichProgressBar, "on_train_batch_end", lambda *arguments: steps.append(arguments[-1])
    )
    # One second for all of the training: the clock stands still.
    ticks = iter(range(1, 10**6))
    clock = (lambda: 100.0) if told == 1 else (lambda: float(next(ticks)))
    monkeypatch.setattr("lora_mnist.callbacks.time.monotonic", clock)
    bar = ProgressBar(refresh_rate)
    bar._console_kwargs = {"file": io.StringIO(), "force_terminal": True}
    trainer = Trainer(
        accelerator="cpu",
        max_steps=50,
        callbacks=[bar],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        limit_val_batches=0,
    )
    trainer.fit(BoringModel())
    assert len(steps) == told
    task = bar.train_progress_bar
    assert task.completed == 50
    assert task.description == "epoch 1"
