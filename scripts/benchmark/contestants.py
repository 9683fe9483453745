"""The contestants of the benchmark: the same work done by each side, timed.

What a side needs for a measurement is built before the clock starts.
"""

import time
from collections.abc import Callable
from functools import lru_cache
from itertools import islice
from typing import Any

import source_notebook
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from processes import terminal
from torch import Tensor, nn

from lora_mnist import MLP, add_lora
from lora_mnist.config import add_configured_lora, build_data, build_module, build_net
from lora_mnist.project import PROJECT
from lora_mnist.trainer import build_trainer

OUTPUT = PROJECT / "outputs" / "benchmark"
Batches = list[tuple[Tensor, Tensor]]


def configure(*overrides: str) -> DictConfig:
    """The configuration of ``python train.py ...``."""
    with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        return compose("train", list(overrides))


def seconds(work: Callable[[], Any]) -> float:
    """How long ``work()`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# --- training ------------------------------------------------------------------------------------


class Stopwatch(Callback):
    """Steps a second, from the first batch to the last."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.rate = trainer.global_step / (time.perf_counter() - self.started)


def fit_ours(steps: int, *overrides: str) -> float:
    """Steps a second through ``Trainer.fit`` with progress, logging and checkpoint.

    Without validation, which the notebook does not have.
    """
    cfg = configure(f"trainer.max_steps={steps}", *overrides)
    torch.manual_seed(0)
    net = build_net(cfg)
    if "lora" in cfg:
        add_configured_lora(cfg, net)
    watch, data = Stopwatch(), build_data(cfg, "fit", cfg.digit)
    with terminal():
        trainer = build_trainer(cfg, OUTPUT / "run", validates=False)
        trainer.callbacks.append(watch)  # type: ignore[attr-defined]
        trainer.fit(build_module(cfg, net, data), datamodule=data)
    return watch.rate


def fit_notebook(steps: int, digit: int | None) -> float:
    """Steps a second of the notebook's loop."""
    torch.manual_seed(0)
    net, images = source_notebook.RichBoyNet(), source_notebook.load(train=True)
    if digit is not None:
        source_notebook.add_dense_lora(net)
        images = source_notebook.only(images, digit)
    batches = source_notebook.loader(images)
    return steps / seconds(lambda: source_notebook.fit(batches, net, limit=steps))


@lru_cache
def batches_in_memory(count: int, batch_size: int = 10) -> Batches:
    """Normalised batches of the training set."""
    data = build_data(configure(f"data.batch_size={batch_size}"), "fit")
    return [data.on_after_batch_transfer(b, 0) for b in islice(data.train_dataloader(), count)]


def fit_bare(net: nn.Module, batches: Batches, warm_up: int = 0) -> float:
    """Steps a second of the least loop that does the work, after ``warm_up`` steps of it."""
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], fused=True)

    def loop(batches: Batches) -> None:
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if batches and batches[0][0].is_cuda:
            torch.cuda.synchronize()

    loop(batches[:warm_up])
    return len(batches) / seconds(lambda: loop(batches))


def fit_net(make: Callable[[], nn.Module], steps: int, batch_size: int = 10) -> float:
    """Steps a second of that loop on the network that ``make`` returns."""
    return fit_bare(make(), batches_in_memory(steps, batch_size))


def fit_on(
    device: str, make: Callable[[], nn.Module], steps: int, batch_size: int, compiled: bool = False
) -> float:
    """Steps a second of that loop on ``device``, to which nothing is copied while it runs.

    ``compiled`` puts the forward and the backward pass each into one CUDA graph, as
    ``torch.compile(net, mode="reduce-overhead")`` does; compiling them is not counted.
    """
    net = make().to(device)
    if compiled:
        net.compile(mode="reduce-overhead")
    batches = [(x.to(device), y.to(device)) for x, y in batches_in_memory(steps, batch_size)]
    return fit_bare(net, batches, warm_up=10)


# --- networks ------------------------------------------------------------------------------------


def lora_net() -> nn.Module:
    """Ours, rank 1."""
    return add_lora(MLP())


def peft_net(rank: int = 1) -> nn.Module:
    """PEFT's."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=1, target_modules=["linear1", "linear2", "linear3"])
    model: nn.Module = get_peft_model(MLP(), config)
    return model


def dense_net() -> source_notebook.RichBoyNet:
    """The notebook's, rank 1."""
    net = source_notebook.RichBoyNet()
    source_notebook.add_dense_lora(net)
    return net


# --- tests ---------------------------------------------------------------------------------------


@lru_cache
def _trainer_test(adapted: bool, *overrides: str) -> Callable[[], None]:
    stage = "stage=lora" if adapted else "stage=pretrain"
    cfg = configure(stage, "logger=none", *overrides)
    data, net = build_data(cfg, "test"), build_net(cfg)
    if adapted:
        add_configured_lora(cfg, net)
    module = build_module(cfg, net, data)

    def test() -> None:
        trainer.test(module, datamodule=data, verbose=False)

    with terminal():
        trainer = build_trainer(cfg, OUTPUT / "run")
        test()  # the base's answers are known from here on, as in a sweep
    return test


def test_ours(adapted: bool, *overrides: str) -> float:
    """Images a second through ``Trainer.test``."""
    test = _trainer_test(adapted, *overrides)
    with terminal():
        return 10_000 / seconds(test)


@lru_cache
def _row_by_row_test(make: Callable[[], nn.Module], images: int) -> Callable[[], Any]:
    dataset, net = source_notebook.load(train=False), make()
    dataset.data, dataset.targets = dataset.data[:images], dataset.targets[:images]
    batches = source_notebook.loader(dataset)
    return lambda: source_notebook.count_errors(batches, net)


def test_notebook(make: Callable[[], nn.Module], images: int) -> float:
    """Images a second of the notebook's test, row by row in batches of 10."""
    return images / seconds(_row_by_row_test(make, images))


@lru_cache
def _bare_test(make: Callable[[], nn.Module], batch_size: int) -> Callable[[], None]:
    data, net = build_data(configure(f"data.eval_batch_size={batch_size}"), "test"), make()

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
