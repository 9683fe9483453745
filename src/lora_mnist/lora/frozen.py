"""The base stays as it is while it carries an adapter: frozen, in eval mode, and remembered.

A base is its parameters and its buffers. To freeze the parameters is not enough: in train mode,
batch normalisation moves its running statistics, and computes with those of the batch.
"""

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from .base_state import checksums
from .layer import LoRAParametrization
from .state import base_state_dict


class FrozenBase:
    """Keeps the base of one network in eval mode, and knows what its tensors were.

    It is a forward pre-hook of the network, so it outlasts whoever calls ``model.train()``: that
    reaches the adapters, and the base only until the next forward pass.

    Attributes:
        checksums: one of every tensor of the base, by name.
        base_dropout: whether the base's own dropout follows ``model.train()``.
    """

    def __init__(self, model: nn.Module, base_dropout: bool) -> None:
        self.checksums = checksums(base_state_dict(model))
        self.base_dropout = base_dropout
        self._handles: list[RemovableHandle] = [model.register_forward_pre_hook(self)]
        # Again on what has state, for whoever calls a part of the network. Not on every layer: a
        # hook inside nn.TransformerEncoderLayer keeps it from the fast path of the plain base.
        self._handles += [
            module.register_forward_pre_hook(_to_eval)
            for module in model.modules()
            if _has_state(module)
        ]

    def __call__(self, model: nn.Module, inputs: Any) -> None:
        """Put the base back into eval mode, if ``model.train()`` was called."""
        if not model.training:
            return
        for module in model.modules():
            is_base = not isinstance(module, LoRAParametrization)
            if _has_state(module) or (is_base and not self.base_dropout):
                module.training = False

    def remove(self) -> None:
        """Let ``train()`` reach the base again."""
        for handle in self._handles:
            handle.remove()


def freeze_base(model: nn.Module, base_dropout: bool = False) -> nn.Module:
    """Freeze the base of ``model``, keep it in eval mode, and remember its tensors.

    :func:`.model.attach` does this for every network that gets its first adapter. Call it to change
    ``base_dropout``, or after loading another base into a network that carries adapters already.

    From then on every forward pass of ``model`` has its base in eval mode, whatever
    ``model.train()`` said, until :func:`.model.merge_lora` or :func:`.model.remove_lora`.

    Args:
        model: any network; changed in place.
        base_dropout: leave train mode to those modules of the base that hold no buffers, so that
            the base's own dropout acts while an adapter trains.

    Returns:
        The same ``model``.
    """
    release_base(model)
    for module in model.modules():
        if not isinstance(module, LoRAParametrization):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
    FrozenBase(model, base_dropout)
    return model


def release_base(model: nn.Module) -> None:
    """Let ``model.train()`` reach the base again; its parameters stay frozen."""
    for _, frozen in _frozen_bases(model):
        frozen.remove()


def is_base_frozen(model: nn.Module) -> bool:
    """Whether :func:`freeze_base` holds for ``model`` itself."""
    return any(name == "" for name, _ in _frozen_bases(model))


def moved_tensors(model: nn.Module) -> list[str]:
    """Names of the base's tensors that changed since :func:`freeze_base`; empty without it."""
    now = checksums(base_state_dict(model))
    return [
        f"{prefix}{name}"
        for module, frozen in _frozen_bases(model)
        for prefix in [f"{module}." if module else ""]
        for name, before in frozen.checksums.items()
        if now.get(f"{prefix}{name}") != before
    ]


def _frozen_bases(model: nn.Module) -> list[tuple[str, FrozenBase]]:
    return [
        (name, hook)
        for name, module in model.named_modules()
        for hook in list(module._forward_pre_hooks.values())
        if isinstance(hook, FrozenBase)
    ]


def _has_state(module: nn.Module) -> bool:
    is_base = not isinstance(module, LoRAParametrization)
    return is_base and any(True for _ in module.buffers(recurse=False))


def _to_eval(module: nn.Module, inputs: Any) -> None:
    module.training = False
