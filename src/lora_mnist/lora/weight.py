"""The weights of a network that can carry an adapter, and how an adapter is put on one."""

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from .layer import LoRAParametrization, conv2d_forward, linear_forward


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
    def adapters(self) -> list[LoRAParametrization]:
        """The adapters on the weight, first registered first."""
        return [p for p in self.parametrizations if isinstance(p, LoRAParametrization)]

    @property
    def base(self) -> Tensor:
        """The weight without any adapter; reading it from the layer would build the dense sum."""
        registered = self.parametrizations
        if registered and isinstance(registered[0], LoRAParametrization):
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

    def register(self, adapter: LoRAParametrization) -> None:
        """Register ``adapter``, and give the layer the forward pass that uses its factors."""
        is_factored = self.is_factored
        if parametrize.is_parametrized(self.module):
            self._own_class()
        # unsafe: torch would build the dense product, to check a shape right by construction.
        parametrize.register_parametrization(self.module, self.tensor, adapter, unsafe=True)
        # torch gives each parametrized module a class of its own, so this forward is this layer's
        # alone; it survives deepcopy, and goes with the last parametrization.
        layer: Any = type(self.module)
        if is_factored:
            is_linear = isinstance(self.module, nn.Linear)
            layer.forward = linear_forward if is_linear else conv2d_forward
        elif isinstance(self.module, nn.RNNBase):
            layer.forward = recurrent_forward

    def remove(self, merge: bool) -> None:
        """Drop everything registered on the weight; with ``merge`` its effect stays."""
        registered = self.parametrizations
        if merge and hasattr(registered, "original"):
            # Another layer may share the parameter, and keeps it as it was.
            registered.original = nn.Parameter(registered.original.detach(), requires_grad=False)
        self._own_class()
        parametrize.remove_parametrizations(self.module, self.tensor, leave_parametrized=merge)

    def _own_class(self) -> None:
        # A deep copy shares the class that torch made for the layer, and torch changes that class:
        # without one of its own, the twin would change with it.
        shared = type(self.module)
        self.module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))


def recurrent_forward(layer: nn.RNNBase, *arguments: Any, **named: Any) -> Any:
    """``forward`` of an adapted recurrent layer, which lets go of the weights that it computed.

    torch keeps them in a list for the next call, and with them the graph of this one, which could
    not be copied. It reads them anew where they have changed, and so does not miss them.
    """
    output = super(type(layer), layer).forward(*arguments, **named)
    layer._flat_weights = [w if w is None or w.is_leaf else w.detach() for w in layer._flat_weights]
    return output


def adaptable_weights(model: nn.Module) -> dict[str, Weight]:
    """Every weight of ``model`` that can carry an adapter, by name, in the model's order.

    Those are its parameters of two or more dimensions that hold floating-point numbers. A layer's
    ``weight`` goes by the name of the layer, as in PEFT: ``encoder.linear1``; any other parameter
    by its own: ``encoder.self_attn.in_proj_weight``.
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
            if nn.parameter.is_lazy(base) or base.ndim < 2 or not base.is_floating_point():
                continue
            name = layer if tensor == "weight" else f"{layer}.{tensor}".removeprefix(".")
            weights[name] = weight
    return weights
