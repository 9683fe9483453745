"""An offset on the logits of the classes to repair, beside LoRA on the weights.

    logits + offset * direction

To repair one class, the direction is 1 at this class, so the offset is a number on its logit. To
repair several, it is the logarithm of how much rarer each class is in training than the mean class:
logit adjustment, Menon et al. 2021, "Long-tail learning via logit adjustment", arXiv:2007.07314;
the offset is its tau.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .layer import Adapter


def bias_name(layer: str) -> str:
    """Return the name of a layer's bias; a network that is the layer itself has the name ""."""
    return f"{layer}.bias".removeprefix(".")


def layer_name(bias: str) -> str:
    """Return the layer whose bias has this name: see :func:`bias_name`."""
    return bias.removesuffix("bias").removesuffix(".")


class Offset(Adapter):
    """Maps the frozen bias of a network's last layer to ``bias + offset * direction``."""

    point_field = "offset"
    direction: Tensor  # (num_classes,), as the bias

    def __init__(self, direction: Tensor, most: float = 10.0) -> None:
        super().__init__()
        self.register_buffer("direction", direction)
        self.most = most  # the largest offset that is worth a try

    @property
    def moves_one_class(self) -> bool:
        """True if it is a number on the logit of one class, False if it is a tau of several."""
        return bool(self.direction.count_nonzero() == 1 and (self.direction == 1).any())

    def forward(self, bias: Tensor) -> Tensor:
        if not (self.enabled and self.point.offset):
            return bias
        return bias + self.point.offset * self.direction


def build_offset(counts: Tensor, targets: Sequence[int]) -> Offset:
    """Return an offset to repair ``targets``; ``counts`` has each class's training images."""
    # The maximum is 1 above the rarity's logarithm: a few images could suggest any number.
    mean = counts.sum() / (counts > 0).sum()
    rarity = torch.where(counts > 0, mean / counts, 1.0).log()
    if len(targets) > 1:
        return Offset(rarity, most=2.0)
    direction = torch.zeros_like(counts)
    direction[targets] = 1.0
    return Offset(direction, most=1 + max(0.0, rarity[targets].item()))


@torch.no_grad()
def find_last_layer(model: nn.Module, images: Tensor) -> str | None:
    """Return the name of the ``nn.Linear`` whose bias adds to the logits, or None."""
    logits = model(images)
    # A different number for each class detects a softmax behind the layer.
    shift = torch.linspace(1, 2, logits.shape[-1]).to(logits)
    rounding = 4 * torch.finfo(logits.dtype).eps * (1 + logits.abs().max())
    layers: dict[str, nn.Module] = dict(model.named_modules())
    for name, layer in reversed(layers.items()):
        bias = layer.bias if isinstance(layer, nn.Linear) else None
        sharing = [m for m in layers.values() if getattr(m, "bias", None) is bias]
        if not isinstance(bias, nn.Parameter) or bias.shape != shift.shape or len(sharing) > 1:
            continue
        moved = functional_call(model, {bias_name(name): bias + shift}, (images,))
        if (moved - logits - shift).abs().max() <= max(1e-3, rounding):
            return name
    return None
