"""A run's folder and command line, and functions for Hydra's overrides."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

#: Hydra's name for a group whose files set keys of all groups; users write ``classifier``.
CLASSIFIER = "classifier@_global_"


@dataclass(frozen=True)
class Run:
    """One call of a command: its folder, and its overrides."""

    folder: Path  # a new one, where it leaves its files
    #: Its overrides, such as lora.rank=4, after --config-dir=FOLDER; None: called from Python.
    command_line: tuple[str, ...] | None = None
    is_sweep: bool = False  # whether it is a job of a sweep

    @classmethod
    def from_hydra(cls, hydra_conf: Any, folder: Path) -> "Run":
        """Return the run that Hydra's own configuration describes."""
        overrides: Any = OmegaConf.to_container(hydra_conf.overrides, resolve=False)
        command_line = []
        for source in hydra_conf.runtime.config_sources:
            if source.provider == "command-line":
                command_line.append(f"--config-dir={os.path.relpath(source.path)}")
        for text in (*overrides["task"], *overrides["hydra"]):
            command_line.append(text.replace(f"{CLASSIFIER}=", "classifier="))
        return cls(folder, tuple(command_line), hydra_conf.mode == RunMode.MULTIRUN)

    @property
    def keys(self) -> list[str]:
        """The keys on the command line."""
        return [override_key(text) for text in self.command_line or ()]

    @property
    def overrides(self) -> list[str] | None:
        """The overrides of the command itself, without Hydra's own."""
        if self.command_line is None:
            return None
        return self.overrides_without("hydra", "launcher", "sweep")

    def overrides_without(self, *groups: str) -> list[str]:
        """Return the overrides without these keys and groups, and the keys in them."""
        left = []
        for text in self.command_line or ():
            key = override_key(text).replace("/", ".")  # of hydra/launcher, too
            if not any(is_in(key, group) for group in groups):
                left.append(text)
        return left


#: The function of a command.
Command = Callable[[DictConfig, Run], object]


def quote_for_hydra(value: object) -> str:
    """Return a value in Hydra's grammar; a text such as null, perhaps a class's name, is quoted."""
    text = str(value)
    is_word = re.fullmatch(r"[\w/.+-]+", text, re.ASCII)
    if is_word and str(OverridesParser.create().parse_override(f"key={text}").value()) == text:
        return text
    return str(QuotedString(text, Quote.single).with_quotes())


def is_in(key: str, group: str) -> bool:
    """Return whether ``key`` is ``group``, or a key in it."""
    return f"{key}.".startswith(f"{group}.")


def override_key(text: str) -> str:
    """Return the key that an override sets."""
    return text.split("=", 1)[0].lstrip("+~")
