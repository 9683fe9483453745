"""A run's folder while it trains: its lock, its settings, and whether a run may go on there."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only

from lora_mnist.disk.base import find_base
from lora_mnist.disk.files import read_json, write_json
from lora_mnist.disk.numbers import affects_results, flatten
from lora_mnist.disk.run_paths import LAST_CHECKPOINT, RUN_RECORD
from lora_mnist.errors import UserError

log = logging.getLogger(__name__)

#: These may differ, beside what :func:`.numbers.affects_results` leaves out: base and images are
#: compared by content, not by path. Another device brings a warning.
_FREE = (
    "base_ckpt",
    "data.data_dir",
    "mistakes",
    "device",
    "trainer.accelerator",
)
#: A scheduler's arguments that are the number of steps.
COUNTS_OF_STEPS = ("T_max", "total_iters", "total_steps")
#: These may grow: a run can be trained farther. trainer.max_time may change.
_LIMITS = ("trainer.max_steps", "trainer.max_epochs")


@contextmanager
def begin_run(
    folder: Path,
    settings: Mapping[str, Any],
    resume: object,
    rate: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Lock a run's folder from the first step to the last file; record its settings, and its end.

    ``settings`` are everything that its numbers depend on, and ``rate`` is the choice of its rate.
    ``resume`` is the run to go on with, as the user named it; ``None``: a new run; a last.ckpt left
    in its folder is deleted. ``UserError``, if the run has finished, is still going, or had other
    settings.
    """
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
        raise UserError(
            f"{key}={folder}: a run is still going there; expected one at a time"
        ) from error
    with lock:
        if resume is not None:
            _refuse_another_run(folder, flat, resume)
        else:
            last.unlink(missing_ok=True)
        content = {"settings": flat, "rate": rate}
        write_json(record, {**content, "finished": False})
        yield
        write_json(record, {**content, "finished": True})


def last_checkpoint(folder: Path, resume: object, choices: Mapping[str, Any]) -> Path | None:
    """The checkpoint to go on from in ``folder``; ``None``: a training begins at its first step.

    That of a training with other ``choices`` does not count: a repair that is trained farther may
    choose another dropout than before.
    """
    last = folder / LAST_CHECKPOINT
    if resume is None or not last.exists():
        return None
    checkpoint = torch.load(last, map_location="cpu", weights_only=True)
    return last if checkpoint["hyper_parameters"]["choices"] == choices else None


def recorded_rate(folder: Path) -> dict[str, Any] | None:
    """The choice of the rate with which the run in ``folder`` began; ``None``: it has not."""
    rate: dict[str, Any] | None = read_json(folder / RUN_RECORD).get("rate")
    return rate


def _refuse_another_run(folder: Path, settings: Mapping[str, Any], resume: object) -> None:
    """Refuse settings other than those of the run, and a run with nothing left to do."""
    record = json.loads((folder / RUN_RECORD).read_text())
    before, goes_farther = record["settings"], False
    # stage first, then outer keys before inner ones, which follow from them.
    keys = sorted({*before, *settings}, key=lambda key: (key != "stage", key.count("."), key))
    for key in keys:
        old, new = before.get(key), settings.get(key)
        if key == "device" and old != new:
            log.warning("device: this run began on %s, and %s rounds otherwise", old, new)
        if old == new or key in _FREE or not affects_results(key):
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
        if any(f"scheduler.{key}" in settings for key in COUNTS_OF_STEPS):
            raise UserError(
                f"resume={resume}: this run has finished, and cannot be trained farther, since its "
                "scheduler counts the steps; expected a new run"
            )
        raise UserError(
            f"resume={resume}: this run has finished; expected a larger trainer.max_steps, "
            "trainer.max_epochs or trainer.max_time to train it farther"
        )


def _limit(value: object) -> float:
    """A number of steps or epochs, where -1 and null mean no end."""
    return value if isinstance(value, int | float) and value >= 0 else float("inf")
