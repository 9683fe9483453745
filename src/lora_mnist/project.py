"""Where the project is, and what its configurations need from Python."""

from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf


def _find_project() -> Path:
    # An editable install, which the README asks for, runs from the checkout itself.
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "configs").is_dir() else Path.cwd()


#: The folder of ``train.py``, ``configs/``, ``data/`` and ``outputs/``. Commands may be started in
#: any folder; data and outputs belong to this one.
PROJECT = _find_project()

OmegaConf.register_new_resolver("lora_mnist.project", lambda: str(PROJECT), replace=True)
OmegaConf.register_new_resolver("lora_mnist.cwd", lambda: str(Path.cwd()), replace=True)

# What a config inherits with "/any_keys@GROUP" takes keys that no file lists, without a +.
_any_keys = OmegaConf.create({})
OmegaConf.set_struct(_any_keys, False)
ConfigStore.instance().store("any_keys", _any_keys, provider="lora_mnist")
