"""Where the project is, how its commands are typed, what its configurations need from Python."""

import sys
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

_PACKAGE = Path(__file__).resolve().parent
#: The configurations. A wheel has them in the package, a checkout beside ``src``.
CONFIGS = _PACKAGE / "configs"
#: The folder of ``data/`` and ``outputs/``: the checkout, wherever in it or out of it a command is
#: started; of an installed package the folder where the user is.
PROJECT = Path.cwd()
if not CONFIGS.is_dir():
    PROJECT = _PACKAGE.parents[1]
    CONFIGS = PROJECT / "configs"


def program(name: str | None = None) -> str:
    """How a command is typed: ``python train.py``, or ``lora-mnist train`` in ``lora-mnist``.

    Args:
        name: the command; ``None``: the one that runs.
    """
    if Path(sys.argv[0]).stem == "lora-mnist":
        return f"lora-mnist {name or sys.argv[2]}"  # entry.py has put --config-name before the word
    return f"python {f'{name}.py' if name else sys.argv[0]}"


def is_sweep() -> bool:
    """Whether this is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def typed_overrides(*left_out: str) -> list[str]:
    """What the command line sets, but for overrides that begin with one of ``left_out``."""
    if not HydraConfig.initialized():
        return []
    overrides = HydraConfig.get().overrides
    typed = [*overrides.task, *overrides.hydra]
    return [text for text in typed if not text.lstrip("+~").startswith(left_out)]


OmegaConf.register_new_resolver("lora_mnist.project", lambda: str(PROJECT), replace=True)
OmegaConf.register_new_resolver("lora_mnist.program", program, replace=True)
OmegaConf.register_new_resolver("lora_mnist.cwd", lambda: str(Path.cwd()), replace=True)


def sweep_name(otherwise: str | None) -> str | None:
    """Resolver: the name of the sweep of which this is a job, by which loggers group its runs."""
    return Path(HydraConfig.get().sweep.dir).name if is_sweep() else otherwise


OmegaConf.register_new_resolver("lora_mnist.sweep_name", sweep_name, replace=True)


def _unless(other: object, value: object) -> object:
    """``value``, which gives way where ``other`` is set."""
    return value if other is None else None


OmegaConf.register_new_resolver("lora_mnist.unless", _unless, replace=True)

# What a config inherits with "/any_keys@GROUP" takes keys that no file lists, without a +.
_any_keys = OmegaConf.create({})
OmegaConf.set_struct(_any_keys, False)
ConfigStore.instance().store("any_keys", _any_keys, provider="lora_mnist")
