"""The runs of a study: python train.py in this process, each done once."""

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from lora_mnist.commands.train import train
from lora_mnist.config.command import Run
from lora_mnist.errors import TrainingError

PROJECT = Path(__file__).resolve().parents[2]
OUTPUT = PROJECT / "outputs" / "repair_study"
sys.path.append(str(PROJECT / "scripts"))  # for rival.py, the yardstick

#: No files that nobody would read.
QUIET = (
    "logger=none",
    "figures=false",
    "callbacks=none",
    "+trainer.enable_checkpointing=false",
    "+trainer.enable_progress_bar=false",
)


def composed(settings: Sequence[str]) -> DictConfig:
    """The configuration of ``python train.py`` with these ``settings``, and no needless files."""
    with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        return compose("train", [*QUIET, *settings])


def run(settings: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """The folder and the results of a run: as it was left, or done now."""
    cfg = composed(settings)
    text = json.dumps(OmegaConf.to_container(cfg), sort_keys=True)
    folder = OUTPUT / "runs" / hashlib.sha256(text.encode()).hexdigest()[:16]
    file = folder / "results.json"
    if not file.exists():  # it is written last, and whole
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(" ".join(settings), file=sys.stderr, flush=True)
        with suppress(TrainingError):  # a network that was made useless has results, too
            train(cfg, Run(folder))
    return folder, json.loads(file.read_text())
