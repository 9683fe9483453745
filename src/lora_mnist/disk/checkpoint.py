"""Checkpoints: when they are written for bit-exact resumption, and the best one, which is kept.

Lightning writes them (``trainer.save_checkpoint``) and reads them (``trainer.fit(ckpt_path=...)``).
This file adds three things: a checkpoint is written whole or not at all (Lightning issue 19970), at
steps from which Lightning goes on to the same bits, and with the states of all random generators.
"""

import logging
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from lora_mnist.disk.files import atomic_write
from lora_mnist.disk.run_paths import LAST_CHECKPOINT

_info = rank_zero_only(logging.getLogger(__name__).info)
_warn = rank_zero_only(logging.getLogger(__name__).warning)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints whole or not at all, wherever they are."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        with atomic_write(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


class LastCheckpoint(Checkpoint):
    """Writes ``checkpoints/last.ckpt``: every so often, and when training ends.

    Lightning's ModelCheckpoint saves after any batch. Resumed at an epoch's last batch, or within
    accumulated gradients, Lightning 2.6 ends in other bits. So this callback saves after any
    optimizer step but an epoch's last. It saves at an epoch's end only if that epoch has one step
    or training ends there, even early.

    ``configs/callbacks/default.yaml`` explains the arguments.
    """

    def __init__(
        self,
        seconds: float | None = 10.0,
        every_n_train_steps: int | None = None,
    ) -> None:
        for name, value in {"seconds": seconds, "every_n_train_steps": every_n_train_steps}.items():
            if value is not None and (type(value) not in (int, float) or not value > 0):
                raise ValueError(f"{name}={value}: expected a number > 0, or null")
        self.seconds = seconds
        self.every_n_train_steps = every_n_train_steps
        self._saved, self._saved_step = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            # With min_steps Lightning goes on for a while after a callback has said to stop.
            stops = trainer.should_stop and trainer.global_step >= (trainer.min_steps or 0)
            self._save_if_due(trainer, ends=stops or trainer.global_step == trainer.max_steps)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        ends = last_epoch or trainer.global_step == trainer.max_steps or trainer.should_stop
        has_one_step = trainer.num_training_batches <= trainer.accumulate_grad_batches
        is_saved = self._saved_step == trainer.global_step
        if (ends and not is_saved) or (trainer.is_last_batch and has_one_step):
            self._save_if_due(trainer, ends)

    def _save_if_due(self, trainer: Trainer, ends: bool) -> None:
        due = ends
        if self.every_n_train_steps is not None:
            due |= trainer.global_step % self.every_n_train_steps == 0
        if self.seconds is not None:
            due |= time.monotonic() - self._saved >= self.seconds
        if trainer.world_size > 1:
            due = trainer.strategy.broadcast(due)  # the processes' clocks differ
        if due and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            path = Path(trainer.default_root_dir) / LAST_CHECKPOINT
            trainer.save_checkpoint(path, weights_only=False)
            self._saved, self._saved_step = time.monotonic(), trainer.global_step


class RandomStates(Callback):
    """Keeps the states of all random generators in each checkpoint.

    Each process has its own states; the checkpoint has all of them, by rank. On another kind of
    device training goes on without the state of the first, with a warning.
    """

    _states: Sequence[dict[str, Any]] = ()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        device = pl_module.device.type
        kind, keys, *rest = np.random.get_state(legacy=True)
        states: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": (kind, np.asarray(keys).tolist(), *rest),  # plain, for weights_only=True
            "device": device,
        }
        if device != "cpu":
            states["of_device"] = getattr(torch, device).get_rng_state()
        of_all = [states]
        if trainer.world_size > 1:
            of_all = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(of_all, states)
        checkpoint["random_states"] = of_all

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._states = checkpoint["random_states"]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore the states before the first step: code that ran before may have drawn numbers."""
        if not self._states:
            return
        states = self._states[trainer.global_rank]
        self._states = ()
        np.random.set_state(states["numpy"])
        random.setstate(states["python"])
        torch.set_rng_state(states["torch"])
        device = pl_module.device.type
        if states["device"] != device:
            _warn(
                "resume: this run began on %s and goes on on %s; its numbers will not be the same "
                "as on one of them",
                states["device"],
                device,
            )
        elif "of_device" in states:
            getattr(torch, device).set_rng_state(states["of_device"])


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written; 0 if there is none."""
    if not path.exists():
        return 0
    return int(torch.load(path, map_location="cpu", weights_only=True)["global_step"])


def load_and_validate_best(
    trainer: Trainer, module: LightningModule, data: LightningDataModule
) -> dict[str, Any] | None:
    """Load the best weights by a monitored value, if a callback has kept them.

    Returns:
        The monitor's name, its value and the step of these weights.
    """
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            path = callback.best_model_path
            value = float(callback.best_model_score)  # type: ignore[arg-type]
            best = {"monitor": callback.monitor, "value": value, "step": step_of(Path(path))}
            _info("best: %s=%g at step %d; these weights are tested and kept", *best.values())
            # Validation loads them, and need not be repeated before the test.
            trainer.validate(
                module, datamodule=data, ckpt_path=path, verbose=False, weights_only=True
            )
            return best
    return None
