"""An offset: what is added to the logits of the classes to repair, beside LoRA on the weights.

    logits + offset * direction

To repair one class, the direction is 1 at this class, so the offset is a number on its logit. To
repair several, it is the logarithm of how much rarer each class is in training than the mean class:
logit adjustment, Menon et al. 2021, "Long-tail learning via logit adjustment", arXiv:2007.07314;
the offset is its tau.
"""

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class Offset(nn.Module):
    """Maps the frozen bias of a network's last layer to ``bias + offset * direction``.

    It is registered with :mod:`torch.nn.utils.parametrize`, as LoRA is on a weight.

    Args:
        direction: shape (num_classes,), as the bias.
        most: the largest offset that is worth a try.

    Attributes:
        offset: a number; with 0 the layer's bias is the base's exactly.
        enabled: while it is ``False``, likewise.
    """

    direction: Tensor

    def __init__(self, direction: Tensor, most: float = 10.0) -> None:
        super().__init__()
        self.register_buffer("direction", direction)
        self.offset, self.most, self.enabled = 0.0, most, True

    def forward(self, bias: Tensor) -> Tensor:
        if not (self.enabled and self.offset):
            return bias
        return bias + self.offset * self.direction


@torch.no_grad()
def last_layer(model: nn.Module, images: Tensor) -> str | None:
    """The name of the ``nn.Linear`` with a bias whose output on ``images`` is the network's own.

    ``None`` where there is none: in a network that changes what its last layer gives, or adds the
    outputs of several up.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs[name] = output

    with ExitStack() as hooks:
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                hooks.enter_context(layer.register_forward_hook(partial(keep, name)))
        logits = model(images)
    for name, output in outputs.items():
        if torch.equal(output, logits):
            return name
    return None
