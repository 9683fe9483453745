import re
from typing import Any

import pytest
from helpers.runs import results, write_run
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lora_mnist.show import loggers
from lora_mnist.show.loggers import (
    SortedTensorBoardLogger,
    hparams_of,
)
from lora_mnist.show.run import show_run

#: What a repair's LightningModule logs.
TAGS = [
    *("train/loss", "val/loss", "val/accuracy", "val_base/accuracy", "val/repaired", "val/broken"),
    *("val/errors_of_target", "val_base/errors_of_target", "val/errors_elsewhere"),
    *("val_base/errors_elsewhere", "val/accuracy_per_class/cat", "val_base/accuracy_per_class/cat"),
    *("adapter/norm/linear1", "val_base/loss", "lr-Adam", "epoch"),
]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    """All that TensorBoard has of a repair that was drawn, beside another logger."""
    folder = tmp_path_factory.mktemp("run")
    settings: dict[str, Any] = {"name": "", "version": "logs", "default_hp_metric": False}
    board = SortedTensorBoardLogger(str(folder), "lora", **settings)
    base = SortedTensorBoardLogger(str(folder), "pretrain", **settings)
    base.log_metrics(dict.fromkeys(TAGS, 1.0))
    board.log_metrics(dict.fromkeys(TAGS, 1.0))
    trainer = Trainer(
        accelerator="cpu",
        logger=[board, CSVLogger(folder)],
        max_steps=2,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    model = BoringModel()
    model.save_hyperparameters({"stage": "lora", "lora": {"rank": 2}})
    trainer.fit(model)
    found = write_run(folder / "run", target="dog")
    show_run(trainer, found, folder / "run", figures=True)
    (written,) = (folder / "lightning_logs").rglob("hparams.yaml")
    assert "verdict: 'images of dog: 9 errors -> 2" in written.read_text()
    return EventAccumulator(str(folder / "logs"), {"tensors": 0, "scalars": 0}).Reload()


def text(shown: EventAccumulator, tag: str) -> Any:
    return shown.Tensors(tag)[0].tensor_proto.string_val[0]


def test_text_and_images_in_the_order_in_which_to_look_at_them(shown: EventAccumulator) -> None:
    tags = shown.Tags()
    figures = [
        *("1 errors", "2 repaired", "3 broken", "4 confused base", "5 confused adapted"),
        *("6 confusion difference", "7 confusion adapted", "8 confusion base"),
        "9 singular values",
    ]
    assert tags["images"] == [f"test figures/{figure}" for figure in figures]
    assert tags["histograms"] == [f"rest of repair/singular values/{layer}" for layer in (0, 1)]
    assert text(shown, "1 verdict/text_summary").startswith(b"images of dog: 9 errors -> 2")
    assert "    │ dog *".encode() in text(shown, "2 errors of each class/text_summary")
    assert b"    stage: lora\n" in text(shown, "3 configuration/text_summary")


def test_the_first_two_groups_are_the_curves_to_look_at(shown: EventAccumulator) -> None:
    """TensorBoard opens these, and sorts them by name."""
    tags = [tag for kind in ("scalars", "images", "histograms") for tag in shown.Tags()[kind]]
    groups = sorted({tag.partition("/")[0] for tag in tags if not tag.startswith("train_")})
    assert groups[:3] == ["pretrain", "repair", "rest of pretrain"]
    curves = ["lr-Adam", "train/loss", "val/accuracy", "val/broken", "val/errors_elsewhere"]
    curves += ["val/errors_of_target", "val/loss", "val/repaired"]
    for group in ("pretrain", "repair"):
        assert sorted(tag for tag in tags if tag.startswith(f"{group}/")) == [
            f"{group}/{curve}" for curve in curves
        ]


def test_every_tag_has_its_chart_on_the_first_page(shown: EventAccumulator) -> None:
    layout = Layout.FromString(text(shown, "custom_scalars__config__"))
    charts = [chart for page in layout.category for chart in page.chart]
    patterns = [pattern for chart in charts for pattern in chart.multiline.tag]
    tags = shown.Tags()["scalars"]
    found = {tag for tag in tags for pattern in patterns if re.search(pattern, tag)}
    assert {tag.partition("/")[2] for tag in found if "repair" in tag} == {*TAGS[:-3]}
    assert all(any(re.search(pattern, tag) for tag in tags) for pattern in patterns)


def test_a_run_is_a_row_of_hparams(shown: EventAccumulator) -> None:
    content = shown.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = HParamsPluginData.FromString(content).session_start_info
    row = {key: getattr(value, value.WhichOneof("kind")) for key, value in start.hparams.items()}
    assert (row["digit"], row["stage"], row["lora.rank"]) == ("dog", "lora", 2)
    ends = {tag: shown.Scalars(tag)[-1].value for tag in shown.Tags()["scalars"] if "test/" in tag}
    assert ends == {"test/accuracy": pytest.approx(52 / 60), "test/repaired": 8, "test/broken": 4}


def test_what_the_command_set_is_in_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key has its value, a group the name that was chosen."""
    overrides = ["lora.rank=4", "loss=margin", "+trainer.fast_dev_run=true"]
    monkeypatch.setattr(loggers, "typed_overrides", lambda *_: overrides)
    config = {"lora": {"rank": 4}, "loss": {"margin": 1}, "trainer": {"fast_dev_run": True}}
    row = hparams_of({"target": ["4", "9"]}, config)
    assert (row["lora.rank"], row["loss"]) == (4, "margin")
    assert (row["trainer.fast_dev_run"], row["digit"]) == (True, "4+9")


def test_a_base_has_the_columns_of_a_repair() -> None:
    row = hparams_of(results("pretrain"), {"stage": "pretrain", "data": {"replay": None}})
    assert row.keys() == hparams_of(results(), {"lora": {"rank": 1}}).keys()
    assert (row["stage"], row["lora.rank"], row["data.replay"]) == ("pretrain", 0, 0)
