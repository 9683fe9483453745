"""One call of a command: what was typed, its configuration, and the classifier that this names."""

import os
import re
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import RunMode
from omegaconf import BooleanNode, DictConfig, IntegerNode, OmegaConf, open_dict

from lora_mnist.disk.run_paths import ADAPTER_FOLDER, latest
from lora_mnist.errors import UserError, nearest_to
from lora_mnist.project import CONFIGS, program

if TYPE_CHECKING:
    from lora_mnist.classifier import Classifier

#: Hydra's name for a group whose files set keys of all groups; ``classifier`` is typed.
CLASSIFIER = "classifier@_global_"
_ENTRIES = ("train", "eval", "predict", "export", "demo")


# What configurations inherit: keys that no file lists, and types of values.
_any_keys = OmegaConf.create({})  # who inherits it takes any key without a +
OmegaConf.set_struct(_any_keys, False)
_whether = BooleanNode(None)
_steps = {"max_steps": IntegerNode(None), "max_epochs": IntegerNode(None)}
_seed = IntegerNode(0, is_optional=False)
_train = {"seed": _seed, "compile": _whether, "figures": _whether, "trainer": _steps}
for _name, _node in {
    "any_keys": _any_keys,
    "types_of_train": OmegaConf.create(_train),
    "types_of_lora": OmegaConf.create({"dial": _whether}),
    "types_of_eval": OmegaConf.create({"figures": _whether}),
}.items():
    ConfigStore.instance().store(_name, _node, provider="lora_mnist")


@dataclass(frozen=True)
class Run:
    """One call of a command, as the command line made it."""

    folder: Path  # where it leaves its files
    #: Its overrides, such as lora.rank=4, after --config-dir=FOLDER; None: called from Python.
    typed: tuple[str, ...] | None = None
    is_sweep: bool = False  # whether it is a job of a sweep

    @classmethod
    def of_command_line(cls, hydra: Any, folder: Path) -> "Run":
        """The run that Hydra's own configuration describes."""
        overrides: Any = OmegaConf.to_container(hydra.overrides, resolve=False)
        typed = []
        for source in hydra.runtime.config_sources:
            if source.provider == "command-line":
                typed.append(f"--config-dir={os.path.relpath(source.path)}")
        for text in (*overrides["task"], *overrides["hydra"]):
            typed.append(text.replace(f"{CLASSIFIER}=", "classifier="))
        return cls(folder, tuple(typed), hydra.mode == RunMode.MULTIRUN)

    def typed_without(self, *starts: str) -> list[str]:
        """The overrides but for those that begin with one of ``starts``."""
        return [text for text in self.typed or () if not text.lstrip("+~").startswith(starts)]


def override(key: str, value: object) -> str:
    """``key=value`` as Hydra's grammar has it."""
    return f"{key}={in_grammar(value)}"


def in_grammar(value: object) -> str:
    """A value as Hydra's grammar has it; quoted are texts such as null, a class's name."""
    text = str(value)
    is_word = re.fullmatch(r"[\w/.+-]+", text, re.ASCII)
    if is_word and str(OverridesParser.create().parse_override(f"key={text}").value()) == text:
        return text
    return str(QuotedString(text, Quote.single).with_quotes())


def key_of(text: str) -> str:
    """The key that an override of the command line sets."""
    return text.split("=", 1)[0].lstrip("+~").removesuffix("@_global_")


@cache
def _keys_of(entry: str, stage: str | None = None) -> set[str]:
    """The keys of a command, without those of the user's own files."""
    overrides = ["~local@_global_"] if (CONFIGS / "local").is_dir() else []
    if stage is not None:
        overrides.append(f"stage={stage}")
    is_ready = GlobalHydra.instance().is_initialized()
    ready = nullcontext() if is_ready else initialize_config_dir(str(CONFIGS), version_base="1.3")
    with ready:
        return set(map(str, compose(entry, overrides)))


def checked_copy(cfg: DictConfig, run: Run | None = None) -> DictConfig:
    """A copy of ``cfg`` with the run's folder, without other commands' keys in a user's file."""
    checked = cfg.copy()
    entry = ("train", cfg.stage) if cfg.stage in ("pretrain", "lora") else (cfg.stage,)
    keys = _keys_of(*entry)
    typed = None
    if run is not None and run.typed is not None:
        typed = {key_of(text).partition(".")[0] for text in run.typed}
    for key in set(map(str, cfg)) - keys:
        known = _keys_of("train", "lora").union(*map(_keys_of, _ENTRIES))
        if typed is None or key in typed or key not in known:
            nearest = "" if key in known else nearest_to(key, known)
            raise UserError(f"{key}: nothing reads this key with stage={cfg.stage}{nearest}")
        with open_dict(checked):
            del checked[key]
    refuse_names_of_groups(cfg)
    digit = cfg.get("digit")
    if digit not in (None, "weakest", cfg.get("target")) and "target" not in (typed or ()):
        raise UserError(f"digit={digit}: expected target={cfg.target} alone: both mean one")
    if run is not None:
        checked.paths.run = str(run.folder)
    return checked


def refuse_names_of_groups(cfg: DictConfig) -> None:
    """Refuse ``data: folder`` in a file, which stands there for ``defaults: [override ...]``."""
    for group in ("data", "net", "prepare"):
        if isinstance(cfg.get(group), str):
            raise UserError(
                f"{group}: {cfg[group]}: expected its keys; a file chooses a group by "
                f"'defaults: [override /{group}: {cfg[group]}]'"
            )


def settings_of(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """The arguments of network, preparation and images that a configuration has, resolved."""
    groups = {}
    for group in ("net", "prepare", "data"):
        content: Any = OmegaConf.to_container(cfg[group], resolve=True, throw_on_missing=True)
        groups[group] = content
    return groups


def classifier_of(cfg: DictConfig, run: Run | None = None) -> "Classifier":
    """The classifier that a configuration names: its base, and its adapter as it was saved."""
    from lora_mnist.classifier import Classifier  # here: torch

    adapter = cfg.get("adapter")
    if adapter == "latest":
        folder = Path(cfg.paths.outputs, "lora")
        newest = latest(folder, f"*/{ADAPTER_FOLDER}/adapter_config.json")
        if newest is None:
            raise UserError(
                f"adapter=latest: expected an adapter in {folder}; make one with: "
                f"{program('train')} stage=lora and the same data and net"
            )
        adapter = newest.parent
        if run is not None and run.is_sweep:
            raise UserError(
                "adapter=latest: expected the folder itself in a sweep, whose jobs could find "
                f"different ones: adapter={adapter}"
            )
    groups = settings_of(cfg)
    return Classifier.load(
        adapter, cfg.base_ckpt, **groups, bases=cfg.paths.bases, base_prefix=cfg.base_prefix
    )
