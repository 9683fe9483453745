"""A parameter of a network with its adapters."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from .layer import Adapter, LoRAParametrization, conv2d_forward, linear_forward
from .offset import Offset


class Weight(NamedTuple):
    """One parameter of a network, such as a layer's weight, with its adapters."""

    module: nn.Module
    attribute: str  # of the module
    original: Any  # the frozen weight; the module's own attribute reads as the dense sum
    adapters: list[Adapter]  # on the weight, first registered first
    others: list[nn.Module]  # parametrizations that are not LoRA's

    @property
    def factored_forward(self) -> Callable[[Any, Tensor], Tensor] | None:
        """The forward pass that uses the factors; ``None`` if layers read the dense weight."""
        module: Any = self.module
        plain: Any = parametrize.type_before_parametrizations(module)
        if self.attribute != "weight" or not all(adapter.is_factored for adapter in self.adapters):
            return None
        if plain.forward is nn.Linear.forward:
            # Attention reads the weight of its last layer, and never calls the layer.
            is_attention = isinstance(module, NonDynamicallyQuantizableLinear)
            return None if is_attention else linear_forward
        if plain.forward is nn.Conv2d.forward:
            is_simple = module.groups == 1 and module.padding_mode == "zeros"
            return conv2d_forward if is_simple else None
        return None


def set_parameter(weight: Weight, original: nn.Parameter, adapters: Sequence[Adapter] = ()) -> None:
    """Replace the parameter by ``original`` with only ``adapters`` on it."""
    module, attribute = weight.module, weight.attribute
    if parametrize.is_parametrized(module):
        # A deep copy shares torch's class for the layer, which gets another ``forward`` below.
        shared = type(module)
        module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    if parametrize.is_parametrized(module, attribute):
        parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
    setattr(module, attribute, original)
    for adapter in adapters:
        is_training = adapter.training
        # unsafe: skips torch's shape check, which would build the dense product.
        parametrize.register_parametrization(module, attribute, adapter, unsafe=True)
        adapter.train(is_training)  # registering has set the layer's mode
    if attribute == "weight" and parametrize.is_parametrized(module):
        layer_class: Any = type(module)
        plain: Any = parametrize.type_before_parametrizations(module)
        factored = weight._replace(adapters=[*adapters]).factored_forward if adapters else None
        layer_class.forward = factored or plain.forward


def adapters_on(model: nn.Module) -> list[Adapter]:
    """Return all adapters on ``model``: LoRA on weights, and offsets."""
    return [m for m in model.modules() if isinstance(m, Adapter)]


def lora_adapters(model: nn.Module) -> list[LoRAParametrization]:
    """Return the LoRA of a network or a layer, without offsets."""
    return [m for m in model.modules() if isinstance(m, LoRAParametrization)]


def point_fields(model: nn.Module) -> set[str]:
    """Return the fields of a point that the adapters on ``model`` have."""
    return {adapter.point_field for adapter in adapters_on(model)}


def find_offset(model: nn.Module) -> Offset | None:
    """Return the offset of the newest adapter that has one, or None."""
    offsets = [m for m in model.modules() if isinstance(m, Offset)]
    return offsets[-1] if offsets else None


def float_parameters(model: nn.Module) -> dict[str, Weight]:
    """Return the floating-point parameters by name; a layer's ``weight`` has the layer's name."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    weights = {}
    for layer, module in model.named_modules():
        if isinstance(module, wrappers) or layer == "_orig_mod":  # torch.compile's
            raise ValueError(
                f"{type(model).__name__}: expected the network inside this wrapper, whose name "
                "would stand in the adapter; wrap it after add_lora"
            )
        if "parametrizations" in layer.split("."):
            continue
        stacks: dict[str, Any] = {}
        if parametrize.is_parametrized(module):
            stacks = dict(module.parametrizations.items())
        originals: dict[str, Any] = {}
        for attribute, stack in stacks.items():
            # Other parametrizations may keep several tensors, as weight_norm does.
            originals[attribute] = stack.original if stack.is_tensor else stack.original0
        originals |= module.named_parameters(recurse=False)
        for attribute, original in originals.items():
            if not original.is_floating_point():
                continue
            stack = stacks.get(attribute, ())
            adapters = [m for m in stack if isinstance(m, Adapter)]
            others = [m for m in stack if not isinstance(m, Adapter)]
            name = layer if attribute == "weight" else f"{layer}.{attribute}".removeprefix(".")
            weights[name] = Weight(module, attribute, original, adapters, others)
    return weights


def adapted_weights(model: nn.Module) -> dict[str, Weight]:
    """Return the weights with an adapter and the biases with an offset, by name, in order."""
    return {name: w for name, w in float_parameters(model).items() if w.adapters}
