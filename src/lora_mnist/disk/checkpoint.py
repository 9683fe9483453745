"""Checkpoints from which training goes on in the middle of an epoch, to the very same end.

A checkpoint holds what Lightning keeps, the place in the order of the images, and the state of
every generator of random numbers. The last two are kept: ``last.ckpt`` and ``previous.ckpt``.
"""

import random
import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.optim import Optimizer

from lora_mnist.data.sampler import Place
from lora_mnist.disk.files import atomic_write
from lora_mnist.weights_file import Limits, read_weights_file

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"

#: At most one part in so many of the time goes into checkpoints that are written by the clock.
_SHARE = 100
#: How many numbers numpy's generator holds.
_MT19937 = 624

#: What :func:`read_checkpoint` insists on.
_KEYS = {"state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step", "going_on"}


class Checkpoints(Checkpoint):
    """Lightning callback: writes checkpoints to go on from, the last one when training ends.

    Each is taken between two steps. SIGINT and SIGTERM are answered there too: the step is
    finished and kept before the command ends.

    Args:
        dirpath: the folder to write them to.
        every_seconds: write one so often, or less often where writing takes more than a hundredth
            of that; ``None``: not by the clock.
        every_steps: write one after so many steps; ``None``: not by steps.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self, dirpath: str, every_seconds: float | None = 10.0, every_steps: int | None = None
    ) -> None:
        super().__init__()
        if every_seconds is not None and (
            type(every_seconds) not in (int, float) or not every_seconds > 0
        ):
            raise ValueError(f"every_seconds={every_seconds}: expected a number > 0, or null")
        if every_steps is not None and (type(every_steps) is not int or every_steps < 1):
            raise ValueError(f"every_steps={every_steps}: expected an integer >= 1, or null")
        self.dirpath = Path(dirpath)
        self.every_seconds = every_seconds
        self.every_steps = every_steps
        self._due = 0.0
        self._saving = False
        self._to_restore: Mapping[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._due = time.monotonic() + (self.every_seconds or 0)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save what stands when the step before is done, its validation and its log included."""
        if self._to_restore is not None:
            for optimizer in trainer.optimizers:
                _require_own_sizes(optimizer)
            self._restore_random_states(trainer)
            if trainer.progress_bar_callback is not None:  # it has not been told of the epoch
                trainer.progress_bar_callback.on_train_epoch_start(trainer, pl_module)
        # Gradients that are still accumulated would be lost; an epoch's first batch is too late,
        # since Lightning has begun the epoch.
        if not batch_idx or batch_idx % trainer.accumulate_grad_batches:
            return
        if self._is_due(trainer.global_step):
            self._save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ends = trainer.should_stop or trainer.global_step == trainer.max_steps
        ends = ends or trainer.current_epoch + 1 == trainer.max_epochs
        if ends or self._is_due(trainer.global_step):
            self._save(trainer, pl_module)

    def _is_due(self, step: int) -> bool:
        if self.every_steps is not None and step % self.every_steps == 0:
            return True
        return self.every_seconds is not None and time.monotonic() >= self._due

    def _save(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        if not all(p.isfinite().all() for p in module.parameters() if p.requires_grad):
            return  # the next step will say so; the last good one stays
        started = time.monotonic()
        for logger in trainer.loggers:
            logger.save()  # a point in the log that the checkpoint is past will not be drawn again
        self._saving = True
        try:
            # Trainer.save_checkpoint would wait for the other processes, whose clocks differ.
            content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        finally:
            self._saving = False
        last = self.dirpath / LAST
        if last.exists():
            last.replace(self.dirpath / PREVIOUS)
        trainer.strategy.save_checkpoint(content, last)
        now = time.monotonic()
        self._due = now + max(self.every_seconds or 0, _SHARE * (now - started))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what Lightning leaves out, to checkpoints that this callback writes."""
        if not self._saving:
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress
        epoch, batch = trainer.current_epoch, progress.current.completed
        if batch >= trainer.num_training_batches:
            epoch, batch = epoch + 1, 0
        place = trainer.datamodule.order.place(batch, progress.total.completed)  # type: ignore[attr-defined]
        checkpoint["going_on"] = {
            "epoch": epoch,
            "place": tuple(place),
            "random": _random_states(pl_module.device),
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._to_restore = checkpoint["going_on"]
        place = Place(*checkpoint["going_on"]["place"])
        _require_reachable(place, checkpoint, trainer)
        trainer.datamodule.start = place  # type: ignore[attr-defined]
        _set_progress(checkpoint["loops"]["fit_loop"], checkpoint["going_on"]["epoch"], place)

    def _restore_random_states(self, trainer: Trainer) -> None:
        assert self._to_restore is not None
        _set_random_states(self._to_restore["random"], trainer.strategy.root_device)
        if not Place(*self._to_restore["place"]).batch:
            loader: Any = trainer.train_dataloader
            iter(loader)  # it draws from the generators as an epoch begins
        self._to_restore = None


def _require_reachable(place: Place, checkpoint: Mapping[str, Any], trainer: Trainer) -> None:
    """Refuse a place so far on that it would take for ever to draw what lies before it."""
    epoch, steps = checkpoint["going_on"]["epoch"], checkpoint["global_step"]
    images = len(trainer.datamodule.train_set)  # type: ignore[attr-defined]
    most = min((epoch + 1) * images, (steps + 1) * trainer.accumulate_grad_batches)
    if not (epoch <= place.batches <= most and place.shuffles <= 2 * (epoch + 1)):
        raise ValueError(f"no run comes to {place} in {steps} steps")


def _require_own_sizes(optimizer: Optimizer) -> None:
    """Refuse what an optimiser keeps of a parameter, if it has another size than that.

    A fused step would not look, and write over memory that belongs to something else.
    """
    if "fused" not in optimizer.defaults:
        return
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if not isinstance(value, Tensor) or value.shape == ():
                continue
            alike = value.shape == parameter.shape and value.layout == parameter.layout
            if not alike or value.stride() != parameter.stride():
                raise ValueError(f"the optimizer's {name} has another size than its parameter")


def _set_progress(loops: dict[str, Any], epoch: int, place: Place) -> None:
    """Tell Lightning's loops that they are between two batches of ``epoch``.

    Lightning goes on in the middle of an epoch only from counts as they are while a batch ends:
    that batch is processed, but not completed, and its step not yet counted.
    """

    def counts(ready: int, processed: int, completed: int) -> dict[str, int]:
        return {"ready": ready, "started": ready, "processed": processed, "completed": completed}

    of_epochs = counts(epoch + 1, epoch, epoch)
    loops["epoch_progress"] = {"total": of_epochs, "current": dict(of_epochs)}
    loops["epoch_loop.batch_progress"] = {
        "total": counts(place.batches, place.batches, place.batches - 1),
        "current": counts(place.batch, place.batch, place.batch - 1),
        "is_last_batch": False,
    }
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def _random_states(device: torch.device) -> dict[str, Any]:
    """The state of every generator that a network may draw from, in plain values and tensors."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (kind, torch.tensor(np.asarray(keys).tolist()), *rest),
    }
    if device.type != "cpu":
        states["device"] = getattr(torch, device.type).get_rng_state()
    return states


