"""What an adapter adds to each weight: singular values of ``scaling * lora_B @ lora_A``.

They are found from the factors: with ``lora_B = Q R`` and ``lora_A^T = P S`` the product is
``Q (R S^T) P^T``, whose singular values are those of ``R S^T``, a matrix of rank x rank. So a layer
of a thousand inputs and outputs takes milliseconds.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_mnist.lora import LoRAParametrization, lora_adapters, lora_layers, read_factors


@dataclass(frozen=True)
class Update:
    """What an adapter adds to one weight.

    Attributes:
        lora_A: the factor of shape (rank, in_features).
        lora_B: the factor of shape (out_features, rank).
        scaling: of their product.
    """

    lora_A: Tensor
    lora_B: Tensor
    scaling: float

    def singular_values(self) -> Tensor:
        """Singular values of the update, the largest first, shape (rank,) at most."""
        left = torch.linalg.qr(self.lora_B, mode="r").R
        right = torch.linalg.qr(self.lora_A.t(), mode="r").R
        values: Tensor = self.scaling * torch.linalg.svdvals(left @ right.t())
        return values

    def largest_rows(self, count: int) -> tuple[Tensor, Tensor]:
        """The outputs that change most: their numbers, (count,), and rows, (count, in_features)."""
        right = torch.linalg.qr(self.lora_A.t(), mode="r").R
        norms = (self.lora_B @ right.t()).norm(dim=1)
        largest = norms.topk(min(count, len(norms))).indices
        return largest, self.scaling * self.lora_B[largest] @ self.lora_A


@torch.no_grad()
def spectra(net: nn.Module) -> dict[str, Tensor]:
    """Singular values by layer of the adapter that was put on ``net`` last."""
    updates = {name: _update(lora_adapters(layer)[-1]) for name, layer in lora_layers(net)}
    return {name: update.singular_values() for name, update in updates.items()}


def _update(adapter: LoRAParametrization) -> Update:
    lora_A, lora_B = adapter.lora_A.flatten(1), adapter.lora_B.flatten(1)
    start_A, start_B = (getattr(adapter, name, None) for name in ("start_A", "start_B"))
    if isinstance(start_A, Tensor) and isinstance(start_B, Tensor):
        # Of PiSSA's start the update is what training made of it.
        lora_A = torch.cat([lora_A, start_A.flatten(1)])
        lora_B = torch.cat([lora_B, -start_B.flatten(1)], dim=1)
    return Update(lora_A.float(), lora_B.float(), adapter.scaling)


def read_updates(folder: Path) -> dict[str, Update]:
    """What the adapter in ``folder`` adds, by layer; empty where it cannot be read.

    Embeddings, whose factors are stored another way, are left out.
    """
    try:
        factors = read_factors(folder)
    except ValueError:
        return {}
    return {
        layer: Update(lora_A.flatten(1).float(), lora_B.flatten(1).float(), scaling)
        for layer, (lora_A, lora_B, scaling) in factors.items()
    }
