"""Where the project is, and what its configurations need from Python."""

from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

#: The folder of ``train.py``, ``configs/``, ``data/`` and ``outputs/``. Commands may be started in
#: any folder; data and outputs belong to this one. An editable install runs from the checkout.
PROJECT = Path(__file__).resolve().parents[2]
if not (PROJECT / "configs").is_dir():
    PROJECT = Path.cwd()

OmegaConf.register_new_resolver("lora_mnist.project", lambda: str(PROJECT), replace=True)
OmegaConf.register_new_resolver("lora_mnist.cwd", lambda: str(Path.cwd()), replace=True)

# What a config inherits with "/any_keys@GROUP" takes keys that no file lists, without a +.
_any_keys = OmegaConf.create({})
OmegaConf.set_struct(_any_keys, False)
ConfigStore.instance().store("any_keys", _any_keys, provider="lora_mnist")
