"""Every key of every command, and odd values for it."""

import inspect
import random
from collections.abc import Iterator
from typing import NamedTuple

from hydra import compose, initialize_config_dir
from lightning.pytorch import Trainer
from omegaconf import DictConfig

from lora_mnist.project import PROJECT
from torture.small import with_defaults

_TRAIN = ("trainer.max_steps=2", "logger=csv")
#: What is started: the entry, its overrides, and the keys that are of interest (none: all).
COMMANDS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "pretrain": ("train", ("stage=pretrain", *_TRAIN), ()),
    "lora": ("train", ("stage=lora", *_TRAIN), ()),
    "recipe": (
        "train",
        ("experiment=repair", "callbacks=averaging", "augment=shift", "loss=distill", *_TRAIN),
        ("loss", "scheduler", "callbacks", "data", "lora", "optimizer", "digit"),
    ),
    "finetune": ("train", ("stage=finetune", "optimizer=adamw", *_TRAIN), ("train", "optimizer")),
    "drawn": (
        "train",
        ("stage=lora", "trainer.max_steps=2", "figures=true"),
        ("logger", "digit", "lora"),
    ),
    "sweep": ("train", ("-m", "stage=lora", "lora.rank=1", *_TRAIN), ("sweep", "digit", "seed")),
    "eval": ("eval", ("adapter=latest",), ()),
    "folder": ("eval", ("data=folder", "net=custom", "data.data_dir=photos"), ("data", "net")),
    "predict": ("predict", ("adapter=latest", "images=nine.png"), ()),
    "export": ("export", ("adapter=latest", "out=net.safetensors"), ()),
    "report": ("report", (), ()),
    "demo": ("demo", ("adapter=latest", "server.port=0"), ()),
}

#: Values as they stand behind the = of an override.
VALUES = (
    *("0", "1", "-1", "-7", "2", "3", "0.5", "-0.5", "1.5", "1e-38", "1e-320", "1e38", "1e308"),
    *("1e400", "-1e400", "nan", "inf", "-inf", "1000000000", "1000000000000", "2147483648"),
    *("4294967296", "9223372036854775808", "1" + "0" * 30, "-1" + "0" * 30, "1" + "0" * 400),
    *("null", "true", "false", "", "''", "' '", "x", "latest", "nope.png", "auto", "all", "none"),
    *("[]", "[1]", "[null]", "[nan]", "[1,1]", "[[1,2],[3]]", "[x,'']", "[0,-1]", "['[/nope]']"),
    *("{}", "{a:1}", "{a:{b:[]}}", "{_target_:nope}", "{_target_:builtins.int}", "{path:1}"),
    *("'[/nope]'", "'[bold red]x'", "'{'", "'it\\'s'", "'\"'", "'ü漢字🙂'", "'\u202ex'", "'a\nb'"),
    *("'\x1b[31mred'", "'a b'", "'%s %d {0}'", "'${nope}'", "${nope}", "???", "'???'", "'a=b,c'"),
    *("'" + "a" * 5000 + "'", "'" + "b/" * 300 + "c'", "..", ".", "'*'", "'[a-'", "'(('"),
    *("'\udcff'", "builtins.int", "torch.nn.Linear", "os.getcwd", "0x10", "1_000", "1e", "-"),
    *("--", "=", "'\\'"),
)


class Case(NamedTuple):
    """One key of a command with one odd value."""

    name: str
    key: str
    value: str

    def arguments(self, common: tuple[str, ...]) -> list[str]:
        """Of the command line; the odd value takes the place of a usual one."""
        _, overrides, _ = COMMANDS[self.name]
        usual = [o for o in with_defaults(overrides, common) if o.partition("=")[0] != self.key]
        return [*usual, f"{self.key}={self.value}"]


#: With a second machine, torch waits for it, and no interrupt ends that.
_NOT_TRIED = {"self", "kwargs", "num_nodes"}
#: What once ended in a traceback, a file that did not load, or a message that named nothing.
MENDED = (
    Case("lora", "optimizer.fused", "[0,-1]"),
    Case("lora", "trainer.max_epochs", "[1]"),
    Case("lora", "+trainer.check_val_every_n_epoch", "0"),
    Case("lora", "callbacks.checkpoint", "1e308"),
    Case("lora", "callbacks.checkpoint.dirpath", "[1,1]"),
    Case("lora", "data.seed", "1" + "0" * 30),
    Case("lora", "loss.target_weight", "${nope}"),
    Case("lora", "lora.alpha", "1e308"),
    Case("recipe", "loss.temperature", "9223372036854775808"),
    Case("eval", "paths.outputs", "${nope}"),
    Case("lora", "lora.rank", "1000000000"),
    Case("drawn", "lora.init_std", "1e38"),
    Case("lora", "+trainer.profiler", "-0.5"),
    Case("pretrain", "data.batch_size", "1" + "0" * 30),
    Case("predict", "picture", "1"),
    Case("recipe", "scheduler.total_iters", "''"),
    Case("recipe", "optimizer.lr", "--"),
    Case("pretrain", "paths.outputs", "[nan]"),
    Case("pretrain", "base_name", "'" + "a" * 5000 + "'"),
    Case("sweep", "sweep.metrics", "true"),
    Case("sweep", "sweep.metrics", "${nope}"),
    Case("lora", "+trainer.detect_anomaly", "null"),
    Case("lora", "logger.name", "3"),
    Case("export", "net", "4294967296"),
    Case("predict", "data.data_dir", "-7"),
    Case("report", "paths.outputs", "3"),
    Case("demo", "server", "1"),
)


def keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every key of ``cfg``, dots between nested ones; a group's own name too."""
    for name, value in cfg.items_ex(resolve=False):
        key = f"{prefix}{name!s}"
        yield key
        if isinstance(value, DictConfig) and not value._is_none():
            yield from keys(value, f"{key}.")


def keys_of(name: str) -> list[str]:
    """The keys of a command; with a + those that Lightning's Trainer takes and no file lists."""
    entry, overrides, wanted = COMMANDS[name]
    with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        cfg = compose(entry, [o for o in overrides if not o.startswith("-")])
    found = [key for key in keys(cfg) if not wanted or key.startswith(wanted)]
    if name in ("lora", "eval"):
        taken = set(inspect.signature(Trainer.__init__).parameters) - _NOT_TRIED
        found += [f"+trainer.{key}" for key in sorted(taken - set(cfg.trainer))]
    return found


def cases(seed: int, per_key: int | None) -> list[Case]:
    """``per_key`` odd values for each key of each command, or all of them, in a random order."""
    chance = random.Random(seed)
    found: list[Case] = []
    for name in COMMANDS:
        for key in keys_of(name):
            values = VALUES if per_key is None else chance.sample(VALUES, per_key)
            found += [Case(name, key, value) for value in values]
    chance.shuffle(found)
    return found
