"""The weights of a network that can carry an adapter, and how an adapter is put on one."""

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from .conv import conv2d_forward
from .layer import AdapterParametrization, linear_forward


class Weight(NamedTuple):
    """One weight of a network: the attribute ``tensor`` of ``module``."""

    module: nn.Module
    tensor: str

    @property
    def parametrizations(self) -> Any:
        """What is registered on the weight, in order; empty where that is nothing."""
        if not parametrize.is_parametrized(self.module, self.tensor):
            return []
        return self.module.parametrizations[self.tensor]  # type: ignore[index]

    @property
    def adapters(self) -> list[AdapterParametrization]:
        """The adapters on the weight, first registered first."""
        return [p for p in self.parametrizations if isinstance(p, AdapterParametrization)]

    @property
    def base(self) -> Tensor:
        """The weight without any adapter; reading it from the layer would build the dense sum."""
        return self.adapted([])

    def below(self, adapter: AdapterParametrization) -> Tensor:
        """The effective weight without ``adapter`` and what is stacked on it."""
        adapters = self.adapters
        return self.adapted(adapters[: adapters.index(adapter)])

    def adapted(self, adapters: Collection[AdapterParametrization]) -> Tensor:
        """The weight as these of its adapters make it."""
        registered = self.parametrizations
        if not registered:
            return getattr(self.module, self.tensor)  # type: ignore[no-any-return]
        tensors = list(registered.parameters(recurse=False))
        for each in registered:
            if each in adapters:
                tensors = [each(*tensors)]
            elif not isinstance(each, AdapterParametrization):
                # Somebody else's; in train mode, spectral_norm would change its buffers.
                was_training = each.training
                tensors = [each.eval()(*tensors)]
                each.train(was_training)
        weight: Tensor = tensors[0]
        return weight

    @property
    def is_factored(self) -> bool:
        """Whether the layer computes with the factors, and so shows the adapter its inputs.

        Linear layers and plain 2-d convolutions do. A subclass with a forward of its own keeps it
        and reads the dense weight, as attention does with the weight of its ``out_proj``; so does a
        layer on whose weight somebody else's parametrization stands.
        """
        module = self.module
        if self.tensor != "weight" or len(self.adapters) < len(self.parametrizations):
            return False
        if isinstance(module, NonDynamicallyQuantizableLinear):
            return False
        if isinstance(module, nn.Conv2d) and (module.groups > 1 or module.padding_mode != "zeros"):
            return False
        plain = (nn.Linear.forward, nn.Conv2d.forward, linear_forward, conv2d_forward)
        return type(module).forward in plain

    def register(self, adapter: AdapterParametrization) -> None:
        """Register ``adapter``, and give the layer the forward pass that uses its factors."""
        self._own_class()
        # unsafe: torch would build the dense product, to check a shape right by construction.
        parametrize.register_parametrization(self.module, self.tensor, adapter, unsafe=True)
        self._choose_forward()

    def drop(self, names: Collection[str]) -> None:
        """Take the adapters called ``names`` off; whatever else is registered stays."""
        registered = self.parametrizations
        for adapter in self.adapters:
            if adapter.name in names:
                del registered[list(registered).index(adapter)]
        if len(registered) == 0:
            self._clear()

    def merge(self, names: Collection[str]) -> nn.ModuleList:
        """Put the weight that the adapters called ``names`` make in the place of the one below.

        Returns:
            What was registered on the weight, for :meth:`unmerge`.
        """
        registered: nn.ModuleList = self.parametrizations
        merged = [adapter for adapter in self.adapters if adapter.name in names]
        left = [adapter for adapter in self.adapters if adapter.name not in names]
        with torch.no_grad():
            # A parameter of its own: another layer may share the old one, which stays as it was.
            weight = nn.Parameter(self.adapted(merged).clone(), requires_grad=False)
        self._clear()
        setattr(self.module, self.tensor, weight)
        for adapter in left:
            self.register(adapter)
        return registered

    def unmerge(self, registered: Any) -> None:
        """Undo :meth:`merge`: the same modules on the same parameters, where the weight is now."""
        registered.to(self.base.device)
        current = self.adapters
        if current:
            self._clear()
        before = [p for p in registered if isinstance(p, AdapterParametrization)]
        self.register(before[0])  # makes the layer's class
        self.module.parametrizations[self.tensor] = registered  # type: ignore[index,operator]
        self._choose_forward()
        for adapter in current:
            if adapter not in before:  # it was put on meanwhile, and stays the last
                self.register(adapter)

    def _clear(self) -> None:
        """Drop everything registered on the weight, and leave what is below."""
        self._own_class()
        # Of several tensors below, torch can leave but what is computed from them.
        is_single = hasattr(self.parametrizations, "original")
        parametrize.remove_parametrizations(
            self.module, self.tensor, leave_parametrized=not is_single
        )
        self._choose_forward()

    def _choose_forward(self) -> None:
        # torch gives each parametrized module a class of its own, so this forward is this layer's
        # alone; it survives deepcopy, and goes with the last parametrization.
        if self.tensor == "weight" and parametrize.is_parametrized(self.module):
            layer: Any = type(self.module)
            layer.forward = layer.__bases__[0].forward
            if self.adapters and self.is_factored:
                is_linear = isinstance(self.module, nn.Linear)
                layer.forward = linear_forward if is_linear else conv2d_forward

    def _own_class(self) -> None:
        # A deep copy shares the class that torch made for the layer, and torch changes that class:
        # without one of its own, the twin would change with it.
        if parametrize.is_parametrized(self.module):
            shared = type(self.module)
            self.module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))


def lora_adapters(model: nn.Module) -> list[AdapterParametrization]:
    """Every adapter on every weight of ``model``, or of one layer; empty without LoRA."""
    return [m for m in model.modules() if isinstance(m, AdapterParametrization)]


def adaptable_weights(model: nn.Module) -> dict[str, Weight]:
    """Every tensor of ``model`` that can carry an adapter, by name, in the model's order.

    Those are its parameters that hold floating-point numbers; LoRA needs two or more dimensions. A
    layer's ``weight`` goes by the name of the layer, as in PEFT: ``encoder.linear1``; any other
    parameter by its own: ``encoder.linear1.bias``, ``encoder.self_attn.in_proj_weight``.
    """
    weights = {}
    for layer, module in model.named_modules():
        if "parametrizations" in layer.split("."):
            continue
        tensors = [name for name, _ in module.named_parameters(recurse=False)]
        if parametrize.is_parametrized(module):
            tensors = [*module.parametrizations, *tensors]
        for tensor in tensors:
            weight = Weight(module, tensor)
            base = weight.base
            if nn.parameter.is_lazy(base) or not base.is_floating_point():
                continue
            name = layer if tensor == "weight" else f"{layer}.{tensor}".removeprefix(".")
            weights[name] = weight
    return weights
