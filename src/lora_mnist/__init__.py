"""LoRA adapters that repair a classifier's weak class, and proof that the base stayed untouched.

The public names below are imported on first use: the command line, which imports this package to
answer ``--help``, does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_mnist.classifier.dial import dial_curve
    from lora_mnist.classifier.metrics import compare_errors
    from lora_mnist.classifier.net import CNN, MLP
    from lora_mnist.lora import (
        add_deltas,
        add_lora,
        combine_adapters,
        fold_lora_scale,
        load_adapter,
        lora_disabled,
        lora_names,
        lora_parameters,
        lora_summary,
        merge_lora,
        remove_lora,
        save_adapter,
        set_lora_enabled,
        set_lora_scale,
        trainable_parameters,
        unmerge_lora,
    )

__version__ = "0.2.0"

_MODULES = {
    "CNN": "classifier.net",
    "MLP": "classifier.net",
    "compare_errors": "classifier.metrics",
    "dial_curve": "classifier.dial",
}

__all__ = [
    "CNN",
    "MLP",
    "add_deltas",
    "add_lora",
    "combine_adapters",
    "compare_errors",
    "dial_curve",
    "fold_lora_scale",
    "load_adapter",
    "lora_disabled",
    "lora_names",
    "lora_parameters",
    "lora_summary",
    "merge_lora",
    "remove_lora",
    "save_adapter",
    "set_lora_enabled",
    "set_lora_scale",
    "trainable_parameters",
    "unmerge_lora",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'lora')}"), name)
