"""What was typed, and the objects that a configuration names."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lora_mnist.errors import UserError, config_group
from lora_mnist.lora.point import Point
from lora_mnist.project import importable
from lora_mnist.run_paths import latest_adapter

if TYPE_CHECKING:
    import torch

    from lora_mnist.classifier.classifier import Classifier

#: Hydra's name for a group whose files set keys of all groups; ``classifier`` is typed.
CLASSIFIER = "classifier@_global_"


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

    @property
    def keys(self) -> list[str]:
        """The keys that are typed."""
        return [key_of(text) for text in self.typed or ()]

    @property
    def overrides(self) -> list[str] | None:
        """Those of the command itself, and not of how or where it runs."""
        return None if self.typed is None else self.typed_without("hydra", "launcher", "sweep")

    def typed_without(self, *groups: str) -> list[str]:
        """The overrides but for those of these keys and groups, and of keys in them."""
        left = []
        for text in self.typed or ():
            key = key_of(text).replace("/", ".")  # of hydra/launcher, too
            if not any(is_in(key, group) for group in groups):
                left.append(text)
        return left


#: What the command line calls.
Command = Callable[[DictConfig, Run], object]


def in_grammar(value: object) -> str:
    """A value in Hydra's grammar; a text such as null, which may be a class's name, is quoted."""
    text = str(value)
    is_word = re.fullmatch(r"[\w/.+-]+", text, re.ASCII)
    if is_word and str(OverridesParser.create().parse_override(f"key={text}").value()) == text:
        return text
    return str(QuotedString(text, Quote.single).with_quotes())


def is_in(key: str, group: str) -> bool:
    """Whether ``key`` is ``group``, or a key in it."""
    return f"{key}.".startswith(f"{group}.")


def key_of(text: str) -> str:
    """The key that an override of the command line sets."""
    return text.split("=", 1)[0].lstrip("+~").removesuffix("@_global_")


def make(key: str, config: Any, *arguments: Any, **options: Any) -> Any:
    """What Hydra makes of a part of the configuration; a refusal names its ``key``."""
    with importable(), config_group(key):
        # Plain lists, for checkpoints.
        return instantiate(config, *arguments, _convert_="all", _partial_=False, **options)


def settings_of(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """The resolved arguments of network, preparation and images in a configuration."""
    groups = {}
    for group in ("net", "prepare", "data"):
        content: Any = OmegaConf.to_container(cfg[group], resolve=True, throw_on_missing=True)
        groups[group] = content
    return groups


def typed_point(cfg: DictConfig) -> dict[str, float | str | None]:
    """What a command is told of the point of a saved adapter; ``None``: as it was saved."""
    return {knob: cfg.get(knob) for knob in Point._fields}


def classifier_of(cfg: DictConfig) -> "Classifier":
    """The classifier that a configuration names: its base, and its adapter as it was saved."""
    from lora_mnist.classifier.classifier import Classifier  # here: torch

    adapter = cfg.get("adapter")
    for knob, value in typed_point(cfg).items():
        if adapter is None and value is not None:
            raise UserError(f"{knob}={value}: expected null, since there is no adapter")
    if adapter == "latest":
        adapter = latest_adapter(cfg.paths.outputs)
    groups = settings_of(cfg)
    classifier = Classifier.load(
        adapter, cfg.base_ckpt, **groups, bases=cfg.paths.bases, base_prefix=cfg.base_prefix
    )
    classifier.net.to(device_of(cfg.get("accelerator", "cpu")))  # a Trainer has its own
    return classifier


def device_of(accelerator: str) -> "torch.device":
    """The device that one of Lightning's words means: ``auto``, ``cpu``, ``gpu`` or ``mps``."""
    import torch

    own = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator == "cpu" or (accelerator == "auto" and own is None):
        return torch.device("cpu")
    if own is None or (accelerator == "mps" and own.type != "mps"):
        has = f"a {own.type} device" if own else "no GPU"
        raise UserError(f"accelerator={accelerator}: expected auto or cpu; this machine has {has}")
    return own
