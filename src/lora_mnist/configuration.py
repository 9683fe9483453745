"""What a command's configuration says: the keys that it may have, and the classifier it names.

A configuration is merged into one of these dataclasses, and OmegaConf refuses a key that the
command does not read and a value of another type. The groups (``data``, ``net``, ``trainer``, ...)
are arguments of the classes that their ``_target_`` names, which refuse what they do not take.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from lora_mnist.disk.record import TRAINING_KEYS
from lora_mnist.disk.run_paths import ADAPTER_FOLDER, latest
from lora_mnist.errors import UserError
from lora_mnist.project import program

if TYPE_CHECKING:
    from lora_mnist.classifier import Classifier
    from lora_mnist.run import Run


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


def checked_copy(cfg: DictConfig, folder: Path | None = None) -> DictConfig:
    """A copy of ``cfg`` that has only the keys of its stage, and values of their types.

    ``folder`` is that of the run, for callbacks and loggers: ``cfg.paths.run``.

    Raises:
        OmegaConfBaseException: if it has a key that the stage does not read, or a value of another
            type.
    """
    checked = OmegaConf.merge(OmegaConf.structured(SETTINGS[cfg.stage]), cfg)
    if folder is not None:
        checked.paths.run = str(folder)
    return checked  # type: ignore[return-value]


def typed_settings(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """The arguments of network and images that a configuration has, resolved.

    ``MissingMandatoryValue`` of OmegaConf, if one has to be typed, and is not.
    """
    net: Any = OmegaConf.to_container(cfg.net, resolve=True, throw_on_missing=True)
    data: Any = OmegaConf.to_container(cfg.data, resolve=True, throw_on_missing=True)
    return {"net": net, "data": {k: v for k, v in data.items() if k not in TRAINING_KEYS}}


def classifier_of(cfg: DictConfig, run: "Run | None" = None) -> "Classifier":
    """The classifier that a configuration names: its base, and its adapter as it was saved.

    Raises:
        UserError: see :meth:`.Classifier.load`; and for ``adapter=latest`` in a sweep, whose jobs
            could find different adapters.
    """
    from lora_mnist.classifier import Classifier  # here: torch

    adapter = cfg.get("adapter")
    if adapter == "latest":
        adapter = latest_adapter(Path(cfg.paths.outputs))
        if run is not None and run.is_sweep:
            raise UserError(
                "adapter=latest: expected the folder itself in a sweep, whose jobs could find "
                f"different ones: adapter={adapter}"
            )
    return Classifier.load(
        adapter,
        cfg.base_ckpt,
        **typed_settings(cfg),
        trust=cfg.trust,
        allow_other_base=cfg.get("allow_other_base", False),
        bases=cfg.paths.bases,
    )


def latest_adapter(outputs: Path) -> Path:
    """The folder of the newest adapter, by time; ``UserError``, if there is none."""
    config = latest(outputs / "lora", f"*/{ADAPTER_FOLDER}/adapter_config.json")
    if config is None:
        raise UserError(
            f"adapter=latest: expected an adapter in {outputs}/lora, found none; make one with: "
            f"{program('train')} stage=lora"
        )
    return config.parent
