"""The runs of a study: each of its own settings, done once, in this process."""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from lora_mnist.errors import TrainingError
from lora_mnist.train import train

PROJECT = Path(__file__).resolve().parents[2]
OUTPUT = PROJECT / "outputs" / "repair_study"

#: Overrides of python train.py, key to value; a value is what YAML can say.
Settings = Mapping[str, Any]
#: What results.json holds.
Results = dict[str, Any]

#: Of every run: no files that nobody would read.
_QUIET: Settings = {
    "logger": "none",
    "figures": False,
    "++callbacks.checkpoint": None,
    "++callbacks.progress_bar": None,
    "+trainer.enable_checkpointing": False,
    "+trainer.enable_progress_bar": False,
}


def written(value: Any) -> str:
    """``value`` as Hydra's command line reads it; quoted where it would be read otherwise."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    words = ("null", "true", "false", "nan", "inf")
    if re.fullmatch(r"[a-zA-Z_][\w.*/]*", value) and value.lower() not in words:
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def overrides(settings: Settings) -> list[str]:
    """The overrides that ``settings`` stand for."""
    return [f"{key}={written(value)}" for key, value in settings.items()]


def composed(settings: Settings) -> DictConfig:
    """The configuration of ``python train.py`` with these ``settings``."""
    with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        return compose("train", overrides(settings))


def run(settings: Settings) -> tuple[Path, Results]:
    """The folder and the results of a run: as it was left, or done now."""
    cfg = composed({**_QUIET, **settings})
    text = json.dumps(OmegaConf.to_container(cfg, resolve=True), sort_keys=True)
    folder = OUTPUT / "runs" / hashlib.sha256(text.encode()).hexdigest()[:16]
    file = folder / "results.json"
    if not file.exists():  # it is written last, and whole
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(" ".join(overrides(settings)), file=sys.stderr, flush=True)
        with suppress(TrainingError):  # of a network that was made useless there are results, too
            train(cfg, folder)
    return folder, json.loads(file.read_text())


@dataclass(frozen=True)
class Base:
    """A base that the study pretrains.

    Attributes:
        seed: of pretraining.
        common: settings that pretraining and every run on the base share: dataset, network.
        pretrain: further settings of pretraining.
    """

    seed: int
    common: Settings
    pretrain: Settings

    @property
    def file(self) -> Path:
        """Where its weights are."""
        kind = "_".join(overrides({**self.common, **self.pretrain})) or "mnist"
        return OUTPUT / "bases" / f"{slug(kind)}_{self.seed}.ckpt"

    def results(self) -> Results:
        """What pretraining found; it is done now, if it was not yet."""
        settings = {**self.common, "stage": "pretrain", **self.pretrain, "seed": self.seed}
        return run({**settings, "base_ckpt": str(self.file)})[1]

    def classes(self) -> list[int]:
        """All classes, the one with the most validation errors first."""
        errors = self.results()["val"]["errors_per_class"]
        return sorted(range(len(errors)), key=lambda c: -errors[c])

    def target(self, digit: Any) -> list[int]:
        """The classes that ``digit`` stands for."""
        if digit == "weakest":
            return self.classes()[:1]
        return list(digit) if isinstance(digit, Sequence) else [digit]

    def run(self, settings: Settings, target: Sequence[int], seed: int) -> tuple[Path, Results]:
        """A run on this base; ``target`` is what it repairs, unless ``settings`` say otherwise."""
        self.results()
        digit = list(target) if len(target) > 1 else target[0]
        common = {**self.common, "base_ckpt": str(self.file), "digit": digit, "seed": seed}
        return run({**common, **settings})


def errors(outcome: Results, target: Sequence[int]) -> tuple[int, int]:
    """Errors on the classes of ``target``, and all errors, of one split's ``outcome``."""
    per_class = outcome["errors_per_class"]
    return sum(per_class[c] for c in target), sum(per_class)


def slug(name: str) -> str:
    """A file's name for ``name``."""
    return re.sub(r"\W", "_", name)
