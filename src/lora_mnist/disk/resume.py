"""How a run goes on after a kill, to the same bits: its lock, its settings and its checkpoints."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from lora_mnist.data.plan import is_one_epoch
from lora_mnist.disk.base import find_base
from lora_mnist.disk.files import atomic_write, read_json, remove_leftovers, write_json
from lora_mnist.disk.numbers import affects_results, flatten
from lora_mnist.disk.run_paths import LAST_CHECKPOINT, RUN_RECORD
from lora_mnist.errors import UserError

log = logging.getLogger(__name__)

#: These may differ, beside what :func:`.numbers.affects_results` leaves out: base and images are
#: compared by content, not by path. Another device brings a warning.
_COMPARED_BY_CONTENT = ("base_ckpt", "data.data_dir", "mistakes", "device", "trainer.accelerator")
#: These may grow: a run can be trained farther. trainer.max_time may change.
_LIMITS = ("trainer.max_steps", "trainer.max_epochs")


@contextmanager
def begin_run(
    folder: Path,
    settings: Mapping[str, Any],
    resume: object,
    rate: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Lock a run's folder from the first step to the last file; record its settings and its end."""
    record, last = folder / RUN_RECORD, folder / LAST_CHECKPOINT
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        yield  # the first process, which started this one, has checked the settings
        return
    record.parent.mkdir(parents=True, exist_ok=True)
    flat = flatten(json.loads(json.dumps(settings, default=str)), into=dict)
    try:
        lock = FileLock(record.with_name(".lock"), timeout=0).acquire()
    except Timeout as error:
        key = "hydra.run.dir" if resume is None else "resume"
        raise UserError(f"{key}={folder}: a run is still going there") from error
    with lock:
        remove_leftovers(folder)
        if resume is not None:
            _refuse_another_run(folder, flat)
        else:
            last.unlink(missing_ok=True)
        content = {"settings": flat, "rate": rate}
        write_json(record, {**content, "finished": False})
        yield
        write_json(record, {**content, "finished": True})


def last_checkpoint(folder: Path, resume: object, trained_with: Mapping[str, Any]) -> Path | None:
    """The checkpoint to go on from in ``folder``; ``None``: a training begins at its first step.

    A repair that is trained farther may choose another dropout than before: then it begins anew.
    """
    last = folder / LAST_CHECKPOINT
    if resume is None or not last.exists():
        return None
    checkpoint = torch.load(last, map_location="cpu", weights_only=True)
    return last if checkpoint["hyper_parameters"]["trained_with"] == trained_with else None


def recorded_rate(folder: Path) -> dict[str, Any] | None:
    """The choice of the rate with which the run in ``folder`` began; ``None``: it has not."""
    return read_json(folder / RUN_RECORD).get("rate")


