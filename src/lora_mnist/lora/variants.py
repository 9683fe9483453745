"""What departs from plain LoRA: another form, another start, another learning rate.

DoRA: "Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353.
PiSSA: "Principal Singular Values and Singular Vectors Adaptation", arXiv:2404.02948.
LoRA+: "Efficient Low Rank Adaptation of Large Models", arXiv:2402.12354.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layer import AdapterParametrization, Layer, LoRAParametrization, compute
from .settings import LayerSettings
from .weight import Weight


class PiSSAParametrization(LoRAParametrization):
    """LoRA that starts at the principal part of ``W`` instead of at zero.

    With ``W = U S V^T`` and the ``rank`` largest singular values, ``lora_A = sqrt(S_r / scaling)
    V_r^T`` and ``lora_B = U_r sqrt(S_r / scaling)`` (Meng et al. 2024, section 3). So training
    moves the principal part of ``W`` and keeps the residual ``W - scaling * lora_B @ lora_A``
    frozen. Here ``W`` itself stays in place, and with it the proof that it never moved: the start
    is kept as ``start_A`` and ``start_B``, and the effective weight is

        W + scaling * (lora_B @ lora_A - start_B @ start_A)

    which is the same number. ``rank`` is at most the smaller side of the weight as a matrix.
    """

    start_A: Tensor
    start_B: Tensor

    def init_factors(self, weight: Tensor) -> None:
        matrix, rank = weight.flatten(1), self.settings.rank
        if rank > min(matrix.shape):
            raise ValueError(
                f"rank={rank}: expected at most {min(matrix.shape)} with init=pissa "
                f"for a weight of {tuple(weight.shape)}"
            )
        # Half precision has no singular value decomposition.
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        root = (values[:rank] / self.scaling).sqrt()
        with torch.no_grad():
            self.lora_A.copy_((root[:, None] * right[:rank]).view_as(self.lora_A))
            self.lora_B.copy_((left[:, :rank] * root).view_as(self.lora_B))
        self.register_buffer("start_A", self.lora_A.detach().clone())
        self.register_buffer("start_B", self.lora_B.detach().clone())

    def update(self, weight: Tensor) -> Tensor:
        product = self.lora_B.flatten(1) @ self.lora_A.flatten(1)
        product = product - self.start_B.flatten(1) @ self.start_A.flatten(1)
        return product.view_as(weight) * (self.scaling * self.scale)

    def add_update(self, y: Tensor, x: Tensor, layer: Layer) -> Tensor:
        x = F.dropout(x, self.settings.dropout, self.training)
        update = low_rank(layer, x, self.lora_A, self.lora_B)
        start = low_rank(layer, x, self.start_A, self.start_B)
        # The difference first: at the start it is zero to the last bit.
        return torch.add(y, update - start, alpha=self.scaling * self.scale)


class DoRAParametrization(LoRAParametrization):
    """LoRA on the direction of each output's weights, and a magnitude ``m`` beside it.

    With ``V = W + scaling * lora_B @ lora_A`` and its rows ``V_i``, the weights of output ``i`` are
    ``m_i V_i / ||V_i||`` (Liu et al. 2024, equation 5; its columns are rows here). ``m`` starts as
    the norms of ``W``, and so the layer computes what it did before. The norms are held constant in
    the backward pass (section 4.3).

    ``scale`` goes straight from the base to the trained weight: ``W + scale * (W_trained - W)``.

    Attributes:
        magnitude: ``m``, shape (weight.shape[0],).
    """

    def init_factors(self, weight: Tensor) -> None:
        super().init_factors(weight)
        self.magnitude = nn.Parameter(self.norms(weight))

    @torch.no_grad()
    def norms(self, weight: Tensor) -> Tensor:
        """``||V_i||`` for each output, from the factors: ``V`` is not built.

        With ``s = scaling``, ``A = lora_A`` and the rows ``b_i`` of ``lora_B``,

            ||V_i||^2 = ||W_i||^2 + 2 s b_i . (A W_i^T) + s^2 b_i (A A^T) b_i^T
        """
        dtype = torch.promote_types(weight.dtype, torch.float32)
        with torch.autocast(weight.device.type, enabled=False):
            W, A = weight.flatten(1).to(dtype), self.lora_A.flatten(1).to(dtype)
            sB = self.scaling * self.lora_B.flatten(1).to(dtype)
            cross = 2 * (W @ A.T) + sB @ (A @ A.T)
            squares = torch.linalg.vector_norm(W, dim=1).square() + (sB * cross).sum(1)
        # Where V_i is zero, so is W_i: any finite direction is right.
        norms: Tensor = squares.clamp(min=torch.finfo(dtype).tiny).sqrt()
        return norms.to(weight.dtype)

    def update(self, weight: Tensor) -> Tensor:
        gain = (self.magnitude / self.norms(weight)).view(-1, *[1] * (weight.ndim - 1))
        product = self.lora_B.flatten(1) @ self.lora_A.flatten(1)
        product = product.view_as(weight) * self.scaling
        return ((gain - 1) * weight + gain * product) * self.scale

    def add_update(self, y: Tensor, x: Tensor, layer: Layer) -> Tensor:
        gain = self.magnitude / self.norms(Weight(layer, "weight").below(self))
        x = F.dropout(x, self.settings.dropout, self.training)
        update = low_rank(layer, x, self.lora_A, self.lora_B) * self.scaling
        # One number a channel, as y has it.
        shape = (-1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
        gain = gain.view(shape)
        without_bias = y if layer.bias is None else y - layer.bias.view(shape)
        return torch.add(y, (gain - 1) * without_bias + gain * update, alpha=self.scale)


class DeltaParametrization(AdapterParametrization):
    """The whole tensor is trained, beside itself: ``W + scale * delta``.

    Attributes:
        delta: of the tensor's shape, zero at first.
    """

    def __init__(self, weight: Tensor, name: str) -> None:
        super().__init__(name)
        self.delta = nn.Parameter(torch.zeros_like(weight))

    def update(self, weight: Tensor) -> Tensor:
        return self.delta * self.scale

    def add_update(self, y: Tensor, x: Tensor, layer: Layer) -> Tensor:
        if isinstance(layer, nn.Linear):
            return torch.addmm(y, x, self.delta.t(), alpha=self.scale)
        return torch.add(y, compute(layer, x, self.delta), alpha=self.scale)


def low_rank(layer: Layer, x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
    """``(x A^T) B^T``: what ``layer`` computes with the weight ``B A`` and no bias."""
    hidden = compute(layer, x, lora_A)
    return F.linear(hidden, lora_B) if isinstance(layer, nn.Linear) else F.conv2d(hidden, lora_B)


def make_adapter(
    layer: str, weight: Weight, settings: LayerSettings | None, name: str
) -> AdapterParametrization:
    """A new adapter for ``weight`` of ``layer``; without settings, one that trains it whole."""
    others = [p for p in weight.registered or [] if not isinstance(p, AdapterParametrization)]
    if others:
        raise ValueError(
            f"{layer}: has {type(others[0]).__name__} on its {weight.tensor}; expected "
            "torch.nn.utils.parametrize.remove_parametrizations first"
        )
    if settings is None:
        return DeltaParametrization(weight.base, name)
    # Dropout acts on the adapter's input, which a layer that reads its weight never shows.
    if settings.dropout and not weight.factored_forward:
        raise ValueError(f"dropout: {layer} has a forward of its own; expected dropout=0")
    if settings.use_dora:
        # PEFT's has a magnitude for each column of an embedding, not for what it looks up.
        if isinstance(weight.module, nn.Embedding):
            raise ValueError(f"use_dora=True: expected no embedding, as {layer} is")
        # Its norms are those of all that it stands on.
        return DoRAParametrization(getattr(weight.module, weight.tensor), settings, name)
    if settings.init == "pissa":
        return PiSSAParametrization(weight.base, settings, name)
    return LoRAParametrization(weight.base, settings, name)


@torch.no_grad()
def fold_scale(adapter: AdapterParametrization, weight: Tensor) -> None:
    """Make the scale of ``adapter`` on ``weight`` a part of it; its ``scale`` is then 1."""
    scale = adapter.scale
    if isinstance(adapter, DeltaParametrization):
        adapter.delta.mul_(scale)
    elif isinstance(adapter, DoRAParametrization):
        # of_weight * W_i + of_update * b_i A is DoRA again, of another b_i and another magnitude.
        of_update = scale * adapter.magnitude / adapter.norms(weight)
        of_weight = 1 - scale + of_update
        adapter.lora_B.mul_((of_update / of_weight).view(-1, *[1] * (weight.ndim - 1)))
        adapter.magnitude.copy_(of_weight * adapter.norms(weight))
    elif isinstance(adapter, LoRAParametrization) and scale > 0:
        adapter.settings = replace(adapter.settings, alpha=scale * adapter.settings.alpha)
        adapter.scaling *= scale
    elif isinstance(adapter, LoRAParametrization):  # every alpha is above 0
        adapter.lora_B.mul_(scale)
        if isinstance(adapter, PiSSAParametrization):
            adapter.start_B.mul_(scale)
    adapter.scale = 1.0


def loraplus(
    model: nn.Module,
    make: Callable[[Iterable[Any]], torch.optim.Optimizer],
    lr_ratio: float,
) -> torch.optim.Optimizer:
    """An optimizer with another learning rate for ``lora_B``: LoRA+, Hayou et al. 2024, section 4.

    ``make`` makes it from the trainable parameters of ``model`` or groups of them. ``lr_ratio`` is
    the learning rate of ``lora_B`` over that of everything else; 1 makes one group.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if lr_ratio == 1:
        return make(list(trained.values()))
    of_lora_B = [p for name, p in trained.items() if name.endswith("lora_B")]
    others = [p for name, p in trained.items() if not name.endswith("lora_B")]
    optimizer = make([{"params": others}, {"params": of_lora_B}])
    optimizer.param_groups[1]["lr"] *= lr_ratio
    return optimizer
