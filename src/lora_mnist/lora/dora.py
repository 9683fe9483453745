"""DoRA: each output's weights have a magnitude and a direction; LoRA changes the direction.

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from .layer import LoRAParametrization


class DoRAParametrization(LoRAParametrization):
    """LoRA whose sum is rescaled, so that each output's weights have a norm ``m`` that is trained.

    With ``||V||`` for the norm of each output's weights in ``V``, a column of its own:

        V = W + scale * scaling * lora_B @ lora_A
        m(scale) = ||W|| + scale * (m - ||W||),    m = lora_magnitude_vector
        effective weight = m(scale) * V / ||V||

    At scale 1 that is equation 5 of the paper. At first ``m = ||W||`` and ``lora_B = 0``, so the
    layer computes what it did before, to rounding; at scale 0 it does so to the bit. ``lora_A``
    starts as PEFT's does. In training ``||V||`` is a constant, without a gradient (section 4.3).

    The norm needs the sum, so layers read the effective weight, and there is no dropout. A file has
    ``m(scale)`` for PEFT, and ``m``. Embeddings are refused: PEFT computes their DoRA differently.

    Attributes:
        lora_magnitude_vector: ``m``, shape (out_features,), in convolutions (1, out, 1, 1).
    """

    config: ClassVar = {**LoRAParametrization.config, "use_dora": True}
    is_factored = False
    has_bias_in_peft = False
    forbids_decay = True  # the magnitudes start at the weight's

    @staticmethod
    def peft_names(module: nn.Module) -> dict[str, str]:
        if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return {}
        magnitude = {"lora_magnitude_vector": "lora_magnitude_vector"}
        return LoRAParametrization.peft_names(module) | magnitude

    def init_parameters(self, weight: Tensor, init: str, init_std: float) -> None:
        super().init_parameters(weight, "kaiming", init_std)
        self.lora_magnitude_vector = nn.Parameter(_norms(weight.detach()))

    def peft_tensors(self, weight: Tensor, scale: float) -> dict[str, Tensor]:
        magnitude = {"lora_magnitude_vector": self.magnitude(weight, scale)}
        return super().peft_tensors(weight, scale) | magnitude

    def magnitude(self, weight: Tensor, scale: float) -> Tensor:
        """Return ``m(scale)``; exact at both ends, as lerp is."""
        return _norms(weight).lerp(self.lora_magnitude_vector, scale)

    def forward(self, weight: Tensor) -> Tensor:
        if not self.strength:
            return weight
        moved = super().forward(weight)
        # An output without weights has no direction.
        norms = _norms(moved.detach()).clamp_min(torch.finfo(moved.dtype).tiny)
        factors = self.magnitude(weight, self.point.scale) / norms
        return moved * factors.view(-1, *[1] * (weight.ndim - 1))


def _norms(weight: Tensor) -> Tensor:
    """Return the norm of each output's weights, in the shape of PEFT's magnitudes."""
    norms: Tensor = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)))
    return norms if weight.ndim == 2 else norms.view(1, -1, *[1] * (weight.ndim - 2))
