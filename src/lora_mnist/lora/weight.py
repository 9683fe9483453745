"""The weights of a network that can carry an adapter, and how an adapter is put on one."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from .layer import LoRAParametrization, conv2d_forward, linear_forward

#: What takes the place of ``forward`` on an adapted layer, by kind.
FACTORED_FORWARDS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.Linear: linear_forward,
    nn.Conv2d: conv2d_forward,
}


def recurrent_forward(layer: nn.RNNBase, *arguments: Any, **named: Any) -> Any:
    """``forward`` of an adapted recurrent layer, which lets go of the weights that it computed.

    torch keeps them in a list for the next call, and with them the graph of this one, which could
    not be copied. It reads them anew where they have changed, and so does not miss them.
    """
    output = super(type(layer), layer).forward(*arguments, **named)
    layer._flat_weights = [w if w is None or w.is_leaf else w.detach() for w in layer._flat_weights]
    return output


class Weight(NamedTuple):
    """One weight of a network: the attribute ``tensor`` of ``module``."""

    module: nn.Module
    tensor: str

    @property
    def steps(self) -> Any:
        """What torch has registered on the weight, in order; empty where that is nothing."""
        if not parametrize.is_parametrized(self.module, self.tensor):
            return []
        return self.module.parametrizations[self.tensor]  # type: ignore[index]

    @property
    def adapters(self) -> list[LoRAParametrization]:
        """The adapters on the weight, first registered first."""
        return [step for step in self.steps if isinstance(step, LoRAParametrization)]

    @property
    def base(self) -> Tensor:
        """The weight without any adapter; reading it from the layer would build the dense sum."""
        steps: Any = self.steps
        if not steps:
            tensor: Tensor = getattr(self.module, self.tensor)
        elif isinstance(steps[0], LoRAParametrization):
            tensor = steps.original
        else:
            # Somebody else's parametrization; in train mode, reading it may change its buffers.
            was_training = steps.training
            steps.eval()
            tensor = getattr(self.module, self.tensor)
            steps.train(was_training)
        return tensor

    @property
    def is_factored(self) -> bool:
        """Whether the layer computes with the factors, and so shows the adapter its inputs.

        A subclass that computes something else keeps its forward and reads the dense weight, as
        attention does with the weight of its ``out_proj``.
        """
        if self.tensor != "weight" or isinstance(self.module, NonDynamicallyQuantizableLinear):
            return False
        if isinstance(self.module, nn.Conv2d) and self.module.groups > 1:
            return False
        forward = type(self.module).forward
        return any(forward in (kind.forward, ours) for kind, ours in FACTORED_FORWARDS.items())

    def put_on(self, adapter: LoRAParametrization) -> None:
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
            kind = next(kind for kind in FACTORED_FORWARDS if isinstance(self.module, kind))
            layer.forward = FACTORED_FORWARDS[kind]
        elif isinstance(self.module, nn.RNNBase):
            layer.forward = recurrent_forward

    def take_off(self, merge: bool) -> None:
        """Drop everything registered on the weight; with ``merge`` its effect stays."""
        if merge and hasattr(steps := self.steps, "original"):
            # Another layer may share the parameter, and keeps it as it was.
            steps.original = nn.Parameter(steps.original.detach(), requires_grad=False)
        self._own_class()
        parametrize.remove_parametrizations(self.module, self.tensor, leave_parametrized=merge)

    def _own_class(self) -> None:
        # A deep copy shares the class that torch made for the layer, and torch changes that class:
        # without one of its own, the twin would change with it.
        shared = type(self.module)
        self.module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))


def adaptable_weights(model: nn.Module) -> dict[str, Weight]:
    """Every weight of ``model`` that can carry an adapter, by name, in the model's order.

    Those are its parameters of two or more dimensions that hold floating-point numbers. A layer's
    ``weight`` goes by the name of the layer, as in PEFT: ``encoder.linear1``; any other parameter
    by its own: ``encoder.self_attn.in_proj_weight``.
    """
    return {
        (f"{name}.{tensor}" if name else tensor) if tensor != "weight" else name: Weight(
            module, tensor
        )
        for name, module in model.named_modules()
        if "parametrizations" not in name.split(".")
        for tensor in _own_tensors(module)
        if _is_adaptable(Weight(module, tensor).base)
    }


def _own_tensors(module: nn.Module) -> list[str]:
    adapted = list(module.parametrizations) if parametrize.is_parametrized(module) else []  # type: ignore[arg-type]
    return [*adapted, *(name for name, _ in module.named_parameters(recurse=False))]


def _is_adaptable(tensor: Tensor) -> bool:
    is_known = not nn.parameter.is_lazy(tensor)
    return is_known and tensor.ndim >= 2 and tensor.is_floating_point()
