"""One call of a command: what was typed, its configuration, and the classifier that this names."""

import os
import posixpath
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from lora_mnist.config.values import check_values
from lora_mnist.errors import UserError, config_group
from lora_mnist.project import CONFIGS, importable, program
from lora_mnist.run_paths import ADAPTER_FOLDER, latest

if TYPE_CHECKING:
    from lora_mnist.classifier.classifier import Classifier

#: Hydra's name for a group whose files set keys of all groups; ``classifier`` is typed.
CLASSIFIER = "classifier@_global_"
#: The commands, by the names of their configurations.
COMMANDS = ("train", "eval", "predict", "export", "demo")
#: Groups in which a user may add any key: it is handed on, or a name of the user's own.
_OPEN = ("callbacks", "logger", "net", "sweep.columns", "trials")

# Hydra takes a new key only with a + before it. In a group that has any_keys among its defaults it
# takes any.
_any_keys = OmegaConf.create({})
OmegaConf.set_struct(_any_keys, False)
ConfigStore.instance().store("any_keys", _any_keys, provider="lora_mnist")


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
        """The overrides but for those of the keys and groups ``starts``, and of keys in them."""
        dotted = tuple(f"{start}." for start in starts)
        left = []
        for text in self.typed or ():
            key = key_of(text).replace("/", ".")  # of hydra/launcher, too
            if not f"{key}.".startswith(dotted):
                left.append(text)
        return left


def in_grammar(value: object) -> str:
    """A value in Hydra's grammar; a text such as null, which may be a class's name, is quoted."""
    text = str(value)
    is_word = re.fullmatch(r"[\w/.+-]+", text, re.ASCII)
    if is_word and str(OverridesParser.create().parse_override(f"key={text}").value()) == text:
        return text
    return str(QuotedString(text, Quote.single).with_quotes())


def key_of(text: str) -> str:
    """The key that an override of the command line sets."""
    return text.split("=", 1)[0].lstrip("+~").removesuffix("@_global_")


@cache
def keys_in(name: str) -> dict[str, bool]:
    """:func:`dotted` of ``configs/NAME.yaml`` and of the files that its defaults choose."""
    text = (CONFIGS / f"{name}.yaml").read_text()
    content: Any = OmegaConf.to_container(OmegaConf.create(text))
    content.pop("hydra", None)
    folder, keys = posixpath.dirname(name), dict[str, bool]()
    for default in content.pop("defaults", ()):
        ((group, choice),) = default.items() if isinstance(default, dict) else [("", default)]
        path = posixpath.join(folder, group, str(choice)).lstrip("/")
        # Else it is _self_, null, or optional.
        if group != "hydra" and (CONFIGS / f"{path}.yaml").is_file():
            keys |= keys_in(path)
    header = re.match(r"# @package (\S+)", text)
    package = header[1] if header else folder.replace("/", ".")
    for group in reversed(package.replace("_global_", "").split(".")):
        content = {group: content} if group else content
    return keys | dotted(content)


def dotted(nested: dict[str, Any], group: str = "") -> dict[str, bool]:
    """All keys of a configuration, groups before what is in them, and whether each is a group."""
    keys = {}
    for name, value in nested.items():
        key = f"{group}{name}"
        keys[key] = isinstance(value, dict)
        if keys[key]:
            keys |= dotted(value, f"{key}.")
    return keys


def all_keys() -> dict[str, bool]:
    """The keys of all commands."""
    keys: dict[str, bool] = {}
    for name in (*COMMANDS, "stage/pretrain", "stage/lora"):
        keys |= keys_in(name)
    return keys


def unknown_key(key: str) -> str:
    """What to say of a key that this command has not: which are most like it."""
    keys, name = all_keys(), key.rpartition(".")[2]
    if key in keys:
        return f"{key}: nothing reads this key here; another command has it"
    nearest = [each for each in keys if each.rpartition(".")[2] == name]
    nearest = nearest or get_close_matches(key, keys, cutoff=0)
    return f"{key}: nothing reads this key; the nearest: {', '.join(nearest)}"


def checked_copy(cfg: DictConfig, run: Run | None = None) -> DictConfig:
    """A copy of ``cfg`` with the run's folder, without the keys that other commands have.

    A key that no command has is refused, and a value in place of a group: Hydra finds these on the
    command line, but not in a user's files.
    """
    checked = cfg.copy()
    typed = None if run is None or run.typed is None else [key_of(text) for text in run.typed]
    is_command = cfg.stage in COMMANDS
    known = keys_in(cfg.stage) if is_command else keys_in("train") | keys_in(f"stage/{cfg.stage}")
    content: Any = OmegaConf.to_container(cfg)
    given, anywhere = dotted(content), all_keys()
    # A function may take more arguments than those that are configured.
    functions = [key for key in (*given, *anywhere) if key.endswith("._target_")]
    is_open = (*(f"{group}." for group in _OPEN), *(key[: -len("_target_")] for key in functions))
    for key, is_group in given.items():
        group, _, name = key.rpartition(".")
        is_part_of_value = bool(group) and not anywhere.get(group)
        if key.startswith(is_open) or is_part_of_value:
            continue
        if key not in anywhere:
            raise UserError(unknown_key(key))
        if anywhere[key] and not is_group and (value := OmegaConf.select(cfg, key)) is not None:
            chosen = f"a file chooses a group by 'defaults: [override /{key}: {value}]'"
            raise UserError(f"{key}: {value}: expected its keys; {chosen}")
        if key in known or (group and group not in known):  # then its group goes
            continue
        # From Python each key is as good as typed.
        if typed is None or any(f"{each}.".startswith(f"{key}.") for each in typed):
            raise UserError(f"{key}: nothing reads this key with stage={cfg.stage}")
        parent = OmegaConf.select(checked, group) if group else checked
        with open_dict(checked):
            del parent[name]
    digit, target = cfg.get("digit"), cfg.get("target")
    named = {"digit", "target"} & set(typed or ())
    if named == {"digit"}:
        checked.target = digit
    elif named != {"target"} and digit not in (None, target) and (named or digit != "weakest"):
        expected = f"expected no other class than target={target}, since both mean the same"
        raise UserError(f"digit={digit}: {expected}")
    if run is not None:
        checked.paths.run = str(run.folder)
        for key in sorted(given, key=lambda key: key.count(".")):  # before those that repeat it
            OmegaConf.select(checked, key)  # raises for a ${name} of nothing
    check_values(checked)
    return checked


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


def classifier_of(cfg: DictConfig) -> "Classifier":
    """The classifier that a configuration names: its base, and its adapter as it was saved."""
    from lora_mnist.classifier.classifier import Classifier  # here: torch
    from lora_mnist.classifier.networks import device_of

    adapter = cfg.get("adapter")
    if adapter == "latest":
        folder = Path(cfg.paths.outputs, "lora")
        newest = latest(folder, f"*/{ADAPTER_FOLDER}/adapter_config.json")
        if newest is None:
            raise UserError(
                f"adapter=latest: expected an adapter in {folder}; make one with: "
                f"{program('train')} experiment=repair and the same data and net"
            )
        adapter = newest.parent
    groups = settings_of(cfg)
    classifier = Classifier.load(
        adapter, cfg.base_ckpt, **groups, bases=cfg.paths.bases, base_prefix=cfg.base_prefix
    )
    classifier.net.to(device_of(cfg.get("accelerator", "cpu")))  # a Trainer has its own
    return classifier
