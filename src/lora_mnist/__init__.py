"""LoRA adapters that repair a classifier's weak class, and proof that the base stayed untouched.

The public names below are imported on first use, so that the command line, which imports this
package to answer ``--help``, does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_mnist.adapter import load_adapter, save_adapter
    from lora_mnist.lora import (
        add_lora,
        lora_disabled,
        lora_names,
        lora_parameters,
        merge_lora,
        remove_lora,
        set_lora_enabled,
    )
    from lora_mnist.net import CNN, MLP

_HOMES = {
    "CNN": "net",
    "MLP": "net",
    "add_lora": "lora",
    "lora_disabled": "lora",
    "set_lora_enabled": "lora",
    "merge_lora": "lora",
    "remove_lora": "lora",
    "lora_names": "lora",
    "lora_parameters": "lora",
    "save_adapter": "adapter",
    "load_adapter": "adapter",
}

__all__ = [
    "CNN",
    "MLP",
    "add_lora",
    "load_adapter",
    "lora_disabled",
    "lora_names",
    "lora_parameters",
    "merge_lora",
    "remove_lora",
    "save_adapter",
    "set_lora_enabled",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
