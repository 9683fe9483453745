"""PiSSA: LoRA that starts at the principal part of the weight instead of at zero.

Meng et al. 2024, "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large
Language Models", arXiv:2404.02948.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .layer import LoRAParametrization

#: Above this many rows and columns together the SVD is randomized, with this oversampling.
_EXACT_SIDES, _OVERSAMPLING = 3000, 32


class PiSSAParametrization(LoRAParametrization):
    """LoRA whose factors start as the largest singular values and vectors of ``W = U S V^T``.

    At first ``lora_A = sqrt(S_r / scaling) V_r^T`` and ``lora_B = U_r sqrt(S_r / scaling)``, as in
    section 3. There the residual takes the place of ``W``. Here ``W`` stays, and the start is kept
    as ``start_A`` and ``start_B``, for the same effective weight:

        W + scaling * (lora_B @ lora_A - start_B @ start_A)

    A large weight is first projected at random (Halko et al. 2011, arXiv:0909.4061), as PEFT's
    ``pissa_niter_4`` does.

    That is plain LoRA of twice the rank, or of the full rank where that is smaller, and is saved as
    such. A rank above the smaller side of the weight as a matrix is that side. Dropout acts on the
    trained part alone, as in PEFT:

        y = (W - scaling * start_B start_A) x + scaling * lora_B lora_A dropout(x)
    """

    start_A: Tensor
    start_B: Tensor
    forbids_decay = True  # the factors start at the weight's principal part

    def init_parameters(self, weight: Tensor, init: str, init_std: float) -> None:
        matrix = weight.detach().flatten(1)
        full = min(matrix.shape)
        self.rank = rank = min(self.rank, full)
        super().init_parameters(weight, init, init_std)
        # Half precision has no singular value decomposition.
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        wanted = rank + _OVERSAMPLING
        if sum(matrix.shape) > _EXACT_SIDES and 4 * wanted < full:
            left, values, columns = torch.svd_lowrank(matrix, wanted, niter=4)
            right = columns.t()
        else:
            left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        root = (values[:rank] / self.scaling).sqrt()
        with torch.no_grad():
            self.lora_A.copy_((root[:, None] * right[:rank]).view_as(self.lora_A))
            self.lora_B.copy_((left[:, :rank] * root).view_as(self.lora_B))
        self.register_buffer("start_A", self.lora_A.detach().clone())
        self.register_buffer("start_B", self.lora_B.detach().clone())

    def forward(self, weight: Tensor) -> Tensor:
        if not self.strength:
            return weight
        change = self.lora_B.flatten(1) @ self.lora_A.flatten(1)
        change = change - self.start_B.flatten(1) @ self.start_A.flatten(1)
        return weight + change.view_as(weight) * self.strength

    def terms(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        if not (self.dropout and self.training):
            return super().terms(x)
        dropped = F.dropout(x, self.dropout)
        return [(dropped, self.lora_A, self.lora_B), (x, self.start_A, -self.start_B)]

    def factors(self) -> tuple[Tensor, Tensor]:
        lora_A = torch.cat([self.lora_A, self.start_A])
        lora_B = torch.cat([self.lora_B, -self.start_B], dim=1)
        columns, rows = lora_B.flatten(1), lora_A.flatten(1)
        full = min(len(columns), rows.shape[1])
        if len(rows) <= full:
            return lora_A, lora_B
        # The product itself, beside an identity matrix, is smaller.
        identity = torch.eye(full, dtype=rows.dtype, device=rows.device)
        if len(columns) == full:
            rows, columns = columns @ rows, identity
        else:
            rows, columns = identity, columns @ rows
        return rows.view(full, *lora_A.shape[1:]), columns.view(-1, full, *lora_B.shape[2:])
