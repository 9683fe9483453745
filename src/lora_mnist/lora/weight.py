"""The weights of a network that can carry an adapter, and how adapters are put on one."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from .layer import LoRAParametrization, conv2d_forward, linear_forward


class Weight(NamedTuple):
    """One weight of a network, and what is on it now: :meth:`put` makes it another one."""

    module: nn.Module
    tensor: str  # the attribute of the module
    base: Any  # the frozen weight; the layer's own attribute reads as the dense sum
    adapters: list[LoRAParametrization]  # on the weight, first registered first
    others: list[nn.Module]  # somebody else's parametrizations of it

    @property
    def factored_forward(self) -> Callable[[Any, Tensor], Tensor] | None:
        """The forward pass that computes with the factors; ``None``: it reads the dense weight."""
        module = self.module
        plain: Any = parametrize.type_before_parametrizations(module)
        is_grouped = getattr(module, "groups", 1) > 1
        is_padded = getattr(module, "padding_mode", "zeros") != "zeros"
        is_attention = isinstance(module, NonDynamicallyQuantizableLinear)  # is never called
        if self.tensor != "weight" or is_grouped or is_padded or is_attention:
            return None
        forwards: dict[Any, Any] = {
            nn.Linear.forward: linear_forward,
            nn.Conv2d.forward: conv2d_forward,
        }
        return forwards.get(plain.forward)

    def put(self, base: nn.Parameter, adapters: Sequence[LoRAParametrization]) -> None:
        """Make ``base`` the weight, with ``adapters`` on it and nothing else."""
        module: Any = self.module
        if parametrize.is_parametrized(module):
            # torch has given the layer a class of its own, which a deep copy shares. A change of
            # that class would reach the copy too, so this layer gets another class first.
            shared = type(module)
            module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
        if parametrize.is_parametrized(module, self.tensor):
            parametrize.remove_parametrizations(module, self.tensor, leave_parametrized=False)
        setattr(module, self.tensor, base)
        for adapter in adapters:
            is_training = adapter.training
            # unsafe: skips torch's shape check, which would build the dense product.
            parametrize.register_parametrization(module, self.tensor, adapter, unsafe=True)
            adapter.train(is_training)  # registering gave it the mode of the layer
        if self.tensor == "weight" and parametrize.is_parametrized(module):
            # That class is this layer's alone, survives deepcopy, and goes with the last adapter.
            layer: Any = type(module)
            layer.forward = layer.__bases__[0].forward
            if adapters and self.factored_forward:
                layer.forward = self.factored_forward


def lora_adapters(model: nn.Module) -> list[LoRAParametrization]:
    """Every adapter on every weight of ``model``, or of one layer; empty without LoRA."""
    return [m for m in model.modules() if isinstance(m, LoRAParametrization)]


def adaptable_weights(model: nn.Module) -> dict[str, Weight]:
    """Every floating-point parameter by name; a layer's ``weight`` has the layer's, as in PEFT."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    weights = {}
    for layer, module in model.named_modules():
        if isinstance(module, wrappers) or layer == "_orig_mod":  # torch.compile's
            raise ValueError(
                f"{type(model).__name__}: expected the network inside this wrapper, since the "
                "names of its layers belong into the adapter; wrap it after add_lora"
            )
        if "parametrizations" in layer.split("."):
            continue
        bases: dict[str, Any] = {}
        registered: dict[str, Any] = {}
        if parametrize.is_parametrized(module):
            registered = dict(module.parametrizations.items())
        for tensor, stack in registered.items():
            # Somebody else's may keep several tensors, as weight_norm does.
            bases[tensor] = stack.original if stack.is_tensor else stack.original0
        bases |= module.named_parameters(recurse=False)
        for tensor, base in bases.items():
            if not nn.parameter.is_lazy(base) and base.is_floating_point():
                name = layer if tensor == "weight" else f"{layer}.{tensor}".removeprefix(".")
                on_it = list(registered.get(tensor, ()))
                adapters = [p for p in on_it if isinstance(p, LoRAParametrization)]
                others = [p for p in on_it if p not in adapters]
                weights[name] = Weight(module, tensor, base, adapters, others)
    return weights


def lora_weights(model: nn.Module) -> dict[str, Weight]:
    """Every weight of ``model`` that carries an adapter, by name, in the model's order."""
    return {name: w for name, w in adaptable_weights(model).items() if w.adapters}
