"""What departs from plain LoRA: another start, another learning rate.

PiSSA: "Principal Singular Values and Singular Vectors Adaptation", arXiv:2404.02948.
LoRA+: "Efficient Low Rank Adaptation of Large Models", arXiv:2402.12354.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layer import LoRAParametrization, low_rank
from .settings import LayerSettings


class PiSSAParametrization(LoRAParametrization):
    """LoRA that starts at the principal part of ``W`` instead of at zero.

    With ``W = U S V^T`` and the ``rank`` largest singular values, ``lora_A = sqrt(S_r / scaling)
    V_r^T`` and ``lora_B = U_r sqrt(S_r / scaling)`` (Meng et al. 2024, section 3). So training
    moves the principal part of ``W`` and keeps the residual ``W - scaling * lora_B @ lora_A``
    frozen. Here ``W`` itself stays in place, and with it the proof that it never moved: the start
    is kept as ``start_A`` and ``start_B``, and the effective weight is

        W + scaling * (lora_B @ lora_A - start_B @ start_A)

    which is the same number.

    Raises:
        ValueError: if ``rank`` is larger than the smaller side of the weight as a matrix.
    """

    start_A: Tensor
    start_B: Tensor

    def init_factors(self, weight: Tensor, settings: LayerSettings) -> None:
        matrix = weight.flatten(1)
        if settings.rank > min(matrix.shape):
            raise ValueError(
                f"rank={settings.rank}: expected at most {min(matrix.shape)} with init=pissa "
                f"for a weight of {tuple(weight.shape)}"
            )
        # Half precision has no singular value decomposition.
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        root = (values[: settings.rank] / settings.scaling).sqrt()
        with torch.no_grad():
            self.lora_A.copy_((root[:, None] * right[: settings.rank]).view_as(self.lora_A))
            self.lora_B.copy_((left[:, : settings.rank] * root).view_as(self.lora_B))
        self.register_buffer("start_A", self.lora_A.detach().clone())
        self.register_buffer("start_B", self.lora_B.detach().clone())

    def product(self) -> Tensor:
        return super().product() - self.start_B.flatten(1) @ self.start_A.flatten(1)

    def add_update(self, y: Tensor, x: Tensor, layer: nn.Linear | nn.Conv2d) -> Tensor:
        x = F.dropout(x, self.dropout, self.training)
        update = low_rank(x, self.lora_A, self.lora_B, layer)
        start = low_rank(x, self.start_A, self.start_B, layer)
        # The difference first: at the start it is zero to the last bit.
        return torch.add(y, update - start, alpha=self.scaling * self.scale)


#: The adapter of each ``init``.
INITS: dict[str, type[LoRAParametrization]] = {
    "gaussian": LoRAParametrization,
    "kaiming": LoRAParametrization,
    "pissa": PiSSAParametrization,
}


def loraplus(
    model: nn.Module,
    make: Callable[[Iterable[Any]], torch.optim.Optimizer],
    lr_ratio: float,
) -> torch.optim.Optimizer:
    """An optimizer with another learning rate for ``lora_B``: LoRA+, Hayou et al. 2024, section 4.

    Args:
        model: whose trainable parameters to optimize.
        make: makes the optimizer from parameters or parameter groups.
        lr_ratio: learning rate of ``lora_B`` over that of everything else; 1 makes one group.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if lr_ratio == 1:
        return make(list(trained.values()))
    sides: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in trained.items():
        sides[name.endswith("lora_B")].append(parameter)
    optimizer = make([{"params": side} for side in sides])
    optimizer.param_groups[1]["lr"] *= lr_ratio
    return optimizer
