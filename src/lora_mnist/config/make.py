"""Makes the objects that a configuration names: parts of a training, the classifier, the device."""

from collections.abc import Mapping
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lora_mnist.classifier.choose_point import POINT_FIELDS
from lora_mnist.classifier.classifier import Classifier
from lora_mnist.errors import UserError, report_group_errors
from lora_mnist.project import import_from_here
from lora_mnist.run_paths import find_latest_adapter


def instantiate_part(key: str, cfg: Any, *arguments: Any, **options: Any) -> Any:
    """Instantiate a part of the configuration by Hydra; errors name ``key``."""
    with import_from_here(), report_group_errors(key):
        # Plain lists, for checkpoints.
        return instantiate(cfg, *arguments, _convert_="all", _partial_=False, **options)


def with_values(cfg: DictConfig, settings: Mapping[str, Any]) -> DictConfig:
    """Return a copy of a configuration with these values, by key."""
    copied = cfg.copy()
    for key, value in settings.items():
        OmegaConf.update(copied, key, value, merge=False, force_add=True)
    return copied


def read_settings(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """Return the resolved arguments of network, preprocessing and images in a configuration."""
    groups: dict[str, Any] = {}
    for group in ("net", "prepare", "data"):
        groups[group] = OmegaConf.to_container(cfg[group], resolve=True, throw_on_missing=True)
    return groups


def read_point(cfg: DictConfig) -> dict[str, float | str | None]:
    """Return the scale and offset that a command sets, or None for saved ones."""
    return {field: cfg.get(field) for field in POINT_FIELDS}


def load_from_config(cfg: DictConfig) -> Classifier:
    """Load the classifier of a configuration: its base, and its adapter at the saved point."""
    adapter = cfg.get("adapter")
    for field, value in read_point(cfg).items():
        if adapter is None and value is not None:
            raise UserError(f"{field}={value}: expected null, since there is no adapter")
    if adapter == "latest":
        adapter = find_latest_adapter(cfg.paths.outputs)
    groups = read_settings(cfg)
    classifier = Classifier.load(
        adapter, cfg.base_ckpt, **groups, bases=cfg.paths.bases, base_prefix=cfg.base_prefix
    )
    classifier.net.to(find_device(cfg.get("accelerator", "cpu")))  # a Trainer has its own
    return classifier


def find_device(accelerator: str) -> torch.device:
    """Return the device for one of Lightning's words: ``auto``, ``cpu``, ``gpu`` or ``mps``."""
    own = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator == "cpu" or (accelerator == "auto" and own is None):
        return torch.device("cpu")
    if own is None or (accelerator == "mps" and own.type != "mps"):
        has = f"a {own.type} device" if own else "no GPU"
        raise UserError(f"accelerator={accelerator}: expected auto or cpu; this machine has {has}")
    return own
