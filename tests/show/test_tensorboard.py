import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.nets import TinyNet
from helpers.runs import outcome, repaired, results, write_run
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch.utils.data import DataLoader, TensorDataset

from lora_mnist import add_lora
from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.show.figures import draw_run
from lora_mnist.show.tensorboard import (
    Curves,
    errors_table,
    layout,
    run_name,
    scalars,
    show_outcome,
)


class Points(LightningDataModule):
    """Random points of three classes, of which the second is to be repaired."""

    short_names = ("cat", "dog/cow", "pig")
    targets = (1,)

    def loader(self) -> DataLoader[Any]:
        x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, torch.arange(30) % 3), 5)

    train_dataloader = val_dataloader = test_dataloader = loader


def run(logger: Any, folder: Path, adapted: bool = True, steps: int = 8) -> Trainer:
    torch.manual_seed(0)
    net = add_lora(TinyNet(), rank=2) if adapted else TinyNet()
    module = ClassifierModule(net, 3, hyperparameters={"stage": "lora", "lora": {"rank": 2}})
    trainer = Trainer(
        accelerator="cpu",
        logger=logger,
        callbacks=[Curves()],
        max_steps=steps,
        log_every_n_steps=4,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    data = Points()
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    return trainer


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    """All that TensorBoard has of a repair that was drawn."""
    folder = tmp_path_factory.mktemp("run")
    trainer = run(TensorBoardLogger(folder, name="", version="logs"), folder)
    found = write_run(folder / "run")
    draw_run(folder / "run", found)
    show_outcome(trainer, found, folder / "run")
    return EventAccumulator(str(folder / "logs"), {"tensors": 0, "scalars": 0}).Reload()


def steps(shown: EventAccumulator, tag: str) -> list[int]:
    return [event.step for event in shown.Scalars(tag)]


def test_curves_begin_with_the_base(shown: EventAccumulator) -> None:
    for tag in ("accuracy", "loss", "errors_of_target", "accuracy_per_class/dog-cow"):
        adapted, base = (shown.Scalars(f"{side}/{tag}") for side in ("val", "val_base"))
        assert [e.step for e in adapted] == [e.step for e in base] == [0, 4, 8]
        assert adapted[0].value == base[0].value == base[-1].value
    assert shown.Scalars("val/repaired")[0].value == 0
    assert steps(shown, "train/loss") == [4, 8]
    norms = [event.value for event in shown.Scalars("adapter/norm/linear1")]
    assert norms[0] == 0 < norms[1]


def test_no_tag_that_nobody_asked_for(shown: EventAccumulator) -> None:
    tags = shown.Tags()
    everything = [
        tag for kind in ("scalars", "images", "histograms", "tensors") for tag in tags[kind]
    ]
    assert len(everything) < 60
    assert "epoch" not in tags["scalars"]
    lonely = {tag for tag in tags["scalars"] if len(shown.Scalars(tag)) == 1}
    assert lonely == {tag for tag in tags["scalars"] if tag.startswith("test/")}
    assert {step for tag in lonely for step in steps(shown, tag)} == {9}  # behind the curves


def test_pages_text_and_images(shown: EventAccumulator) -> None:
    tags = shown.Tags()
    assert tags["images"] == [
        *("1 errors", "2 repaired", "3 broken", "4 confusion difference", "5 confusion adapted"),
        *("6 confusion base", "7 layer", "8 singular values"),
    ]
    (image,) = shown.Images("1 errors")
    assert (image.width, image.encoded_image_string[:4]) == (598, b"\x89PNG")
    text = shown.Tensors("1 verdict/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.startswith("images of dog: 9 errors -> 2")
    text = shown.Tensors("3 configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "    stage: lora\n" in text
    layout = Layout.FromString(
        shown.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    )
    charts = [chart for page in layout.category for chart in page.chart]
    for chart in charts:
        for pattern in chart.multiline.tag:
            assert len([tag for tag in tags["scalars"] if re.search(pattern, tag)]) == 1, pattern


def test_hparams_of_a_single_run(shown: EventAccumulator) -> None:
    assert "_hparams_/session_start_info" in shown.summary_metadata


def test_other_loggers_get_the_scalars(tmp_path: Path) -> None:
    run(CSVLogger(tmp_path, name="", version=""), tmp_path)
    head, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert "val/accuracy" in head
    assert "test/repaired" in head
    place = head.split(",").index("step")
    assert rows[-1].split(",")[place] == "9"


def test_a_base_has_no_base(tmp_path: Path) -> None:
    run(TensorBoardLogger(tmp_path, name="", version=""), tmp_path, adapted=False)
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    assert not [tag for tag in tags if "_base" in tag or "adapter" in tag]


def counts() -> Mapping[str, Any]:
    return {"val": repaired([2, 9], [3, 0], [0, 7]), "val_base": outcome([2, 9])}


def test_the_numbers_of_a_split() -> None:
    assert scalars("val", counts(), ["a", "b"], [1]) == {
        **{"val/accuracy": 1 - 7 / 40, "val/loss": 0.5, "val/errors_of_target": 2},
        **{"val/errors_elsewhere": 5, "val/repaired": 7, "val/broken": 3},
        **{"val/accuracy_per_class/a": 0.75, "val/accuracy_per_class/b": 0.9},
        **{"val_base/accuracy": 1 - 11 / 40, "val_base/loss": 0.5},
        **{"val_base/errors_of_target": 9, "val_base/errors_elsewhere": 2},
        **{"val_base/accuracy_per_class/a": 0.9, "val_base/accuracy_per_class/b": 0.55},
    }
    assert not [tag for tag in scalars("val", counts(), [], None) if "errors" in tag]


def test_of_many_classes_those_to_repair_have_curves() -> None:
    many = {"val": outcome([1] * 100)}
    names = [f"c{n}" for n in range(100)]
    tags = scalars("val", many, names, [7, 70])
    assert [tag for tag in tags if "per_class" in tag] == [
        *("val/accuracy_per_class/c7", "val/accuracy_per_class/c70"),
    ]


def test_of_many_layers_the_page_shows_the_whole() -> None:
    pages = layout({}, [f"layer{n}" for n in range(20)])
    assert "Accuracy of each class, base and adapted" not in pages
    (chart,) = pages["The adapter"].values()
    assert chart == ["Multiline", [r"^adapter/norm/all\ layers$"]]


def test_a_table_of_the_classes() -> None:
    found = results()
    found["classes"] = ["a|b", "c", "d"]
    assert errors_table(found).splitlines()[:3] == [
        "| class | images | repaired | broken | base errors | errors |",
        "|---|---:|---:|---:|---:|---:|",
        "| a/b | 20 | 0 | 4 | 2 | 6 |",
    ]
    assert errors_table(results("pretrain")).splitlines()[0] == "| class | images | errors |"


def test_run_names() -> None:
    assert run_name({"lora": {"rank": 4}}, ["9"]) == "digit=9,rank=4"
    assert run_name({}, ["4", "9"]) == "digit=4+9"
    assert run_name({}, []) == ""
