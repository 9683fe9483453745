"""The weights of a network that can carry an adapter, and which of them an argument means."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from .errors import ArgumentError, require
from .layer import Adapter, LoRAParametrization, conv2d_forward, linear_forward
from .offset import Offset


class Weight(NamedTuple):
    """One parameter of a network, such as a layer's weight, and what is on it."""

    module: nn.Module
    tensor: str  # the attribute of the module
    base: Any  # the frozen weight; the layer's own attribute reads as the dense sum
    adapters: list[Adapter]  # on the weight, first registered first
    others: list[nn.Module]  # somebody else's parametrizations of it

    @property
    def factored_forward(self) -> Callable[[Any, Tensor], Tensor] | None:
        """The forward pass that computes with the factors; ``None``: it reads the dense weight."""
        module: Any = self.module
        plain: Any = parametrize.type_before_parametrizations(module)
        if self.tensor != "weight" or not all(adapter.is_factored for adapter in self.adapters):
            return None
        if plain.forward is nn.Linear.forward:
            # Attention reads the weight of its last layer, and never calls the layer.
            is_attention = isinstance(module, NonDynamicallyQuantizableLinear)
            return None if is_attention else linear_forward
        if plain.forward is nn.Conv2d.forward:
            is_simple = module.groups == 1 and module.padding_mode == "zeros"
            return conv2d_forward if is_simple else None
        return None


def put_on(weight: Weight, base: nn.Parameter, adapters: Sequence[Adapter] = ()) -> None:
    """Make ``base`` the weight, with ``adapters`` on it and nothing else."""
    module, tensor = weight.module, weight.tensor
    if parametrize.is_parametrized(module):
        # A deep copy would share torch's class for the layer, which gets another ``forward`` below.
        shared = type(module)
        module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    if parametrize.is_parametrized(module, tensor):
        parametrize.remove_parametrizations(module, tensor, leave_parametrized=False)
    setattr(module, tensor, base)
    for adapter in adapters:
        is_training = adapter.training
        # unsafe: skips torch's shape check, which would build the dense product.
        parametrize.register_parametrization(module, tensor, adapter, unsafe=True)
        adapter.train(is_training)  # registering gave it the mode of the layer
    if tensor == "weight" and parametrize.is_parametrized(module):
        own: Any = type(module)
        plain: Any = parametrize.type_before_parametrizations(module)
        factored = weight._replace(adapters=[*adapters]).factored_forward if adapters else None
        own.forward = factored or plain.forward


def adapters_on(model: nn.Module) -> list[Adapter]:
    """Everything on the tensors of ``model``: LoRA on weights, and offsets."""
    return [m for m in model.modules() if isinstance(m, Adapter)]


def lora_adapters(model: nn.Module) -> list[LoRAParametrization]:
    """Every adapter on every weight of ``model``, or of one layer; empty without LoRA."""
    return [m for m in model.modules() if isinstance(m, LoRAParametrization)]


def knobs_of(model: nn.Module) -> set[str]:
    """The fields of a point by which what is on ``model`` can be turned."""
    return {adapter.knob for adapter in adapters_on(model)}


def offset_of(model: nn.Module) -> Offset | None:
    """The offset of the newest adapter that has one; ``None`` where none has."""
    offsets = [m for m in model.modules() if isinstance(m, Offset)]
    return offsets[-1] if offsets else None


def float_parameters(model: nn.Module) -> dict[str, Weight]:
    """Every floating-point parameter by name; a ``weight`` has its layer's name, as in PEFT."""
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
        registered: dict[str, Any] = {}
        if parametrize.is_parametrized(module):
            registered = dict(module.parametrizations.items())
        bases: dict[str, Any] = {}
        for tensor, stack in registered.items():
            # Somebody else's may keep several tensors, as weight_norm does.
            bases[tensor] = stack.original if stack.is_tensor else stack.original0
        bases |= module.named_parameters(recurse=False)
        for tensor, base in bases.items():
            if not base.is_floating_point():
                continue
            stack = registered.get(tensor, ())
            adapters = [each for each in stack if isinstance(each, Adapter)]
            others = [each for each in stack if not isinstance(each, Adapter)]
            name = layer if tensor == "weight" else f"{layer}.{tensor}".removeprefix(".")
            weights[name] = Weight(module, tensor, base, adapters, others)
    return weights


