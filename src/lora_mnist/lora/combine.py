"""Several adapters as one: their scaled sum, exactly, or cut to a rank."""

import copy
import math
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .adapter import load_adapter
from .layer import LoRAParametrization
from .model import attach, lora_names, named_adapters
from .peft import plain_lora
from .weight import lora_weights


def combine_adapters(
    model: nn.Module,
    folders: Sequence[str | Path],
    scales: Sequence[float],
    rank: int | None = None,
    name: str | None = None,
    allow_other_base: bool = False,
) -> float:
    """Put the scaled sum of several saved adapters on ``model``, as one adapter.

    The sum of products is itself a product, of factors side by side:

        sum_i s_i B_i A_i = [s_1 B_1, s_2 B_2, ...] @ [A_1; A_2; ...],    s_i = scale_i * scaling_i

    So it is exact, whatever the ranks, alphas, signs and layers of the adapters, and its rank on a
    layer is the sum of theirs. With ``rank``, the sum on each layer is cut to its largest singular
    values: no matrix of that rank is nearer (Eckart and Young 1936). :func:`.adapter.save_adapter`
    then writes the one adapter, for here and for PEFT.

    Args:
        model: the base that all were trained on; changed in place, its own parameters frozen.
        folders: what :func:`.adapter.save_adapter` or ``peft`` wrote.
        scales: how much of each; negative ones take an adapter's effect away.
        rank: the largest rank of a layer's sum; ``None``: exact.
        name: of the sum; see :func:`.model.add_lora`.
        allow_other_base: see :func:`.adapter.load_adapter`.

    Returns:
        The error of the cut, ``||sum - cut|| / ||sum||`` over all layers in the Frobenius norm; 0
        where nothing was cut.

    Raises:
        ValueError: if an argument cannot be used, or one of the adapters, as
            :func:`.adapter.load_adapter` says. ``model`` is then as it was.
    """
    if not folders or len(folders) != len(scales):
        raise ValueError(
            f"scales={list(scales)}: expected one for each of {len(folders)} adapters, at least one"
        )
    if rank is not None and rank < 1:
        raise ValueError(f"rank={rank}: expected an integer >= 1")
    twin = copy.deepcopy(model)
    before = lora_names(twin)
    for folder, scale in zip(folders, scales, strict=True):
        load_adapter(twin, folder, allow_other_base, scale=scale)
    loaded = [each for each in lora_names(twin) if each not in before]
    adapters, error = _sum(twin, loaded, rank)
    attach(model, adapters, name)
    return error


def sum_adapters(
    model: nn.Module, names: Collection[str] | None = None, name: str | None = None
) -> nn.Module:
    """Replace adapters that are on ``model`` by one adapter, their exact scaled sum.

    The network computes what it did, to rounding. The one adapter has the scale 1, and its rank on
    a layer is the sum of theirs; see :func:`combine_adapters`. So :func:`.adapter.save_adapter`
    can write what was trained on top of other adapters as one that stands on the base alone, or an
    adapter at its scale. An adapter that is switched off adds nothing, as in
    :func:`.merge.merge_lora`.

    Args:
        model: network whose layers carry LoRA; changed in place, and returned.
        names: the adapters to add up; ``None``: all of them.
        name: of the sum; ``None``: that of the first adapter which is added up.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, an adapter has none of these names, or
            ``name`` is that of another adapter. ``model`` is then as it was.
    """
    named_adapters(model)  # refuses a network without adapters, or with merged ones
    summed = list(lora_names(model) if names is None else names)
    for each in summed:
        named_adapters(model, each)
    name = name or summed[0]
    if name in lora_names(model) and name not in summed:
        raise ValueError(f"name={name}: expected another name than that of an adapter that stays")
    adapters, _ = _sum(model, summed, None)
    attach(model, adapters)  # what it refuses is refused before anything is taken off
    for weight in lora_weights(model).values():
        weight.put(weight.base, [each for each in weight.adapters if each.name not in summed])
    for adapter in adapters.values():
        adapter.name = name
    return model


@torch.no_grad()
def _sum(
    model: nn.Module, names: Collection[str], rank: int | None
) -> tuple[dict[str, LoRAParametrization], float]:
    """The sum of the adapters called ``names`` on each layer, and the error of the cut."""
    sums = {}
    lost = whole = 0.0
    for layer, weight in lora_weights(model).items():
        rows, columns = [], []
        for adapter in weight.adapters:
            if adapter.name in names:
                lora_A, lora_B = adapter.factors()
                scale = adapter.scaling * adapter.scale * adapter.enabled
                rows.append(lora_A.cpu().double())
                columns.append(lora_B.cpu().double() * scale)
        if not rows:
            continue
        lora_A, lora_B = torch.cat(rows), torch.cat(columns, dim=1)
        if rank is not None:
            lora_A, lora_B, values = _cut(lora_A, lora_B, rank)
            lost += values[rank:].square().sum().item()
            whole += values.square().sum().item()
        sums[layer] = plain_lora(lora_A, lora_B, alpha=len(lora_A))  # a scaling of 1
    return sums, math.sqrt(lost / whole) if lost else 0.0


def _cut(lora_A: Tensor, lora_B: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Factors of the matrix of ``rank`` nearest to ``lora_B @ lora_A``; its singular values.

    They are those of a matrix as small as the rank: with ``lora_B = Q_B R_B`` and ``lora_A^T = Q_A
    R_A``, of ``R_B R_A^T``. The dense product is not built.
    """
    Q_B, R_B = torch.linalg.qr(lora_B.flatten(1))
    Q_A, R_A = torch.linalg.qr(lora_A.flatten(1).T)
    left, values, right = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    root = values[:rank].sqrt()
    cut_A = root[:, None] * (right[:rank] @ Q_A.T)
    cut_B = Q_B @ left[:, :rank] * root
    ones = [1] * (lora_B.ndim - 2)
    return (
        cut_A.view(-1, *lora_A.shape[1:]),
        cut_B.view(len(lora_B), -1, *ones),
        values,
    )
