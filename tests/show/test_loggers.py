"""What TensorBoard has of a run, read from its event files."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.nets import TinyNet, randomize
from helpers.runs import CLASSES, write_run
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.data import DataLoader, TensorDataset

from lora_mnist import add_lora
from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.project import Run
from lora_mnist.show.run import show_run


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


def test_every_pattern_of_the_custom_page_finds_curves(events: EventAccumulator) -> None:
    (layout,) = events.Tensors("custom_scalars__config__")
    tags = events.Tags()["scalars"]
    charts = {}
    for category in Layout.FromString(layout.tensor_proto.string_val[0]).category:
        for chart in category.chart:
            (pattern,) = chart.multiline.tag
            charts[chart.title] = {tag for tag in tags if re.match(pattern, tag)}
    assert all(charts.values())
    assert charts["loss"] == {"train/loss", "val/loss"}
    names = ("cat", "dog", "<b>cow<-b>")  # a slash would begin a group
    assert charts["base"] == {f"val_base/accuracy_per_class/{name}" for name in names}


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
