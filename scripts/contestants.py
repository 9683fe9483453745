"""The contestants of the benchmark: the same work done by each side, timed.

Each side works in a process of its own, so what it asks of the C library's allocator, of torch and
of Python helps nobody else. What a side needs for a measurement is built before its clock starts.
"""

import gc
import logging
import multiprocessing
import os
import pty
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import notebook
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from torch import Tensor, nn

from lora_mnist import MLP, add_lora
from lora_mnist.build import add_configured_lora, build_data, build_module, build_net, build_trainer
from lora_mnist.memory import keep_freed_memory

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "outputs" / "benchmark"
Contestant = Callable[[], float]
Batches = list[tuple[Tensor, Tensor]]


class Side:
    """A process that measures for one side.

    Args:
        start: what the side does first in it.
        fresh: whether every measurement has a new one.
    """

    def __init__(self, start: Callable[[], Any] = int, fresh: bool = False) -> None:
        self._start = start
        self._process = None if fresh else self._new_process()

    def __call__(self, work: Callable[..., float], *arguments: Any) -> Contestant:
        """A contestant: what ``work`` returns there."""
        return lambda: self._measure(work, *arguments)

    def _measure(self, work: Callable[..., float], *arguments: Any) -> float:
        if self._process:
            return self._process.submit(work, *arguments).result()
        with self._new_process() as process:
            return process.submit(work, *arguments).result()

    def _new_process(self) -> ProcessPoolExecutor:
        # Each is forked from one that has imported everything and computed nothing.
        context = multiprocessing.get_context("forkserver")
        return ProcessPoolExecutor(1, context, _start_side, (self._start,))


def _start_side(start: Callable[[], Any]) -> None:
    quiet_lightning()
    start()


def quiet_lightning() -> None:
    """Keep its notices and warnings from standing between the tables."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")


def all_sides() -> dict[str, Side]:
    return {
        # Its megabytes of dense products make its speed hang on the heap's state: twice as fast
        # where an earlier measurement happens to have left a block at the heap's end.
        "notebook": Side(fresh=True),
        "floor": Side(),
        "PEFT": Side(),
        "ours": Side(start=_begin_as_a_run),
    }


def _begin_as_a_run() -> None:
    keep_freed_memory()
    gc.freeze()  # what lasting_imports does around the imports, which are over here


def configure(*overrides: str) -> DictConfig:
    """The configuration of ``python train.py ...``, with folders that do not depend on Hydra."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", [f"paths.root={ROOT}", f"paths.run={OUTPUT}/run", *overrides])


class Stopwatch(Callback):
    """Steps a second, from the first batch to the last."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.rate = trainer.global_step / (time.perf_counter() - self.started)


@contextmanager
def terminal() -> Iterator[None]:
    """Make standard output a terminal, so that progress is shown as users see it, and drop it."""
    master, slave = pty.openpty()

    reader = threading.Thread(target=_read_all, args=[master])
    reader.start()
    outside, sys.stdout = sys.stdout, os.fdopen(slave, "w")
    try:
        yield
    finally:
        sys.stdout.close()
        sys.stdout = outside
        reader.join()


def _read_all(master: int) -> bytes:
    """The end of what is written to a terminal until it is closed."""
    written = b""
    with suppress(OSError):  # Linux reports the closed terminal so
        while chunk := os.read(master, 65_536):
            written = (written + chunk)[-2000:]
    os.close(master)
    return written


def fit_ours(steps: int, *overrides: str) -> float:
    """Steps a second through ``Trainer.fit`` with progress, logging and checkpoint."""
    cfg = configure(f"trainer.max_steps={steps}", *overrides)
    torch.manual_seed(0)
    net = build_net(cfg)
    if "lora" in cfg:
        add_configured_lora(cfg, net)
    watch, data = Stopwatch(), build_data(cfg)
    with terminal():
        trainer = build_trainer(cfg)
        trainer.callbacks.append(watch)  # type: ignore[attr-defined]
        trainer.fit(build_module(cfg, net, data, None), datamodule=data)
    return watch.rate


def fit_notebook(steps: int, digit: int | None) -> float:
    """Steps a second of the notebook's loop."""
    torch.manual_seed(0)
    net, images = notebook.RichBoyNet(), notebook.load(train=True)
    if digit is not None:
        notebook.add_dense_lora(net)
        images = notebook.only(images, digit)
    batches = notebook.loader(images)
    return steps / seconds(lambda: notebook.fit(batches, net, limit=steps))


