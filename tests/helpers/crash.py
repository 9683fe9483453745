"""A Lightning callback that ends a run in the middle of it, and what two runs have in common."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
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
            if name:
                os.kill(os.getpid(), getattr(signal, name))
            else:
                raise Crashed


#: The override that adds it to a run.
CRASH = "+callbacks.crash._target_=helpers.crash.Crash"


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every point that TensorBoard shows of a run: steps and values by tag."""
    files = sorted(folder.rglob("events.out.tfevents.*"))
    events = EventAccumulator(str(files[0].parent), {"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def left_by(folder: Path) -> dict[str, Any]:
    """All that a run leaves but its times: results, curves, and the state at its end."""
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    kept = ("state_dict", "current_model_state", "averaging_state", "optimizer_states")
    kept = (*kept, "lr_schedulers", "global_step", "going_on", "loss_window")
    found: dict[str, Any] = {"checkpoint": {key: last[key] for key in kept if key in last}}
    found["results"] = {k: v for k, v in read_results(folder).items() if k != "seconds"}
    found["curves"] = curves(folder)
    for file in folder.glob("adapter/*"):
        found[file.name] = file.read_bytes()
    return found


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two nested values differ by as much as a bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [d for key in one for d in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [d for n, (a, b) in pairs for d in differences(a, b, f"{path}/{n}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [path]
    # NaN equals nothing; its text does.
    return [] if one == other or repr(one) == repr(other) else [path]
