"""The base stays as it is while it carries an adapter: frozen, in eval mode, and remembered.

A base is its parameters and its buffers. To freeze the parameters is not enough: in train mode,
batch normalisation moves its running statistics, and computes with those of the batch.
"""

from typing import Any

from torch import nn

from .base_state import base_state_dict, fingerprint
from .layer import LoRAParametrization


class FrozenBase:
    """Keeps the base of one network in eval mode, and remembers its tensors by their SHA-256.

    It is the network's attribute ``lora_frozen_base`` and acts by forward hooks, in every training
    loop: after ``model.train()`` the next forward pass puts the base back in eval mode. Adapters
    stay in train mode, and ``model.training`` reads as the loop has set it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.fingerprints = _fingerprints(model)
        # Whether the network was in train mode, for each forward pass that has not ended yet.
        self._was_training: list[bool] = []
        self.handles: list[Any] = []

    def attach(self, model: nn.Module) -> None:
        """Freeze the base of ``model``: no gradients, and eval mode in each forward pass."""
        self.handles = [
            model.register_forward_pre_hook(self._before),
            model.register_forward_hook(self._after, always_call=True),
        ]
        for module in model.modules():
            if isinstance(module, LoRAParametrization):
                continue
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
            # What has buffers gets a hook of its own, for whoever calls a part of the network. Not
            # every layer: a hook in nn.TransformerEncoderLayer keeps it from the base's fast path.
            has_buffers = next(module.buffers(recurse=False), None) is not None
            if module is not model and has_buffers:
                self.handles.append(module.register_forward_pre_hook(_to_eval))
        model.lora_frozen_base = self  # type: ignore[assignment]

    def _before(self, model: nn.Module, inputs: Any) -> None:
        self._was_training.append(model.training)
        if model.training:
            for module in model.modules():
                if not isinstance(module, LoRAParametrization):
                    module.training = False

    def _after(self, model: nn.Module, inputs: Any, output: Any) -> None:
        model.training = self._was_training.pop()


def _to_eval(module: nn.Module, inputs: Any) -> None:
    module.training = False


def _fingerprints(model: nn.Module) -> dict[str, str]:
    """The fingerprint of each tensor of the base of ``model``, by name."""
    state = base_state_dict(model)
    return {name: fingerprint({name: tensor}) for name, tensor in state.items()}


def freeze_base(model: nn.Module) -> nn.Module:
    """Freeze the base of ``model``, keep it in eval mode, and remember its tensors.

    A network is frozen with its first adapter, until :func:`.merge.merge_lora` or
    :func:`.merge.remove_lora`. Call this yourself after loading another base into a network that
    carries adapters already.

    Args:
        model: any network; changed in place, and returned.

    Raises:
        ValueError: if a tensor holds no numbers yet.
    """
    frozen = FrozenBase(model)
    release_base(model)
    frozen.attach(model)
    return model


def release_base(model: nn.Module) -> dict[str, FrozenBase]:
    """Let ``model.train()`` reach the base again; its parameters stay frozen.

    Returns:
        What :func:`freeze_base` left on ``model``, under the name ``""``, and on parts of it.
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
            for name, _ in frozen.fingerprints.items() ^ _fingerprints(module).items():
                moved.add(f"{part}.{name}".removeprefix("."))
    return sorted(moved)
