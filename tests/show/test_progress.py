import re
from typing import Any

import pytest
from composed import logged
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from lora_mnist.show.progress import ProgressLines


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ({"max_steps": 4}, [r"step 2 of 4, about 0 s to go", r"step 3 of 4.*", r"step 4 of 4.*"]),
        ({"max_epochs": 1, "limit_train_batches": 2}, [r"step 2 of 2, about 0 s to go"]),
    ],
)
def test_lines_tell_where_training_is(length: dict[str, Any], expected: list[str]) -> None:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[ProgressLines(first=0, every=0)],
        enable_model_summary=False,
        limit_val_batches=0,
        **quiet,
        **length,
    )
    with logged("lora_mnist.progress") as text:
        trainer.fit(BoringModel())
    lines = text.getvalue().splitlines()
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line)
