from pathlib import Path
from typing import Any

import pytest
from composed import composed
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lora_mnist.show.hparams import SweptHParams, swept_values

OVERRIDES = ("stage=lora", "lora.rank=4", "loss=margin", "+trainer.fast_dev_run=true", "seed=3")


def job(folder: Path, *overrides: str, mode: RunMode = RunMode.MULTIRUN) -> DictConfig:
    """The configuration of a job of a sweep over all but the stage and the seed."""
    cfg = composed("train", *OVERRIDES, *overrides)
    hydra: Any = {
        "mode": mode,
        "runtime": {"output_dir": str(folder)},
        "overrides": {"task": [*OVERRIDES, *overrides]},
        "job": {"config": {"override_dirname": {"exclude_keys": ["stage", "seed"]}}},
    }
    with open_dict(cfg):
        cfg.hydra = OmegaConf.create(hydra)
    return cfg


def read_hparams(folder: Path) -> dict[str, Any]:
    metadata = EventAccumulator(str(folder)).Reload().summary_metadata
    content = metadata["_hparams_/session_start_info"].plugin_data.content
    start = HParamsPluginData.FromString(content).session_start_info
    return {key: getattr(v, v.WhichOneof("kind")) for key, v in start.hparams.items()}


def test_a_swept_key_has_its_value_and_a_group_its_name(tmp_path: Path) -> None:
    assert swept_values(job(tmp_path)) == {
        **{"lora.rank": 4, "loss": "margin", "trainer.fast_dev_run": True},
    }


def test_tells_tensorboard_once(tmp_path: Path) -> None:
    cfg = job(tmp_path)
    (tmp_path / "events.out.tfevents.1.0").touch()
    for _ in range(2):
        SweptHParams().on_job_end(cfg, None)
    assert len(list(tmp_path.glob("*.hparams"))) == 1
    assert read_hparams(tmp_path) == {
        **{"lora.rank": 4, "loss": "margin", "trainer.fast_dev_run": True},
    }


@pytest.mark.parametrize("why", ["single run", "another logger", "no logger", "no result"])
def test_tells_nothing_where_nobody_asked(tmp_path: Path, why: str) -> None:
    loggers = {"another logger": ("logger=csv",), "no logger": ("logger=none",)}
    mode = RunMode.RUN if why == "single run" else RunMode.MULTIRUN
    cfg = job(tmp_path, *loggers.get(why, ()), mode=mode)
    if why != "no result":
        (tmp_path / "events.out.tfevents.1.0").touch()
    SweptHParams().on_job_end(cfg, None)
    assert not list(tmp_path.glob("*.hparams"))
