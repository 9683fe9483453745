import re
from typing import Any

import pytest
from composed import logged
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from lora_mnist.progress import TrainerProgress, progress


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
        callbacks=[TrainerProgress(first=0, every=0)],
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


def test_lines_tell_where_validation_and_test_are() -> None:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    shown = TrainerProgress(first=0, every=0)
    trainer = Trainer(accelerator="cpu", callbacks=[shown], limit_val_batches=2, **quiet)
    with logged("lora_mnist.progress") as text:
        trainer.validate(BoringModel(), verbose=False)
        trainer.test(BoringModel(), verbose=False)
    lines = [line.partition(", about")[0] for line in text.getvalue().splitlines()]
    expected = ["validation, batch 1 of 2", "validation, batch 2 of 2", "test, batch 1 of 64"]
    assert lines[:3] == expected


def test_a_long_loop_is_told_of_and_a_short_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.5, 1.0, 1.5, 0.0, 70.0, 80.0, 100.0, 101.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with logged("lora_mnist.progress") as text:
        assert list(progress("abc", "short, letter", 3)) == ["a", "b", "c"]
        assert list(progress("abcd", "long, letter", 4)) == ["a", "b", "c", "d"]
    assert text.getvalue().splitlines() == [
        "long, letter 1 of 4, about 3 min 30 s to go",
        "long, letter 3 of 4, about 33 s to go",
    ]
