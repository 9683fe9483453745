"""A Lightning callback that ends a run in the middle of it, and what two runs have in common."""

import csv
import os
import signal

from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.commands import read_results


class Crashed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


class Crash(Callback):
    """Ends the run before a step, counted from 0 over all epochs.

    Which one, and how, stands in the environment, so that the run that goes on has the same
    settings: ``CRASH=30`` raises, ``CRASH=30:SIGKILL`` sends the process a signal.
    """

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step, _, name = os.environ.get("CRASH", "-1").partition(":")
        if trainer.global_step == int(step):
            if not name:
                raise Crashed
            os.kill(os.getpid(), getattr(signal, name))


#: The override that adds it to a run.
CRASH = "+callbacks.crash._target_=helpers.crash.Crash"


def left_by(folder):
    """The results, adapter and losses that a run leaves, without its times.

    TensorBoard's curve is a list, so that a step that is logged twice shows. A run that goes on
    repeats steps in a second CSV file, so these losses are by step.
    """
    left = {k: v for k, v in read_results(folder).items() if k != "seconds"}
    for file in sorted(folder.glob("adapter/*.*")):
        left[file.name] = file.read_bytes()
    for file in sorted(folder.rglob("events.out.tfevents.*"))[:1]:
        events = EventAccumulator(str(file.parent), {"scalars": 0}).Reload()
        left["curve"] = [(event.step, event.value) for event in events.Scalars("train/loss")]
    losses = left["csv"] = {}
    for file in sorted(folder.rglob("metrics.csv")):
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                if row["train/loss"]:
                    losses[row["step"]] = row["train/loss"]
    return left


def differences(one, other):
    """The names of what differs between two runs."""
    return [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
