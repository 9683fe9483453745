"""The ``state_dict`` of an adapted network, in two parts: its base and its adapters."""

import re

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from .layer import LoRAParametrization

# Where an adapter's tensors stand in the state_dict of an adapted network.
_LORA_KEY = re.compile(r"(^|\.)parametrizations\.[^.]+\.\d+\.(lora|start)_[AB]$")


def base_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The ``state_dict`` that ``model`` had before LoRA: the base's tensors under its own names.

    The base is its parameters and its buffers. The tensors share memory with ``model``, as those of
    ``state_dict`` do. See also :func:`lora_state_dict`.
    """
    originals = {
        f"{name}.original": name.replace("parametrizations.", "")
        for name, steps in model.named_modules(remove_duplicate=False)
        if isinstance(steps, ParametrizationList) and isinstance(steps[0], LoRAParametrization)
    }
    return {
        originals.get(key, key): tensor
        for key, tensor in model.state_dict().items()
        if not _LORA_KEY.search(key)
    }


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The part of ``model.state_dict()`` that :func:`base_state_dict` leaves out."""
    state = model.state_dict()
    return {key: state[key] for key in state if _LORA_KEY.search(key)}
