"""Checkpoints from which training goes on to the very same end, and the record of a run.

They are Lightning's own, written by its ``ModelCheckpoint`` between two optimizer steps and read by
``trainer.fit(ckpt_path=...)``. What Lightning leaves out stands here: a file is whole or not there
at all (Lightning issue 19970), the states of all random generators, and a refusal to go on with
other settings or other images.
"""

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lora_mnist.disk.files import atomic_write
from lora_mnist.errors import UserError

#: In a run's folder.
CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"
RUN_FILE = "run.json"

#: Settings in which a run may differ from the one that it goes on with: none changes a number.
_FREE = ("resume", "figures", "paths.", "sweep.", "logger.", "callbacks.checkpoint.", "hydra.")
#: How far to train: as far as before, or farther.
_LIMITS = ("trainer.max_steps", "trainer.max_epochs")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints whole or not at all, wherever they are."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        buffer = BytesIO()  # it has no name: torch.save would write that of a file into it
        torch.save(checkpoint, buffer)
        with atomic_write(Path(path)) as temporary:
            temporary.write_bytes(buffer.getbuffer())


class LastCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint for the last state: every so often, and when training ends.

    Args:
        seconds: write one so often.
        every_n_train_steps: after so many steps instead.
        dirpath: the folder to write to; ``None``: ``checkpoints/`` in the run's folder.
    """

    def __init__(
        self,
        seconds: float | None = 10.0,
        every_n_train_steps: int | None = None,
        dirpath: str | None = None,
    ) -> None:
        interval = timedelta(seconds=seconds) if seconds and not every_n_train_steps else None
        super().__init__(
            dirpath,
            filename=Path(LAST).stem,
            train_time_interval=interval,
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        is_last_batch = batch_idx + 1 >= trainer.num_training_batches
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not is_last_batch:
            return  # gradients that are still accumulated would be lost
        ends = trainer.global_step == trainer.max_steps
        if is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs:
            ends = True
        if not ends:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        elif not trainer.fast_dev_run:  # type: ignore[attr-defined]
            assert self.dirpath is not None
            trainer.save_checkpoint(Path(self.dirpath) / LAST)


class RandomStates(Callback):
    """Keeps in each checkpoint the state of every generator that a network may draw from.

    Each process has states of its own; the checkpoint has those of all, by rank.
    """

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] = []

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        device = pl_module.device
        kind, keys, *rest = np.random.get_state(legacy=True)
        states: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": (kind, np.asarray(keys).tolist(), *rest),
        }
        if device.type != "cpu":
            states["device"] = getattr(torch, device.type).get_rng_state()
        of_all = [states]
        if trainer.world_size > 1:
            of_all = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(of_all, states)
        checkpoint["random_states"] = of_all
        checkpoint["accumulate_grad_batches"] = trainer.accumulate_grad_batches

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._states = checkpoint["random_states"]
        # Of a GradientAccumulationScheduler, which hears of the next epoch only.
        trainer.accumulate_grad_batches = checkpoint["accumulate_grad_batches"]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore the states before the first step: until then others may have drawn."""
        if not self._states:
            return
        states = self._states[trainer.global_rank]
        self._states = []
        kind, keys, *rest = states["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
        random.setstate(states["python"])
        torch.set_rng_state(states["torch"])
        if "device" in states:
            getattr(torch, pl_module.device.type).set_rng_state(states["device"])


@contextmanager
def recorded_run(folder: Path, settings: Mapping[str, Any], resume: object) -> Iterator[Path | None]:
    """Around a run from its first step to its last file; its folder is this process's meanwhile.

    Args:
        folder: the run's folder.
        settings: all that the run's numbers depend on: the configuration, the base's SHA-256, the
            SHA-256 of the images, the classes.
        resume: what the user called the run that is gone on with; ``None``: a new one.

    Yields:
        The checkpoint to go on from; ``None``: the beginning.

    Raises:
        UserError: if the run has finished, is still going, or had other settings.
    """
    record, last = folder / CHECKPOINTS / RUN_FILE, folder / CHECKPOINTS / LAST
    record.parent.mkdir(parents=True, exist_ok=True)
    flat = _flat(settings)
    lock = FileLock(record.with_name(".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        key = "hydra.run.dir" if resume is None else "resume"
        raise UserError(f"{key}={folder}: a run is still going there; expected one at a time") from error
    try:
        if resume is not None:
            _require_same_run(record, flat, resume)
        else:
            last.unlink(missing_ok=True)
        _write_record(record, flat, finished=False)
        yield last if last.exists() else None
        _write_record(record, flat, finished=True)
    finally:
        lock.release()


def _write_record(path: Path, settings: Mapping[str, Any], finished: bool) -> None:
    with atomic_write(path) as temporary:
        content = {"settings": settings, "finished": finished}
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def _require_same_run(path: Path, settings: Mapping[str, Any], resume: object) -> None:
    """Refuse settings other than those of the run, and a run with nothing left to do."""
    try:
        record = json.loads(path.read_text())
        before, finished = dict(record["settings"]), record["finished"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"resume={resume}: {path}: expected the record of a run") from error
    goes_farther = False
    # The outer keys first: others follow from them, as data.seed from seed.
    for key in sorted({*before, *settings}, key=lambda key: (key.count("."), key)):
        old, new = before.get(key), settings.get(key)
        if old == new or key.startswith(_FREE):
            continue
        if key in _LIMITS and _limit(new) > _limit(old):
            goes_farther = True
            continue
        expected = "null" if old is None else old
        steps = settings.get("trainer.max_steps")
        if key.startswith("scheduler.") and new == steps:
            raise UserError(f"trainer.max_steps={steps}: expected {old}, since {key} counts them")
        raise UserError(
            f"{key}={'null' if new is None else new}: expected {expected}, as in resume={resume}"
        )
    if finished and not goes_farther:
        raise UserError(
            f"resume={resume}: this run has finished; expected a larger trainer.max_steps or "
            "trainer.max_epochs to train it farther"
        )


def _limit(value: object) -> float:
    """A number of steps or epochs, where -1 and null mean no end."""
    return value if isinstance(value, int | float) and value >= 0 else float("inf")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1, "c": [2]}}`` as ``{"a.b": 1, "a.c": [2]}``, with JSON's values."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.loads(json.dumps(value, default=str))
    return flat
