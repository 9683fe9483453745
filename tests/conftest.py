"""Fixtures that all tests share: the command line, a small base."""

import logging
import os
import runpy
import sys

# One thread a process, before torch is imported: two that take all cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Its list of fonts takes seconds to make, and each test has another folder of caches.
os.environ.setdefault("MPLCONFIGDIR", os.path.expanduser("~/.cache/matplotlib"))  # noqa: PTH111

# Nothing here imports torch: pytest-xdist's first process, which runs no test, reads this file too.
import pytest
from hypothesis import settings

settings.register_profile("tests", max_examples=40, deadline=None)
settings.load_profile("tests")


def pytest_collection_modifyitems(config, items):
    """Slow tests first: at the end, one alone would keep the other workers waiting.

    Nightly tests are excluded, unless ``-m`` names the mark.
    """
    if "nightly" not in config.option.markexpr:
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """A test downloads nothing, and finds and leaves neither a cache nor a configuration."""
    from hydra.core.hydra_config import HydraConfig

    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.fixture
def tiny():
    import torch
    from helpers.nets import TinyNet

    torch.manual_seed(0)
    return TinyNet()


@pytest.fixture
def outputs(tmp_path):
    """A folder of outputs with a small base."""
    from composed import small_base

    small_base(tmp_path / "outputs")
    return tmp_path / "outputs"


@pytest.fixture(scope="session")
def with_nine(tmp_path_factory):
    """A folder of outputs that is only read: a small base, and an adapter lora/nine on it."""
    from composed import small_adapter, small_base

    outputs = tmp_path_factory.mktemp("outputs")
    small_base(outputs)
    small_adapter(outputs, "lora/nine")
    return outputs


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The outputs of a base and of a repair on it, with all that they log."""
    from composed import FEW, SMALL, composed

    from lora_mnist.commands.train import train

    outputs = tmp_path_factory.mktemp("made")
    options = (
        *(*SMALL, *FEW, f"paths.outputs={outputs}", "trainer.max_steps=30"),
        *("batches.batch_size=50", "trainer.log_every_n_steps=10", "trainer.val_check_interval=10"),
    )
    train(composed("train", "stage=pretrain", *options))
    loggers = ("logger=[tensorboard,csv]", "figures=null")
    train(composed("train", "stage=lora", "digit=9", *options, *loggers))
    return outputs


@pytest.fixture
def cli(monkeypatch, capfd, tmp_path):
    """``cli("train.py", "stage=lora", ...)`` in this process; what it leaves is in tmp_path."""
    from helpers.commands import ROOT, Outcome

    def run(entry, *overrides, here=ROOT):
        monkeypatch.chdir(here)
        arguments = [entry, *overrides, f"paths.outputs={tmp_path}/outputs"]
        monkeypatch.setattr(sys, "argv", arguments)
        code = 0
        try:
            runpy.run_path(str(ROOT / entry), run_name="__main__")
        except SystemExit as exit_:
            code = exit_.code or 0
        finally:
            logging.shutdown()
            ours = ("lora_mnist.cli.explain", "lora_mnist.tables.file")
            for name in (None, *ours, "lightning.pytorch"):
                for handler in [*logging.getLogger(name).handlers]:
                    if isinstance(handler, logging.FileHandler):  # it would open its file anew
                        logging.getLogger(name).removeHandler(handler)
            talkative = "lightning.pytorch.utilities.rank_zero"  # after a trial
            logging.getLogger(talkative).setLevel(logging.WARNING)
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return run
