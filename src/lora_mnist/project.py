"""Where the project is, how its commands are typed, what its configurations need from Python."""

import hashlib
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lora_mnist.errors import UserError

_PACKAGE = Path(__file__).resolve().parent
#: The configurations. A wheel has them in the package, a checkout beside ``src``.
CONFIGS = _PACKAGE / "configs"
#: The folder of ``data/`` and ``outputs/``: the checkout, wherever in it or out of it a command is
#: started; of an installed package the folder where the user is.
PROJECT = Path.cwd()
if not CONFIGS.is_dir():
    PROJECT = _PACKAGE.parents[1]
    CONFIGS = PROJECT / "configs"


@dataclass(frozen=True)
class Run:
    """One call of a command, as the command line made it."""

    folder: Path  # where it leaves its files
    typed: tuple[str, ...] | None = None  # its overrides, lora.rank=4; None: called from Python
    is_sweep: bool = False  # whether it is a job of a sweep

    @classmethod
    def of_command_line(cls, hydra: Any, folder: Path) -> "Run":
        """The run that Hydra's own configuration describes."""
        overrides: Any = OmegaConf.to_container(hydra.overrides, resolve=False)
        typed = (*overrides["task"], *overrides["hydra"])
        return cls(folder, typed, hydra.mode == RunMode.MULTIRUN)

    @property
    def typed_keys(self) -> set[str]:
        """The keys of its overrides, such as lora.rank."""
        return {key_of(text) for text in self.typed or ()}

    def typed_without(self, *starts: str) -> list[str]:
        """The overrides but for those that begin with one of ``starts``."""
        return [text for text in self.typed or () if not text.lstrip("+~").startswith(starts)]


def program(name: str | None = None) -> str:
    """How a command is typed here: ``python ../train.py``, or ``lora-mnist train``.

    Args:
        name: the command; ``None``: the one that runs.
    """
    if Path(sys.argv[0]).stem == "lora-mnist":
        return f"lora-mnist {name or sys.argv[2]}"  # entry.py has put --config-name before the word
    typed = Path(sys.argv[0])
    if name is not None:
        is_entry = typed.resolve().parent == PROJECT  # and no notebook's kernel
        typed = typed.with_name(f"{name}.py") if is_entry else Path(f"{name}.py")
    return f"python {shlex.quote(str(typed))}"


def command_line(arguments: Iterable[str], entry: str | None = None) -> str:
    """A command of ``entry``, or of the program that runs, ready to paste into bash or zsh."""
    return " ".join([entry or program(), *map(quoted, arguments)])


def quoted(text: str) -> str:
    """One argument, quoted for the shell only where it must be."""
    # Hydra's own quotes are single quotes, which shlex would break into five pieces.
    return f'"{text}"' if "'" in text and not set('"$`\\!') & set(text) else shlex.quote(text)


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
OmegaConf.register_new_resolver("lora_mnist.cwd", lambda: str(Path.cwd()), replace=True)


def sweep_name(otherwise: str | None) -> str | None:
    """Resolver: the name of the sweep of which this is a job, by which loggers group its runs."""
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    if hydra is None or hydra.mode != RunMode.MULTIRUN:
        return otherwise
    return Path(hydra.sweep.dir).name


OmegaConf.register_new_resolver("lora_mnist.sweep_name", sweep_name, replace=True)


def base_name(data: DictConfig, net: DictConfig) -> str:
    """Resolver: the name of the files of a base, for each network and set of images.

    ``mnist``, ``mnist_cnn``, ``photos-3fa2c1_resnet18``: a folder without a ``data.name`` gets six
    digits of its path's SHA-256, since two folders may have the same name.
    """
    name = data.get("name")
    if name is None and data._target_ is None:
        name = "mnist"
    elif name is None:
        path = Path(str(data.get("data_dir") or "folder")).expanduser().resolve()
        name = f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"
    elif not re.fullmatch(r"[^/\\\0]+", str(name)):
        raise UserError(f"data.name={name}: expected a name without /, since files are called so")
    if net._target_ in (None, "lora_mnist.MLP"):
        return str(name)
    kind = str(net.get("model_name") or net._target_.rpartition(".")[2])
    return f"{name}_{re.sub('[^a-z0-9.]+', '_', kind.lower())}"


OmegaConf.register_new_resolver("lora_mnist.base_name", base_name, replace=True)


def _unless(other: object, value: object) -> object:
    """``value``, or ``None`` where ``other`` is set."""
    return value if other is None else None


OmegaConf.register_new_resolver("lora_mnist.unless", _unless, replace=True)

# A config that inherits "/any_keys@GROUP" takes keys there that no file lists, without a +.
_any_keys = OmegaConf.create({})
OmegaConf.set_struct(_any_keys, False)
ConfigStore.instance().store("any_keys", _any_keys, provider="lora_mnist")
