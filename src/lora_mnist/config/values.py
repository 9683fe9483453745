"""What the values of keys have to be: checked once, before anything is made of them."""

import math
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from lora_mnist.choice import AUTO
from lora_mnist.errors import UserError, as_value, is_number


class Expected(NamedTuple):
    """What a key takes: values of some types, numbers between bounds, and words."""

    types: tuple[type, ...]  # float takes whole numbers, too
    least: float = -math.inf
    most: float = math.inf
    words: tuple[str | None, ...] = ()  # None: null
    above: float = -math.inf  # as least, but not this number itself

    def takes(self, value: object) -> bool:
        """Whether a key may have this value."""
        if value in self.words:
            return True
        types = (*self.types, int) if float in self.types else self.types
        if type(value) not in types:
            return False
        if is_number(value):
            return self.least <= value <= self.most and value > self.above  # type: ignore[operator]
        return type(value) is not float  # nan and infinity are no numbers

    def __str__(self) -> str:
        names = {int: "a whole number", float: "a number", str: "a text", list: "a list"}
        names |= {bool: "true or false", dict: "values by name, as in {linear1: 4}"}
        signs = {">=": self.least, ">": self.above, "<=": self.most}
        bounds = [f"{sign} {bound}" for sign, bound in signs.items() if math.isfinite(bound)]
        number, *others = [names[each] for each in self.types]
        number = " ".join([number, " and ".join(bounds)]).rstrip()
        return " or ".join([number, *others, *map(as_value, self.words)])


_WHETHER = Expected((bool,), words=(None,))
_COUNT = Expected((int,), least=1)
_COUNT_OR_NULL = Expected((int,), least=1, words=(None,))
_SHARE = Expected((float,), above=0, words=(None,))  # of batches, or their number
_PATH = Expected((str, int))  # a folder may be called 2024
_ABSENT = object()
#: Keys whose values no part of a library refuses, or refuses too late.
EXPECTED = {
    "seed": Expected((int,), least=0, most=2**32 - 1),
    "compile": Expected((bool,)),
    "figures": _WHETHER,
    "dial": _WHETHER,
    "refit": Expected((bool,), words=(AUTO,)),
    "mistakes_test": Expected((float,), least=0, most=1),
    "batches.batch_size": _COUNT,
    "batches.replay": Expected((int,), least=0, words=(AUTO,)),
    "batches.seed": Expected((int,), least=0, words=(None,)),
    "data.split_seed": Expected((int,), words=(None,)),
    "data.eval_batch_size": _COUNT_OR_NULL,
    "data.num_workers": Expected((int,), least=0, words=(None,)),
    "optimizer.lr": Expected((float,), least=0, words=(AUTO,)),
    "lora.scale": Expected((float,), above=0, words=(AUTO,)),
    "scale": Expected((float,), words=(AUTO, None)),
    "lora.target_modules": Expected((str, list)),
    "lora.rank_pattern": Expected((dict,), words=(None,)),
    "lora.alpha_pattern": Expected((dict,), words=(None,)),
    "paths.outputs": _PATH,
    "paths.bases": _PATH,
    "ckpt_path": Expected((str, int), words=(None,)),
    "trainer.max_steps": Expected((int,), least=-1),
    "trainer.max_epochs": Expected((int,), least=-1, words=(None,)),
    "trainer.log_every_n_steps": Expected((int,), least=0, words=(None,)),
    "trainer.accumulate_grad_batches": _COUNT,
    "trainer.val_check_interval": Expected((float, str), above=0, words=(None,)),
    "trainer.limit_train_batches": _SHARE,
    "trainer.limit_val_batches": Expected((float,), least=0, words=(None,)),
    "trainer.limit_test_batches": _SHARE,  # a run ends in a test
}


def check_values(cfg: DictConfig) -> None:
    """Refuse a value that its key cannot have."""
    for key, expected in EXPECTED.items():
        value = OmegaConf.select(cfg, key, default=_ABSENT)
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value)
        if value is not _ABSENT and not expected.takes(value):
            raise UserError(f"{key}={as_value(value)}: expected {expected}")
