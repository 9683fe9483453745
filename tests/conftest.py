"""Fixtures that all tests share: the command line, a base, an adapter."""

import logging
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# One thread a process, before torch is imported: two that take all cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from composed import composed
from helpers.commands import ROOT, Outcome, run_process
from helpers.nets import TinyNet
from hydra.core.hydra_config import HydraConfig


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing stays missing, also on a machine that could download it."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.fixture(autouse=True)
def no_hydra() -> Iterator[None]:
    """Hydra's configuration is the process's: a test neither finds nor leaves one."""
    HydraConfig.instance().cfg = None
    yield
    HydraConfig.instance().cfg = None


@pytest.fixture
def tiny() -> TinyNet:
    torch.manual_seed(0)
    return TinyNet()


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """``cli("train.py", "stage=lora", ...)`` in this process; what it leaves is in tmp_path."""

    def run(entry: str, *overrides: str, here: Path = ROOT) -> Outcome:
        monkeypatch.chdir(here)
        arguments = [entry, *overrides, f"paths.outputs={tmp_path}/outputs"]
        monkeypatch.setattr(sys, "argv", arguments)
        code: Any = 0
        try:
            runpy.run_path(str(ROOT / entry), run_name="__main__")
        except SystemExit as exit_:
            code = exit_.code or 0
        finally:
            logging.shutdown()
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture(scope="session")
def base_ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base pretrained for a few steps on the real data."""
    from lora_mnist.train import train

    folder = tmp_path_factory.mktemp("base")
    (folder / "pretrain").mkdir()
    options = ("stage=pretrain", "trainer.max_steps=100", "data.batch_size=50")
    cfg = composed(
        *("train", *options, f"base_ckpt={folder}/base.ckpt"), f"paths.outputs={folder}/outputs"
    )
    train(cfg, folder / "pretrain")
    return folder / "base.ckpt"


@pytest.fixture(scope="session")
def lora_run(base_ckpt: Path) -> Path:
    """The folder of a finished run of stage=lora on :func:`base_ckpt`."""
    folder = base_ckpt.parent / "lora"
    done = run_process(
        *("train.py", "stage=lora", "digit=9", "trainer.max_steps=30"),
        *(f"base_ckpt={base_ckpt}", f"hydra.run.dir={folder}"),
        f"paths.outputs={base_ckpt.parent}/outputs",
    )
    assert done.returncode == 0, done.stderr
    return folder
