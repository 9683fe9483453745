"""A Lightning callback that ends a run in the middle of it, and what two runs have in common."""

import csv
import os
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.commands import read_results


class Crashed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


class Crash(Callback):
    """Ends the run before a step, counted from 0 over all epochs.

    Which one, and how, stands in the environment, so that the run that goes on has the same
    settings: ``CRASH=30`` raises, ``CRASH=30:SIGKILL`` sends the process a signal.
    """

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step, _, name = os.environ.get("CRASH", "-1").partition(":")
        if trainer.global_step == int(step):
            if not name:
                raise Crashed
            os.kill(os.getpid(), getattr(signal, name))


#: The override that adds it to a run.
CRASH = "+callbacks.crash._target_=helpers.crash.Crash"


def left_by(folder: Path) -> dict[str, Any]:
    """What a run leaves that does not tell the time: results, adapter, and the curve of its loss.

    The curve is a list of steps and losses, so that one that was logged twice is noticed; of CSV
    files, in which a run that goes on says again what it had said, a dictionary.
    """
    found: dict[str, Any] = {k: v for k, v in read_results(folder).items() if k != "seconds"}
    for file in sorted(folder.glob("adapter/*.*")):
        found[file.name] = file.read_bytes()
    for file in sorted(folder.rglob("events.out.tfevents.*"))[:1]:
        events = EventAccumulator(str(file.parent), {"scalars": 0}).Reload()
        found["curve"] = [(event.step, event.value) for event in events.Scalars("train/loss")]
    losses = found["csv"] = {}
    for file in sorted(folder.rglob("metrics.csv")):
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                if row["train/loss"]:
                    losses[row["step"]] = row["train/loss"]
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names under which two runs left something else."""
    return [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
