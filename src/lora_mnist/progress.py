"""How far something is that takes its time: a bar on a terminal, else now and then a line."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import track

_info = rank_zero_only(logging.getLogger(__name__).info)
_T = TypeVar("_T")


class ProgressLines:
    """Logs a line soon after the start and then rarely, such as ``test, batch 3 of 8``."""

    first, every = 3.0, 30.0  # seconds before the first line, and between two

    def __init__(self, name: str, start: int = 0) -> None:
        self.name, self.start = name, start
        self._started = time.monotonic()
        self._next = self._started + self.first

    def say(self, count: float, total: float) -> None:
        """Say that ``count`` of ``total`` are done, and how long the rest takes, if it is time."""
        now = time.monotonic()
        if now < self._next or count in (self.start, total) or total == float("inf"):
            return
        self._next = now + self.every
        rate = (count - self.start) / (now - self._started)
        minutes, seconds = divmod(round((total - count) / rate), 60)
        text = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
        _info("%s %s of %s, about %s to go", self.name, f"{count:,}", f"{total:,}", text)


def progress(items: Iterable[_T], name: str, total: int) -> Iterator[_T]:
    """Yield ``items``, ``total`` in all, and show how far they are under ``name``."""
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        yield from items
    elif sys.stdout.isatty():
        yield from track(items, name, total, transient=True)
    else:
        lines = ProgressLines(name)
        for count, item in enumerate(items, start=1):
            yield item
            lines.say(count, total)


class TrainerProgress(Callback):
    """Lightning callback: the lines of training, validation and test, for a run without a bar."""

    _training: ProgressLines | None = None

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        step = trainer.global_step
        if self._training is None:  # the first step may have compiled the network
            self._training = ProgressLines("step", step)
        self._training.say(step, trainer.estimated_stepping_batches)

    def on_validation_start(self, trainer: Trainer, *args: Any) -> None:
        self._evaluation = ProgressLines("validation, batch")
        self._batch = 0

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._batch += 1
        self._evaluation.say(self._batch, sum(trainer.num_val_batches))

    def on_test_start(self, trainer: Trainer, *args: Any) -> None:
        self._evaluation = ProgressLines("test, batch")
        self._batch = 0

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._batch += 1
        self._evaluation.say(self._batch, sum(trainer.num_test_batches))