def _refuse_another_run(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse settings other than those of the run, and a run with nothing left to do."""
    resume = os.path.relpath(folder)  # which may have been typed as latest
    record = json.loads((folder / RUN_RECORD).read_text())
    before, goes_farther = record["settings"], False
    # stage first, then outer keys before inner ones, which follow from them.
    keys = sorted({*before, *settings}, key=lambda key: (key != "stage", key.count("."), key))
    for key in keys:
        old, new = before.get(key), settings.get(key)
        if key == "device" and old != new:
            log.warning("device: this run began on %s, and %s rounds otherwise", old, new)
        if old == new or key in _COMPARED_BY_CONTENT or not affects_results(key):
            continue
        if key.startswith("trainer.max_time") or (key in _LIMITS and _limit(new) > _limit(old)):
            goes_farther = True
            continue
        if key.startswith("data_sha256"):
            key = "mistakes" if "mistakes" in key else "data.data_dir"
            old, new = "the same images", settings.get(key)
        elif key == "base_sha256" and old and new:
            own = find_base(Path(str(settings["paths.bases"])), old)
            key, new = "base_ckpt", settings["base_ckpt"]
            old = f"base_ckpt={own}" if own else f"the base {old[:12]}"
        old, new = ("null" if value is None else value for value in (old, new))
        raise UserError(f"{key}={new}: expected {old}, as in resume={resume}")
    if record["finished"] and not (folder / LAST_CHECKPOINT).exists():
        raise UserError(f"resume={resume}: expected {folder / LAST_CHECKPOINT}, to go on from")
    if record["finished"] and not goes_farther:
        raise UserError(
            f"resume={resume}: this run has finished; expected a larger trainer.max_steps, "
            "trainer.max_epochs or trainer.max_time to train it farther"
        )


def _limit(value: object) -> float:
    """A number of steps or epochs, where -1 and null mean no end."""
    return value if isinstance(value, int | float) and value >= 0 else float("inf")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints whole or not at all (Lightning issue 19970)."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        with atomic_write(Path(path)) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """Read a checkpoint; if its folder was moved, its callbacks get their paths there."""
        checkpoint: dict[str, Any] = super().load_checkpoint(path, *args, **options)
        callbacks, here = checkpoint.get("callbacks", {}), str(Path(path).parent)
        for name, state in callbacks.items():
            if name.startswith(LastCheckpoint.__name__):
                return {**checkpoint, "callbacks": _moved(callbacks, state["dirpath"], here)}
        return checkpoint


def _moved(value: Any, there: str, here: str) -> Any:
    """A value in which paths below the folder ``there`` lie below ``here``."""
    if isinstance(value, dict):
        return {_moved(key, there, here): _moved(each, there, here) for key, each in value.items()}
    if isinstance(value, str) and value.startswith(there):
        return here + value.removeprefix(there)
    return value


class LastCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint of the last step, at steps from which Lightning goes on exactly.

    Lightning 2.6 saves after any batch. A run that is resumed there loses the gradients that were
    accumulated for a step, and the validation that was to follow; at an epoch's last batch it
    miscounts the epochs. So this callback saves after a whole step; where a validation follows,
    after that; and at an epoch's end only if either ``max_steps`` or ``max_epochs`` is not set. A
    training that was too short for any checkpoint has one of its last step.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take no step more where early stopping has ended the training before this process."""
        super().on_train_start(trainer, pl_module)
        for callback in trainer.early_stopping_callbacks:
            if callback.wait_count >= callback.patience:
                trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ends_epoch = trainer.is_last_batch and not is_one_epoch(trainer)
        if not ends_epoch and not _validation_follows(trainer):
            self._save_if_due(trainer, pl_module, ends=trainer.global_step == trainer.max_steps)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ends = trainer.should_stop or trainer.global_step == trainer.max_steps
        self._save_if_due(trainer, pl_module, ends)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.max_steps == -1:
            ends = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
            self._save_if_due(trainer, pl_module, ends)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save nothing: by now Lightning counts the epoch as finished, which it need not be."""

    def _save_if_due(self, trainer: Trainer, pl_module: LightningModule, ends: bool) -> None:
        batch_idx = trainer.fit_loop.batch_idx
        is_whole_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if trainer.state.fn != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if is_whole_step or trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, None, None, batch_idx)
            if ends:
                super().on_train_end(trainer, pl_module)  # saves if nothing was saved before


def _validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning validates after this batch of training, before the next."""
    every = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or not sum(trainer.num_val_batches):
        return False
    if every is not None and (trainer.current_epoch + 1) % every:
        return False
    if trainer.should_stop and trainer.global_step >= (trainer.min_steps or 0):
        return True
    if trainer.val_check_batch is None:  # by the clock: it may follow
        return True
    loop = trainer.fit_loop
    batch = loop.total_batch_idx if every is None else loop.batch_idx
    return bool((batch + 1) % trainer.val_check_batch == 0)


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written; 0 if there is none."""
    if not path.exists():
        return 0
    return int(torch.load(path, map_location="cpu", weights_only=True)["global_step"])


def load_best_weights(
    trainer: Trainer, module: LightningModule, data: LightningDataModule
) -> dict[str, Any] | None:
    """Load the best weights by a monitored value, if a callback has kept them; say which."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            path = callback.best_model_path
            value = float(callback.best_model_score)  # type: ignore[arg-type]
            best = {"monitor": callback.monitor, "value": value, "step": step_of(Path(path))}
            log.info("best: %s=%g at step %d; these weights are kept", *best.values())
            # Lightning's documented way to load the weights of a checkpoint, and the callbacks'.
            trainer.validate(
                module, datamodule=data, ckpt_path=path, verbose=False, weights_only=True
            )
            return best
    return None
