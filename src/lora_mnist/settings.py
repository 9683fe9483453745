"""The keys that each command reads, and the types of their values.

A configuration is merged into one of these dataclasses, and OmegaConf refuses a key that the
command does not read and a value of another type. The groups (``data``, ``net``, ``trainer``, ...)
are arguments of the classes that their ``_target_`` names, which refuse what they do not take.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf


@dataclass
class Settings:
    """Every command on a network: which images, which network, which base."""

    stage: str
    paths: Any
    data: Any
    net: Any
    base_name: str
    base_ckpt: str | None


@dataclass
class AdapterSettings(Settings):
    """A command that puts a finished adapter on the base."""

    adapter: str | None  # a folder, or latest
    allow_other_base: bool
    trust: bool


@dataclass
class ScaledSettings(AdapterSettings):
    """A command that turns the adapter up or down."""

    scale: Any  # a number, or auto


@dataclass
class RunSettings(Settings):
    """A command that leaves a run's folder."""

    trainer: Any
    logger: Any
    sweep: Any
    figures: bool | None


@dataclass
class TrainSettings(RunSettings):
    """Every stage of ``train.py``."""

    loss: Any
    optimizer: Any
    scheduler: Any
    callbacks: Any
    run_name: str
    digit: Any
    target: Any  # a class by number or by name, a list of them, weakest, or null for all
    seed: int
    debug: str | None
    compile: bool
    resume: str | None


@dataclass
class LoraSettings(TrainSettings):
    """``train.py stage=lora``."""

    lora: Any
    trust: bool
    dial: bool | None


@dataclass
class EvalSettings(RunSettings, ScaledSettings):
    """``eval.py``."""


@dataclass
class PredictSettings(ScaledSettings):
    """``predict.py``."""

    images: Any
    out: str | None


@dataclass
class ExportSettings(ScaledSettings):
    """``export.py``."""

    format: str
    out: str | None


@dataclass
class DemoSettings(AdapterSettings):
    """``demo.py``."""

    server: Any


#: The settings of each stage.
SETTINGS = {
    "pretrain": TrainSettings,
    "lora": LoraSettings,
    "eval": EvalSettings,
    "predict": PredictSettings,
    "export": ExportSettings,
    "demo": DemoSettings,
}


def checked_copy(cfg: DictConfig) -> DictConfig:
    """A copy of ``cfg`` that has only the keys of its stage, and values of their types.

    Raises:
        OmegaConfBaseException: if it has a key that the stage does not read, or a value of another
            type.
    """
    return OmegaConf.merge(OmegaConf.structured(SETTINGS[cfg.stage]), cfg)  # type: ignore[return-value]
