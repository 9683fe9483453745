"""TensorBoard's HParams tab: one row a run, what was swept in front."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lora_mnist.sweep.command import key_of
from lora_mnist.sweep.folder import varied_overrides

Value = bool | int | float | str

#: What runs often differ in, shown behind what was swept; with a value of the key's type.
_USUAL: dict[str, Value] = {
    "digit": "",
    "stage": "",
    **dict.fromkeys(("lora.rank", "lora.alpha", "optimizer.lr", "data.replay"), 0),
    **dict.fromkeys(("data.hardness", "loss.target_weight", "trainer.max_steps", "seed"), 0),
}
#: How a run ended, the most telling first; other numbers follow.
_FIRST = (
    *("val/accuracy", "test/accuracy", "val/errors_of_target", "test/errors_of_target"),
    *("test/repaired", "test/broken", "val/repaired", "val/broken"),
)


def hparams_of(config: Mapping[str, Any], target: str | None) -> dict[str, Value]:
    """What the tab shows of a run: what its sweep swept, its target, and the usual keys.

    Args:
        config: the run's configuration.
        target: what the class to repair is called.
    """
    cfg = OmegaConf.create(dict(config))
    swept = {}
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        swept = swept_values(cfg, HydraConfig.get())
    usual = {key: OmegaConf.select(cfg, key) for key in _USUAL if key != "digit"}
    named = {"digit": target} if target else {}
    return swept | named | {k: v for k, v in usual.items() if isinstance(v, Value)}


def swept_values(cfg: DictConfig, hydra: HydraConf) -> dict[str, Value]:
    """The values of the keys in which this job differs from the others of its command."""
    swept: dict[str, Value] = {}
    for override in varied_overrides(hydra):
        key = key_of(override)
        value = OmegaConf.select(cfg, key)
        # A group, such as loss=margin, is known by the name that was chosen.
        swept[key] = value if isinstance(value, Value) else override.split("=", 1)[-1]
    return swept


def write_hparams(writer: Any, values: Mapping[str, Value], tags: Sequence[str]) -> None:
    """Write a run's row.

    Args:
        writer: a ``SummaryWriter``.
        values: what the run was told.
        tags: the scalars that say how it ended.
    """
    from torch.utils.tensorboard.summary import hparams

    ordered = [*(tag for tag in _FIRST if tag in tags), *(tag for tag in tags if tag not in _FIRST)]
    ends = dict.fromkeys(ordered, 0.0)
    numbers = {key: int(v) if isinstance(v, bool) else v for key, v in values.items()}
    # The columns of a folder are those of the run that TensorBoard finds first, perhaps of a base.
    columns = numbers | {key: v for key, v in _USUAL.items() if key not in numbers}
    experiment, _, _ = hparams(columns, ends)  # type: ignore[no-untyped-call]
    _, *row = hparams(numbers, ends)  # type: ignore[no-untyped-call]
    for summary in (experiment, *row):
        writer._get_file_writer().add_summary(summary)
