from pathlib import Path
from typing import Any

import pytest
from composed import composed
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter

from lora_mnist.show.hparams import hparams_of, swept_values, write_hparams

OVERRIDES = ("stage=lora", "lora.rank=4", "loss=margin", "+trainer.fast_dev_run=true", "seed=3")


def swept() -> tuple[DictConfig, Any]:
    """The configuration of a job of a sweep over all but the stage and the seed, and Hydra's."""
    hydra = OmegaConf.create(
        {
            "mode": RunMode.MULTIRUN,
            "overrides": {"task": list(OVERRIDES)},
            "job": {"config": {"override_dirname": {"exclude_keys": ["stage", "seed"]}}},
        }
    )
    return composed("train", *OVERRIDES), hydra


def test_a_swept_key_has_its_value_and_a_group_its_name() -> None:
    expected = {"lora.rank": 4, "loss": "margin", "trainer.fast_dev_run": True}
    assert swept_values(*swept()) == expected


def test_what_was_swept_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, hydra = swept()
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    values = hparams_of(OmegaConf.to_container(cfg), "9")  # type: ignore[arg-type]
    assert list(values)[:4] == ["lora.rank", "loss", "trainer.fast_dev_run", "digit"]
    assert values["seed"] == 3


def test_a_single_run_and_a_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HydraConfig, "initialized", lambda: False)
    cfg: Any = OmegaConf.to_container(composed("train", *OVERRIDES))
    values = hparams_of(cfg, "9")
    assert values["digit"] == "9"
    assert values["lora.rank"] == 4
    assert hparams_of({"stage": "pretrain", "data": {"replay": None}}, None) == {
        "stage": "pretrain"
    }


def test_a_run_is_a_row(tmp_path: Path) -> None:
    writer = SummaryWriter(tmp_path)
    tags = ["val/loss", "val/accuracy", "test/broken", "test/accuracy"]
    write_hparams(writer, {"lora.rank": 4, "loss": "margin", "flag": True}, tags)
    writer.close()
    found = EventAccumulator(str(tmp_path)).Reload().summary_metadata
    content = found["_hparams_/session_start_info"].plugin_data.content
    start = HParamsPluginData.FromString(content).session_start_info
    assert {k: getattr(v, v.WhichOneof("kind")) for k, v in start.hparams.items()} == {
        **{"lora.rank": 4, "loss": "margin", "flag": 1},
    }
    content = found["_hparams_/experiment"].plugin_data.content
    experiment = HParamsPluginData.FromString(content).experiment
    names = [info.name for info in experiment.hparam_infos]
    assert names[:3] == ["lora.rank", "loss", "flag"]
    # TensorBoard takes the columns from the first run that it finds.
    assert {"digit", "stage", "lora.alpha", "optimizer.lr", "seed"} <= set(names[3:])
    assert [info.name.tag for info in experiment.metric_infos] == [
        *("val/accuracy", "test/accuracy", "test/broken", "val/loss"),
    ]
