"""LoRA adapters that repair a classifier's weak class, and proof that the base stayed untouched.

The public names are in :mod:`.api`, which is imported on first use: the command line, which
imports this package to answer ``--help``, does not wait for torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_mnist.api import *  # noqa: F403

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    import lora_mnist.api as api

    return getattr(api, name)


def __dir__() -> list[str]:
    import lora_mnist.api as api

    return [*api.__all__, "__version__"]
