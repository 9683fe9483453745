"""The base stays as it is while it carries an adapter: frozen, in eval mode, and remembered.

A base is its parameters and its buffers. To freeze the parameters is not enough: in train mode,
batch normalisation moves its running statistics, and computes with those of the batch.
"""

from typing import Any

from torch import nn

from .base_state import base_state_dict, fingerprints
from .layer import AdapterParametrization


class FrozenBase:
    """Keeps the base of one network in eval mode, and knows what its tensors were.

    It is the network's attribute ``lora_frozen_base``, and acts by forward hooks. So it outlasts
    whoever calls ``model.train()``: that reaches the adapters, and the base only until the next
    forward pass. ``model.training`` itself is afterwards what it was before.
    """

    def __init__(self, model: nn.Module, base_dropout: bool) -> None:
        self.fingerprints = fingerprints(base_state_dict(model))
        self.base_dropout = base_dropout
        # Whether the network was in train mode, for each forward pass that has not ended yet.
        self._was_training: list[bool] = []
        self.handles: list[Any] = []

    def attach(self, model: nn.Module) -> None:
        """Freeze the parameters of the base of ``model``, and keep it in eval mode from now on."""
        self.handles = [
            model.register_forward_pre_hook(self._before),
            model.register_forward_hook(self._after, always_call=True),
        ]
        for module in model.modules():
            if isinstance(module, AdapterParametrization):
                continue
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
            # Again on what has buffers, for whoever calls a part of the network. Not on every
            # layer: a hook in nn.TransformerEncoderLayer keeps it from the plain base's fast path.
            if module is not model and _has_buffers(module):
                self.handles.append(module.register_forward_pre_hook(_to_eval))
        model.lora_frozen_base = self  # type: ignore[assignment]

    def _before(self, model: nn.Module, inputs: Any) -> None:
        self._was_training.append(model.training)
        if not model.training:
            return
        for module in model.modules():
            is_base = not isinstance(module, AdapterParametrization)
            if is_base and (not self.base_dropout or _has_buffers(module)):
                module.training = False

    def _after(self, model: nn.Module, inputs: Any, output: Any) -> None:
        model.training = self._was_training.pop()


def freeze_base(model: nn.Module, base_dropout: bool = False) -> nn.Module:
    """Freeze the base of ``model``, keep it in eval mode, and remember its tensors.

    Every network that gets its first adapter has this done to it, until :func:`.merge.merge_lora`
    or :func:`.merge.remove_lora`. Call it to change ``base_dropout``, or after loading another base
    into a network that carries adapters already. ``ValueError`` if a tensor holds no numbers yet.

    Args:
        model: any network; changed in place, and returned.
        base_dropout: leave train mode to those modules of the base that hold no buffers, so that
            the base's own dropout acts while an adapter trains.
    """
    frozen = FrozenBase(model, base_dropout)
    release_base(model)
    frozen.attach(model)
    return model


def release_base(model: nn.Module) -> dict[str, FrozenBase]:
    """Let ``model.train()`` reach the base again; its parameters stay frozen.

    Returned is what :func:`freeze_base` left on ``model``, called ``""``, and on parts of it.
    """
    released = {}
    for name, module in model.named_modules():
        if frozen := getattr(module, "lora_frozen_base", None):
            for handle in frozen.handles:
                handle.remove()
            del module.lora_frozen_base
            released[name] = frozen
    return released


def moved_tensors(model: nn.Module) -> list[str]:
    """Names of the base's tensors that changed since :func:`freeze_base`; empty without it."""
    moved = set()
    for part, module in model.named_modules():
        if frozen := getattr(module, "lora_frozen_base", None):
            after = fingerprints(base_state_dict(module))
            for name, _ in frozen.fingerprints.items() ^ after.items():
                moved.add(f"{part}.{name}".removeprefix("."))
    return sorted(moved)


def _has_buffers(module: nn.Module) -> bool:
    return next(module.buffers(recurse=False), None) is not None


def _to_eval(module: nn.Module, inputs: Any) -> None:
    module.training = False
