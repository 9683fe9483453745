"""The runs of a study: python train.py in this process, each in a folder of its own, done once."""

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
from torch import nn

from lora_mnist.classifier.metrics import count_errors
from lora_mnist.classifier.net import make_net
from lora_mnist.data import make_data
from lora_mnist.disk.base import read_base
from lora_mnist.errors import TrainingError
from lora_mnist.project import Run
from lora_mnist.train import train

PROJECT = Path(__file__).resolve().parents[2]
OUTPUT = PROJECT / "outputs" / "repair_study"

#: Overrides of python train.py, as they are typed.
Settings = Sequence[str]
#: What results.json holds.
Results = dict[str, Any]

#: Of every run: no files that nobody would read.
QUIET = (
    "logger=none",
    "figures=false",
    "++callbacks.checkpoint=null",
    "++callbacks.progress_bar=null",
    "+trainer.enable_checkpointing=false",
    "+trainer.enable_progress_bar=false",
)


def composed(settings: Settings) -> DictConfig:
    """The configuration of ``python train.py`` with these ``settings``."""
    with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        return compose("train", list(settings))


def run(settings: Settings) -> tuple[Path, Results]:
    """The folder and the results of a run: as it was left, or done now."""
    cfg = composed([*QUIET, *settings])
    text = json.dumps(OmegaConf.to_container(cfg, resolve=True), sort_keys=True)
    folder = OUTPUT / "runs" / hashlib.sha256(text.encode()).hexdigest()[:16]
    file = folder / "results.json"
    if not file.exists():  # it is written last, and whole
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(" ".join(settings), file=sys.stderr, flush=True)
        with suppress(TrainingError):  # of a network that was made useless there are results, too
            train(cfg, Run(folder))
    return folder, json.loads(file.read_text())


@dataclass(frozen=True)
class Base:
    """A base that the study pretrains."""

    seed: int
    common: Settings = ()  # of pretraining and of every run: dataset, network
    pretrain: Settings = ()  # further ones of pretraining

    @property
    def file(self) -> Path:
        """Where its weights are."""
        name = re.sub(r"\W", "_", " ".join([*self.common, *self.pretrain]) or "mnist")
        return OUTPUT / "bases" / f"{name}_{self.seed}.ckpt"

    def results(self) -> Results:
        """What pretraining found; it is done now, if it was not yet."""
        own = ["stage=pretrain", f"seed={self.seed}", f"base_ckpt={self.file}"]
        return run([*self.common, *self.pretrain, *own])[1]

    def classes(self) -> list[int]:
        """All classes, the one with the most validation errors first."""
        errors = self.results()["val"]["errors_per_class"]
        return sorted(range(len(errors)), key=lambda c: -errors[c])

    def run(self, settings: Settings, digit: int) -> tuple[Path, Results]:
        """A run on this base; it repairs ``digit``, unless ``settings`` say otherwise."""
        self.results()
        return run([*self.common, f"base_ckpt={self.file}", f"digit={digit}", *settings])

    def load(self, file: Path | None = None) -> tuple[DictConfig, nn.Module]:
        """A configuration on this base, and its network with its weights, or those in ``file``."""
        cfg = composed([*self.common, "stage=lora"])
        net = make_net(cfg)
        read_base(file or self.file, net)
        return cfg, net


def cases(plan: Mapping[str, Any], quick: bool = False) -> list[tuple[Base, int]]:
    """Each base of a table with each class to repair; if ``quick`` one case of few steps."""
    seeds, digits = plan["bases"], plan["digits"]
    common, pretrain = (plan.get(key, "").split() for key in ("common", "pretrain"))
    if plan.get("pictures"):
        folder = OUTPUT / plan["pictures"]
        common = ["data=folder", f"data.data_dir={folder}", "data.val_size=0.2", *common]
    if quick:
        seeds, digits = seeds[:1], digits[:1]
        common = [*common, "trainer.max_steps=50"]
    found: list[tuple[Base, int]] = []
    for seed in seeds:
        base = Base(seed, tuple(common), tuple(pretrain))
        for digit in digits:
            case = base, base.classes()[0] if digit == "weakest" else digit
            if case not in found:
                found.append(case)
    return found


def count_test_errors(cfg: DictConfig, net: nn.Module) -> Results:
    """What is counted on the test images, with ``net`` as it is."""
    data = make_data(cfg, "test")
    return count_errors(net.eval(), data.batches(data.test_set), len(data.classes))


def errors(outcome: Results, classes: Sequence[int]) -> tuple[int, int]:
    """Errors on some classes, and on all, of one split's ``outcome``."""
    per_class = outcome["errors_per_class"]
    return sum(per_class[c] for c in classes), sum(per_class)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table: so many columns of ``texts``, then numbers."""
    lines = [heads, ["---"] * texts + ["---:"] * (len(heads) - texts), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