def _set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    kind, keys, position, *rest = states["numpy"]
    if not 0 <= position <= _MT19937:  # numpy would read on behind its memory
        raise ValueError(f"numpy's generator at {position} of {_MT19937} numbers")
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, *rest))
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if device.type != "cpu" and "device" in states:
        getattr(torch, device.type).set_rng_state(states["device"])


def read_checkpoint(path: Path, most: Limits) -> dict[str, Any]:
    """A checkpoint that :class:`Checkpoints` has written, checked for damage.

    Nothing is unpickled but plain values and tensors.

    Args:
        path: the file.
        most: how much it may hold; see :func:`lora_mnist.weights_file.limits`.

    Raises:
        ValueError: if it is damaged or something else.
        FileNotFoundError: if it is not there.
    """
    try:
        # The checksums find a flipped bit, which torch.load does not.
        content = read_weights_file(path, most, check_sums=True)
        missing = _KEYS - content.keys() if isinstance(content, dict) else _KEYS
        if missing:
            raise ValueError(f"without {', '.join(sorted(missing))}")
        numbers = [content["global_step"], content["going_on"]["epoch"]]
        numbers += content["going_on"]["place"]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"at {numbers}")
    except FileNotFoundError:
        raise
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no checkpoint, or damaged ({error})") from error
    checkpoint: dict[str, Any] = content
    return checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints whole or not at all, wherever they are."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        buffer = BytesIO()  # it has no name: torch.save would write that of a file into it
        torch.save(checkpoint, buffer)
        with atomic_write(Path(path)) as temporary:
            temporary.write_bytes(buffer.getbuffer())
