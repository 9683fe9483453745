"""The jobs of a study: overrides that Hydra reads as they are meant, and resumed sweeps."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

import lora_mnist.project  # noqa: F401 the resolver that the configuration needs
from lora_mnist.project import PROJECT
from lora_mnist.sweep.records import Row, read_rows

OUTPUT = Path("outputs", "repair_study")
#: Training images that validate; the bases of the search are pretrained without them.
HELD_OUT = 10_000

#: Overrides, key to value; a value is what YAML can say.
Settings = Mapping[str, Any]


def written(value: Any) -> str:
    """``value`` as Hydra's command line reads it; what its grammar would read otherwise is quoted.

    Each value of a sweep comes back from Hydra written like this.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if not isinstance(value, str):
        return str(value)
    try:
        parsed = OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException:
        parsed = None
    return value if parsed == value else QuotedString(value, Quote.single).with_quotes()


def overrides(settings: Settings) -> list[str]:
    """The overrides that ``settings`` stand for."""
    return [f"{key}={written(value)}" for key, value in settings.items()]


def compose_config(arguments: Sequence[str]) -> dict[str, Any]:
    """The configuration of ``python train.py`` with these ``arguments``."""
    with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        cfg = compose("train", list(arguments))
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return config


@dataclass(frozen=True)
class Setting:
    """What the methods of a table share.

    Attributes:
        data: the dataset.
        digit: the class to repair, or weakest.
        held_out: whether the bases are pretrained without the validation images.
        bases: the seeds they are pretrained with.
        seeds: of fine-tuning.
        jobs: how many run at a time.
    """

    data: str
    digit: str
    held_out: bool
    bases: list[int]
    seeds: list[int]
    jobs: int

    @property
    def name(self) -> str:
        """Of the setting's folder."""
        kind = ["held_out"] if self.held_out else []
        return "_".join([self.data, self.digit, *kind, *map(str, self.bases)])

    def base(self, seed: int | str) -> str:
        """The file of the base that was pretrained with ``seed``."""
        kind = "_held_out" if self.held_out else ""
        return f"{OUTPUT}/bases/{self.data}{kind}_{seed}.ckpt"

    @property
    def common(self) -> list[str]:
        """Overrides of every job; without checkpoints, which nobody would read."""
        common = [f"data={self.data}", "logger=none", "sweep.metric=null"]
        common += ["callbacks.checkpoint=null", "+trainer.enable_checkpointing=false"]
        if self.held_out:
            common += [f"data.val_size={HELD_OUT}"]
        if self.jobs > 1:
            common += ["launcher=joblib", f"hydra.launcher.n_jobs={self.jobs}"]
        return common


def pretrain(setting: Setting) -> None:
    """Make the bases that are missing, as the notebook does."""
    missing = [str(seed) for seed in setting.bases if not (PROJECT / setting.base(seed)).exists()]
    if missing:
        names = ["stage=pretrain", "experiment=notebook", f"base_ckpt={setting.base('${seed}')}"]
        train("-m", *names, f"seed={','.join(missing)}", *setting.common)


def sweep(setting: Setting, folder: Path, *arguments: str) -> list[Row]:
    """Run the jobs of ``arguments`` on all bases with all seeds, but for those that are finished.

    Returns:
        All finished jobs in ``folder``, those of earlier calls among them.
    """
    where = f"sweep.resume={folder}" if (PROJECT / folder).exists() else f"hydra.sweep.dir={folder}"
    print(f"{folder.name}: {' '.join(arguments)}", file=sys.stderr, flush=True)
    # The base comes first: jobs on the same base follow each other, and read it once.
    bases = f"base_ckpt={','.join(map(setting.base, setting.bases))}"
    seeds = f"seed={','.join(map(str, setting.seeds))}"
    train("-m", bases, f"digit={setting.digit}", *arguments, seeds, *setting.common, where)
    return [row for row in read_rows(PROJECT / folder) if row.status == "finished"]


def train(*arguments: str) -> None:
    """Run ``python train.py``; if it fails, end with its exit code."""
    command = [sys.executable, "train.py", *arguments]
    done = subprocess.run(command, cwd=PROJECT, check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(done.returncode)  # it has said why


def errors(row: Row, split: str) -> tuple[int, int]:
    """Errors on the class to repair, and all errors, on the images of ``split``."""
    return row.results[f"{split}.errors_of_target"], row.results[f"{split}.errors"]


def slug(name: str) -> str:
    """A folder's name for a method."""
    return "".join(c if c.isalnum() else "_" for c in name)
