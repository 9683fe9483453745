"""The weights of a network that can carry an adapter, and how an adapter is put on one."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from .layer import AdapterParametrization, conv2d_forward, linear_forward


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
        registered = self.parametrizations
        if registered and isinstance(registered[0], AdapterParametrization):
            original: Tensor = registered.original
            return original
        if not registered:
            return getattr(self.module, self.tensor)  # type: ignore[no-any-return]
        # Somebody else's parametrization; in train mode, reading it may change its buffers.
        was_training = registered.training
        registered.eval()
        tensor: Tensor = getattr(self.module, self.tensor)
        registered.train(was_training)
        return tensor

    @property
    def effective(self) -> Tensor:
        """The weight with its adapters, as the layer shows it."""
        return getattr(self.module, self.tensor) if self.adapters else self.base

    @property
    def is_factored(self) -> bool:
        """Whether the layer computes with the factors, and so shows the adapter its inputs.

        Linear layers and plain 2-d convolutions do. A subclass with a forward of its own keeps it
        and reads the dense weight, as attention does with the weight of its ``out_proj``.
        """
        module = self.module
        if self.tensor != "weight" or isinstance(module, NonDynamicallyQuantizableLinear):
            return False
        if isinstance(module, nn.Conv2d) and (module.groups > 1 or module.padding_mode != "zeros"):
            return False
        plain = (nn.Linear.forward, nn.Conv2d.forward, linear_forward, conv2d_forward)
        return type(module).forward in plain

    def register(self, adapter: AdapterParametrization) -> None:
        """Register ``adapter``, and give the layer the forward pass that uses its factors."""
        is_factored = self.is_factored
        if parametrize.is_parametrized(self.module):
            self._own_class()
        # unsafe: torch would build the dense product, to check a shape right by construction.
        parametrize.register_parametrization(self.module, self.tensor, adapter, unsafe=True)
        # torch gives each parametrized module a class of its own, so this forward is this layer's
        # alone; it survives deepcopy, and goes with the last parametrization.
        layer: Any = type(self.module)
        layer.__getstate__ = _refuse_to_pickle
        if is_factored:
            is_linear = isinstance(self.module, nn.Linear)
            layer.forward = linear_forward if is_linear else conv2d_forward
        elif isinstance(self.module, nn.RNNBase):
            layer.forward = recurrent_forward

    def drop(self, names: Collection[str]) -> None:
        """Take the adapters called ``names`` off; whatever else is registered stays."""
        registered = self.parametrizations
        adapters = [adapter for adapter in self.adapters if adapter.name in names]
        if len(adapters) == len(registered):
            self._clear()
            return
        for index in reversed(range(len(registered))):
            if registered[index] in adapters:
                del registered[index]

    def fold(self, names: Collection[str]) -> tuple[list[nn.Module], dict[str, nn.Parameter]]:
        """Put the weight that the adapters called ``names`` make in the place of the one below.

        Where other adapters stay, LoRA must be all that is registered.

        Returns:
            What was registered, and the parameters below it, for :meth:`restore`.
        """
        registered = self.parametrizations
        kept = list(registered), dict(registered.named_parameters(recurse=False))
        folded = [adapter for adapter in self.adapters if adapter.name in names]
        is_all = len(folded) == len(self.adapters)
        with torch.no_grad():
            if is_all:
                effective = self.effective
            else:
                effective = self.base
                for adapter in folded:
                    effective = adapter(effective)
            # A parameter of its own: another layer may share the old one, which stays as it was.
            parameter = nn.Parameter(effective.clone(), requires_grad=False)
        if is_all:
            self._clear()
            setattr(self.module, self.tensor, parameter)
        else:
            self.drop(names)
            registered.original = parameter
        return kept

    def restore(self, registered: list[nn.Module], below: Mapping[str, nn.Parameter]) -> None:
        """Undo :meth:`fold`: the same modules on the same parameters, where the weight is now."""
        device = self.base.device
        # An adapter that was put on meanwhile stays the last.
        registered = [*registered, *(p for p in self.parametrizations if p not in registered)]
        if self.parametrizations:
            self._clear()
        for each in registered:
            if isinstance(each, AdapterParametrization):
                self.register(each)
            else:
                parametrize.register_parametrization(self.module, self.tensor, each, unsafe=True)
            each.to(device)
        for name, parameter in below.items():
            parameter.data = parameter.data.to(device)
            setattr(self.parametrizations, name, parameter)

    def _clear(self) -> None:
        """Drop everything registered on the weight, and leave what is below."""
        is_single = hasattr(self.parametrizations, "original")
        self._own_class()
        # Of several tensors below, torch can leave but what is computed from them.
        parametrize.remove_parametrizations(
            self.module, self.tensor, leave_parametrized=not is_single
        )
        layer: Any = type(self.module)
        if parametrize.is_parametrized(self.module) and "forward" in vars(layer):
            del layer.forward  # the layer's bias carries an adapter still

    def _own_class(self) -> None:
        # A deep copy shares the class that torch made for the layer, and torch changes that class:
        # without one of its own, the twin would change with it.
        shared = type(self.module)
        self.module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))


def _refuse_to_pickle(layer: nn.Module) -> None:
    """``__getstate__`` of an adapted layer, whose class torch made and pickle could not find."""
    raise RuntimeError(
        "a network that carries LoRA cannot be pickled; expected save_adapter(model, folder), "
        "torch.save(model.state_dict(), file), or merge_lora(model) first"
    )


def recurrent_forward(layer: nn.RNNBase, *arguments: Any, **named: Any) -> Any:
    """``forward`` of an adapted recurrent layer, which lets go of the weights that it computed.

    torch keeps them in a list for the next call, and with them the graph of this one, which could
    not be copied. It reads them anew where they have changed, and so does not miss them.
    """
    output = super(type(layer), layer).forward(*arguments, **named)
    layer._flat_weights = [w if w is None or w.is_leaf else w.detach() for w in layer._flat_weights]
    return output


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
