"""What the tests share: tiny networks, and the command line, in this process or in its own."""

import json
import logging
import os
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# One thread a process, before torch is imported: two that take all cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]


class TinyNet(nn.Module):
    """Two linear layers with biases, in the shape of the real one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Linear(6, 5)
        self.linear2 = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear2(torch.relu(self.linear1(x)))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing stays missing, also on a machine that could download it."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.fixture
def tiny() -> TinyNet:
    torch.manual_seed(0)
    return TinyNet()


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """``cli("train.py", "stage=lora", ...)`` in this process; what it leaves is in tmp_path."""

    def run(entry: str, *overrides: str) -> Outcome:
        monkeypatch.chdir(ROOT)
        arguments = [entry, *overrides, f"paths.outputs={tmp_path}/outputs"]
        monkeypatch.setattr(sys, "argv", arguments)
        code: Any = 0
        try:
            runpy.run_path(entry, run_name="__main__")
        except SystemExit as exit_:
            code = exit_.code or 0
        finally:
            logging.shutdown()
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return run


def run_process(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python script of the repository in a process of its own."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="session")
def base_ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base pretrained for a few steps on the real data."""
    folder = tmp_path_factory.mktemp("base")
    done = run_process(
        *("train.py", "stage=pretrain", "trainer.max_steps=100", "data.batch_size=50"),
        *(f"base_ckpt={folder}/base.ckpt", f"hydra.run.dir={folder}/pretrain"),
    )
    assert done.returncode == 0, done.stderr
    return folder / "base.ckpt"


@pytest.fixture(scope="session")
def lora_run(base_ckpt: Path) -> Path:
    """The folder of a finished run of stage=lora on :func:`base_ckpt`."""
    folder = base_ckpt.parent / "lora"
    done = run_process(
        *("train.py", "stage=lora", "digit=9", "trainer.max_steps=30"),
        *(f"base_ckpt={base_ckpt}", f"hydra.run.dir={folder}"),
    )
    assert done.returncode == 0, done.stderr
    return folder


def read_results(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results
