"""What a configuration makes: parts of the training, and the classifier that it names."""

from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lora_mnist.errors import UserError, config_group
from lora_mnist.project import importable
from lora_mnist.run_paths import latest_adapter

if TYPE_CHECKING:
    from lora_mnist.classifier.classifier import Classifier


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
    for key in ("scale", "offset"):
        if adapter is None and cfg.get(key) is not None:
            raise UserError(f"{key}={cfg[key]}: expected null, since there is no adapter")
    if adapter == "latest":
        adapter = latest_adapter(cfg.paths.outputs)
    groups = settings_of(cfg)
    classifier = Classifier.load(
        adapter, cfg.base_ckpt, **groups, bases=cfg.paths.bases, base_prefix=cfg.base_prefix
    )
    classifier.net.to(device_of(cfg.get("accelerator", "cpu")))  # a Trainer has its own
    return classifier
