from composed import logged
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from lora_mnist.progress import ProgressLines, TrainerProgress, progress


def test_lines_tell_where_a_run_is(monkeypatch):
    monkeypatch.setattr(ProgressLines, "first", 0)
    monkeypatch.setattr(ProgressLines, "every", 0)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    few = {"limit_val_batches": 2, "limit_test_batches": 2, "max_steps": 4}
    trainer = Trainer(accelerator="cpu", callbacks=[TrainerProgress()], **quiet, **few)
    with logged("lora_mnist.progress") as text:
        trainer.fit(BoringModel())
        trainer.test(BoringModel(), verbose=False)
    lines = [line.partition(", about")[0] for line in text.getvalue().splitlines()]
    for line in ("step 2 of 4", "step 3 of 4", "validation, batch 1 of 2", "test, batch 1 of 2"):
        assert line in lines
    assert not [line for line in lines if line.endswith(("4 of 4", "2 of 2"))]  # nothing is to go


def test_a_long_loop_is_told_of_and_a_short_one_is_not(monkeypatch):
    clock = iter([0.0, 0.5, 1.0, 1.5, 0.0, 70.0, 80.0, 100.0, 101.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with logged("lora_mnist.progress") as text:
        assert list(progress("abc", "short, letter", 3)) == ["a", "b", "c"]
        assert list(progress("abcd", "long, letter", 4)) == ["a", "b", "c", "d"]
    assert text.getvalue().splitlines() == [
        "long, letter 1 of 4, about 3 min 30 s to go",
        "long, letter 3 of 4, about 33 s to go",
    ]