def fine_tune_notebook() -> float:
    """Seconds of the notebook's fine-tuning and its two tests."""
    net = notebook.RichBoyNet()
    return seconds(lambda: notebook.fine_tune(net))


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@lru_cache
def batches_in_memory(count: int) -> Batches:
    """Normalised batches of 10 of the training set."""
    data = build_data(configure())
    return [data.on_after_batch_transfer(b, 0) for b in islice(data.train_dataloader(), count)]


def fit_bare(net: nn.Module, batches: Batches) -> float:
    """Steps a second of the least loop that does the work."""
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], fused=True)

    def loop() -> None:
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return len(batches) / seconds(loop)


def fit_net(make: Callable[[], nn.Module], steps: int) -> float:
    return fit_bare(make(), batches_in_memory(steps))


def lora_net() -> nn.Module:
    return add_lora(MLP())


def peft_net(rank: int = 1) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=1, target_modules=["linear1", "linear2", "linear3"])
    model: nn.Module = get_peft_model(MLP(), config)
    return model


def dense_net() -> notebook.RichBoyNet:
    net = notebook.RichBoyNet()
    notebook.add_dense_lora(net)
    return net


@lru_cache
def _trainer_test(adapted: bool) -> Callable[[], None]:
    cfg = configure("stage=lora" if adapted else "stage=pretrain", "logger=none")
    data = build_data(cfg)
    data.setup("test")
    net = build_net(cfg)
    if adapted:
        add_configured_lora(cfg, net)
    module = build_module(cfg, net, data, None)

    def test() -> None:
        trainer.test(module, datamodule=data, verbose=False)

    with terminal():
        trainer = build_trainer(cfg)
        test()  # the base's answers are known from here on, as in a sweep
    return test


def test_ours(adapted: bool) -> float:
    """Images a second through ``Trainer.test``."""
    test = _trainer_test(adapted)
    with terminal():
        return 10_000 / seconds(test)


@lru_cache
def _row_by_row_test(make: Callable[[], nn.Module], images: int) -> Callable[[], Any]:
    dataset, net = notebook.load(train=False), make()
    dataset.data, dataset.targets = dataset.data[:images], dataset.targets[:images]
    batches = notebook.loader(dataset)
    return lambda: notebook.count_errors(batches, net)


def test_notebook(make: Callable[[], nn.Module], images: int) -> float:
    """Images a second of the notebook's test, row by row in batches of 10."""
    return images / seconds(_row_by_row_test(make, images))


@lru_cache
def _bare_test(make: Callable[[], nn.Module], batch_size: int) -> Callable[[], None]:
    data, net = build_data(configure(f"data.eval_batch_size={batch_size}")), make()
    data.setup("test")

    def test() -> None:
        errors = torch.zeros(len(data.classes), dtype=torch.int64)
        with torch.inference_mode():
            for batch in data.test_dataloader():
                images, labels = data.on_after_batch_transfer(batch, 0)
                wrong = labels[net(images).argmax(dim=1) != labels]
                errors += torch.bincount(wrong, minlength=len(errors))

    return test


def test_bare(make: Callable[[], nn.Module], batch_size: int) -> float:
    """Images a second of the least loop from the raw images to the errors of each class."""
    return 10_000 / seconds(_bare_test(make, batch_size))


def run_process(python: str, *command: str, **environment: str) -> tuple[float, str]:
    """Seconds from start to exit of a Python process on a terminal, and the end of its output."""
    env = os.environ | environment
    master, slave = pty.openpty()
    started = time.perf_counter()
    child = subprocess.Popen([python, *command], cwd=ROOT, env=env, stdout=slave, stderr=slave)
    os.close(slave)
    printed = _read_all(master).decode(errors="replace")
    if child.wait() != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {printed}")
    return time.perf_counter() - started, printed


def peak_memory(python: str, code: str) -> float:
    """MB that a Python process had in memory at most while it ran ``code``."""
    # The kernel's own account of the program: rusage would include the process it was forked from.
    code += "\nprint('VmHWM', open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    _, printed = run_process(python, "-c", code)
    return float(printed.rsplit("VmHWM", 1)[1]) / 1024
