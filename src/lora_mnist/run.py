"""One call of a command: its folder, what was typed, and what configurations need from Python."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import RunMode
from omegaconf import OmegaConf

from lora_mnist.disk.run_paths import base_name
from lora_mnist.project import PROJECT, program

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
    def typed_keys(self) -> set[str]:
        """The keys of its overrides, such as lora.rank."""
        return {key_of(text) for text in self.typed or ()}

    def typed_without(self, *starts: str) -> list[str]:
        """The overrides but for those that begin with one of ``starts``."""
        return [text for text in self.typed or () if not text.lstrip("+~").startswith(starts)]


def override(key: str, value: object) -> str:
    """``key=value`` as Hydra's override grammar has it, quoted only where it must be.

    A class may be called null or 1e5, which would not be read as a text.
    """
    text = str(value)
    if re.fullmatch(r"[\w/.+-]+", text, re.ASCII):
        plain = f"{key}={text}"
        if str(OverridesParser.create().parse_override(plain).value()) == text:
            return plain
    return f"{key}={QuotedString(text, Quote.single).with_quotes()}"


def key_of(override: str) -> str:
    """The key that an override of the command line sets."""
    return override.split("=", 1)[0].lstrip("+~")


OmegaConf.register_new_resolver("lora_mnist.project", lambda: str(PROJECT), replace=True)
OmegaConf.register_new_resolver("lora_mnist.program", program, replace=True)


def sweep_name(otherwise: str | None) -> str | None:
    """Resolver: the name of the sweep of which this is a job, by which loggers group its runs."""
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    if hydra is None or hydra.mode != RunMode.MULTIRUN:
        return otherwise
    return Path(hydra.sweep.dir).name


OmegaConf.register_new_resolver("lora_mnist.sweep_name", sweep_name, replace=True)


OmegaConf.register_new_resolver("lora_mnist.base_name", base_name, replace=True)


def _unless(other: object, value: object) -> object:
    """``value``, or ``None`` where ``other`` is set."""
    return value if other is None else None


OmegaConf.register_new_resolver("lora_mnist.unless", _unless, replace=True)

# A config that inherits "/any_keys@GROUP" takes keys there that no file lists, without a +.
_any_keys = OmegaConf.create({})
OmegaConf.set_struct(_any_keys, False)
ConfigStore.instance().store("any_keys", _any_keys, provider="lora_mnist")
