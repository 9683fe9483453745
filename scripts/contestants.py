"""The contestants of the benchmark: the same work done by each side, timed."""

import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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

from lora_mnist import MLP
from lora_mnist.build import add_configured_lora, build_data, build_module, build_net, build_trainer

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "outputs" / "benchmark"
Contestant = Callable[[], float]
Batches = list[tuple[Tensor, Tensor]]


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


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


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


def peft_net(rank: int = 1) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=1, target_modules=["linear1", "linear2", "linear3"])
    model: nn.Module = get_peft_model(MLP(), config)
    return model


def dense_net() -> notebook.RichBoyNet:
    net = notebook.RichBoyNet()
    notebook.add_dense_lora(net)
    return net


def test_ours(adapted: bool) -> Contestant:
    """Images a second through ``Trainer.test``; the base's answers are known, as in a sweep."""
    cfg = configure("stage=lora" if adapted else "stage=pretrain", "logger=none")
    data = build_data(cfg)
    data.setup("test")
    net = build_net(cfg)
    if adapted:
        add_configured_lora(cfg, net)
    module = build_module(cfg, net, data, None)
    with terminal():
        trainer = build_trainer(cfg)
        trainer.test(module, datamodule=data, verbose=False)

    def test() -> float:
        with terminal():
            return 10_000 / seconds(lambda: trainer.test(module, datamodule=data, verbose=False))

    return test


def test_notebook(net: nn.Module, images: int) -> Contestant:
    """Images a second of the notebook's test, row by row in batches of 10."""
    dataset = notebook.load(train=False)
    dataset.data, dataset.targets = dataset.data[:images], dataset.targets[:images]
    batches = notebook.loader(dataset)
    return lambda: images / seconds(lambda: notebook.count_errors(batches, net))


def test_bare(net: nn.Module, batch_size: int) -> Contestant:
    """Images a second of the least loop from the raw test set to the errors of each class."""
    data = build_data(configure(f"data.eval_batch_size={batch_size}"))
    data.setup("test")

    def test() -> None:
        errors = torch.zeros(10, dtype=torch.int64)
        with torch.inference_mode():
            for batch in data.test_dataloader():
                images, labels = data.on_after_batch_transfer(batch, 0)
                wrong = labels[net(images).argmax(dim=1) != labels]
                errors += torch.bincount(wrong, minlength=10)

    return lambda: 10_000 / seconds(test)


def run_process(python: str, *command: str) -> tuple[float, str]:
    """Seconds from start to exit of a Python process on a terminal, and the end of its output."""
    master, slave = pty.openpty()
    started = time.perf_counter()
    child = subprocess.Popen([python, *command], cwd=ROOT, stdout=slave, stderr=slave)
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
