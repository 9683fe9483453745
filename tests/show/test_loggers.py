"""What TensorBoard has of a run: through its event files, and through its own answers by HTTP."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import torch
from helpers.nets import TinyNet, randomize
from helpers.runs import CLASSES, write_run
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.data import DataLoader, TensorDataset

from lora_mnist import add_lora
from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.project import Run
from lora_mnist.show.run import show_run

Answer = Callable[[str], Any]


def log_run(folder: Path, stage: str) -> None:
    """A short training of three classes and what is shown of it, in TensorBoard and in CSV."""
    torch.manual_seed(0)
    net = TinyNet() if stage == "pretrain" else randomize(add_lora(TinyNet()))
    images = DataLoader(TensorDataset(torch.randn(12, 6), torch.arange(12) % 3), batch_size=4)
    trainer = Trainer(
        accelerator="cpu",
        logger=[
            TensorBoardLogger(folder, name="", version=stage, default_hp_metric=False),
            CSVLogger(folder),
        ],
        **{"max_steps": 6, "log_every_n_steps": 2, "val_check_interval": 3},
        **dict.fromkeys(("enable_checkpointing", "enable_model_summary"), False),
        enable_progress_bar=False,
    )
    module = ClassifierModule(
        net,
        3,
        class_names=CLASSES,
        targets=None if stage == "pretrain" else [1],
        hyperparameters={"stage": stage, "lora": {"rank": 2}},
    )
    trainer.fit(module, images, images)
    results = write_run(folder / stage / "run", stage)
    for key, outcome in module.outcomes.items():
        results[key] = dict(outcome)
    if stage == "lora":
        results["val"]["errors_of_target"] = 1
    show_run(trainer, results, Run(folder / stage / "run"), figures=True)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for stage in ("pretrain", "lora"):
        log_run(folder, stage)
    return folder


@pytest.fixture(scope="module")
def events(logged: Path) -> EventAccumulator:
    """All that TensorBoard reads of the repair."""
    return EventAccumulator(str(logged / "lora"), {"tensors": 0, "images": 0}).Reload()


@pytest.fixture(scope="module")
def board(logged: Path) -> Iterator[Answer]:
    """What TensorBoard answers to its page's questions."""
    command = [sys.executable, "-m", "tensorboard.main", "--port=0", f"--logdir={logged}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        address = None
        while address is None:
            line = server.stderr.readline()
            assert line, "TensorBoard has ended"
            address = re.search(r"http://\S+/", line)

        def answer(path: str) -> Any:
            with urlopen(f"{address[0]}data/{path}") as response:
                return json.load(response)

        for _ in range(100):  # until it has read the events
            if len(answer("runs")) == 2 and answer("plugin/custom_scalars/layout"):
                break
            time.sleep(0.1)
        yield answer
        server.terminate()


def test_every_pattern_of_the_custom_page_finds_curves(board: Answer) -> None:
    layout = board("plugin/custom_scalars/layout")
    charts: dict[str, set[str]] = {}
    for category in layout["category"]:
        for chart in category["chart"]:
            curves: set[str] = set()
            for pattern in chart["multiline"]["tag"]:
                found: set[str] = set()
                for run in board("runs"):
                    query = f"run={quote(run, safe='')}&tag={quote(pattern, safe='')}"
                    events = board(f"plugin/custom_scalars/scalars?{query}")["tag_to_events"]
                    found |= {f"{run}: {tag}" for tag, points in events.items() if points}
                assert found, pattern
                curves |= found
            charts[chart["title"]] = curves
    assert charts["loss"] == {
        *("pretrain: train/loss", "pretrain: val/loss", "lora: train/loss", "lora: val/loss"),
    }
    assert charts["errors on what is to be repaired"] == {
        *("lora: val/errors_of_target", "lora: val_base/errors_of_target"),
    }
    assert {curve.rpartition("/")[2] for curve in charts["base"]} == {"cat", "dog", "<b>cow<-b>"}
    assert len(charts["norm of what it adds to each layer"]) == 2


def test_tags_are_those_of_the_results(logged: Path, events: EventAccumulator) -> None:
    """The same in TensorBoard as in CSV and in callbacks."""
    (metrics,) = (logged / "lightning_logs" / "version_1").glob("metrics.csv")
    names = set(metrics.read_text().splitlines()[0].split(",")) - {"step"}
    assert names <= set(events.Tags()["scalars"])
    assert {"val/errors", "val_base/errors", "val/repaired", "adapter/norm/linear1"} <= names


def test_verdict_table_figures_and_the_run_in_hparams(
    logged: Path, events: EventAccumulator
) -> None:
    def text(tag: str) -> Any:
        return events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0]

    assert text("verdict").startswith(b"dog: 9 errors -> 2")
    assert "    │ dog *".encode() in text("errors of each class")
    kinds = "errors repaired broken confusion"
    assert {*events.Tags()["images"]} == {f"figures/{kind}" for kind in kinds.split()}
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["lora/rank"].number_value == 2
    assert events.Scalars("test/repaired")[-1].value == 8
    (written,) = (logged / "lightning_logs" / "version_1").glob("hparams.yaml")
    assert "verdict: 'dog: 9 errors -> 2" in written.read_text()
