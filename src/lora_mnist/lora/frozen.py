"""The base stays in eval mode while it carries an adapter.

A base is its parameters and its buffers. To freeze the parameters is not enough: in train mode,
batch normalisation moves its running statistics, and computes with those of the batch.
"""

from typing import Any

from torch import nn

from .layer import LoRAParametrization


def keep_in_eval_mode(model: nn.Module) -> None:
    """Put the base back in eval mode before each forward pass, whatever ``model.train()`` said."""
    hooks = []
    for module in model.modules():
        # A part with buffers gets a hook of its own, for whoever calls it alone. Not every layer
        # does: a hook in nn.TransformerEncoderLayer keeps it from the base's fast path.
        has_buffers = next(module.buffers(recurse=False), None) is not None
        if module is model or (has_buffers and not isinstance(module, LoRAParametrization)):
            hooks.append(module.register_forward_pre_hook(_base_to_eval))
    model.lora_hooks = hooks  # type: ignore[assignment]


def _base_to_eval(part: nn.Module, inputs: Any) -> None:
    if part.training:
        for module in part.modules():
            if not isinstance(module, LoRAParametrization):
                module.training = False


def release_base(model: nn.Module) -> list[str]:
    """Let ``model.train()`` reach the base again; the names of the parts that were kept from it."""
    released = []
    for name, module in model.named_modules():
        if hasattr(module, "lora_hooks"):
            for hook in module.lora_hooks:
                hook.remove()
            del module.lora_hooks
            released.append(name)
    return released