def adapted_weights(model: nn.Module) -> dict[str, Weight]:
    """Every weight of ``model`` with an adapter, and bias with an offset, by name, in order."""
    return {name: w for name, w in float_parameters(model).items() if w.adapters}


def layers_to_adapt(
    model: nn.Module, target_modules: str | Collection[str] = "all"
) -> dict[str, Weight]:
    """The weights that ``target_modules`` of :func:`.model.add_lora` chooses, by name, in order."""
    weights = {name: w for name, w in float_parameters(model).items() if w.base.ndim > 1}

    def refusal(expected: str) -> ArgumentError:
        return ArgumentError("target_modules", target_modules, f"expected {expected}")

    kinds = {"all": (nn.Linear, nn.Conv2d), "all-linear": (nn.Linear,)}
    chosen: list[str] = []
    for entry in [target_modules] if isinstance(target_modules, str) else target_modules:
        if entry in kinds:
            for name, weight in weights.items():
                is_ungrouped = getattr(weight.module, "groups", 1) == 1
                is_layer = isinstance(weight.module, kinds[entry]) and weight.tensor == "weight"
                if is_layer and is_ungrouped:
                    chosen.append(name)
        else:
            entries = entry if isinstance(target_modules, str) else [entry]
            named = [name for name in weights if is_named(name, entries)]
            if not named:
                raise refusal(f"a layer with {entry}, of: {listed(weights)}")
            chosen += named
    if not chosen:
        raise refusal(f"some of: {listed(weights)}")
    return {name: weight for name, weight in weights.items() if name in chosen}


def left_out_by_all(model: nn.Module) -> tuple[float, list[str]]:
    """The share of the weights that ``all`` leaves out, and how to name them, the largest first."""
    targets, sizes, total = layers_to_adapt(model), Counter[str](), 0
    for name, weight in layers_to_adapt(model, ".*").items():
        total += weight.base.numel()
        if name not in targets:
            sizes[name if weight.tensor == "weight" else weight.tensor] += weight.base.numel()
    return sizes.total() / total, [name for name, _ in sizes.most_common()]


def is_end(end: str, name: str) -> bool:
    """Whether ``end`` is ``name``, or its last parts, as ``linear1`` is of ``encoder.linear1``."""
    return f".{name}".endswith(f".{end}")


def is_named(name: str, target_modules: str | Collection[str]) -> bool:
    """Whether PEFT takes ``name`` for one of these: a regular expression, or names and ends."""
    if isinstance(target_modules, str):
        with suppress(re.error):
            return bool(re.fullmatch(target_modules, name))
        return False
    return any(is_end(end, name) for end in target_modules)


def by_pattern(
    argument: str, pattern: Mapping[str, Any] | None, names: Collection[str], default: Any
) -> dict[str, Any]:
    """The value of each name: that of the first key in ``pattern`` that names it."""
    values = dict.fromkeys(names, default)
    for key, value in reversed(list((pattern or {}).items())):
        named = [name for name in names if is_end(key, name) or key == f"^{name}"]
        expected = f"a layer's name, or its end from a dot on, of: {listed(names)}"
        require(len(named) > 0, argument, f"{{{key}: {value}}}", expected)
        values.update(dict.fromkeys(named, value))
    return values


def listed(names: Collection[str]) -> str:
    """``names`` for a message, the first twenty of them."""
    if len(names) > 20:
        return f"{', '.join(list(names)[:20])} and {len(names) - 20} more"
    return ", ".join(names) or "none"
