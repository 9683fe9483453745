"""Several saved adapters as one: their scaled sum, exactly, or cut to a rank."""

import copy
import math
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .adapter import load_adapter
from .layer import LoRAParametrization
from .model import attach, lora_names, named_adapters
from .peft import as_lora
from .settings import LayerSettings
from .variants import DoRAParametrization
from .weight import lora_adapters, lora_weights


@torch.no_grad()
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
    values: no matrix of that rank is nearer (Eckart and Young 1936). A tensor that one of them
    trained whole stays whole. :func:`.adapter.save_adapter` then writes the one adapter, for here
    and for PEFT.

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
            :func:`.adapter.load_adapter` says or because it is DoRA. ``model`` is then as it was.
    """
    if not folders or len(folders) != len(scales):
        raise ValueError(
            f"scales={list(scales)}: expected one for each of {len(folders)} adapters, at least one"
        )
    if rank is not None:
        LayerSettings(rank)  # refuses what is no rank
    twin = copy.deepcopy(model)
    before = lora_names(twin)
    for folder, scale in zip(folders, scales, strict=True):
        load_adapter(twin, folder, allow_other_base, scale=scale)
        if any(isinstance(adapter, DoRAParametrization) for adapter in lora_adapters(twin)):
            raise ValueError(
                f"{folder}: use_dora=True: expected another form, since what DoRA adds depends on "
                "what it stands on (merge_lora merges a stack)"
            )
    names = [name for name in lora_names(twin) if name not in before]
    settings, parts, error = _sum(twin, names, rank)
    attach(model, settings, name, tensors=parts)
    return error


@torch.no_grad()
def sum_adapters(
    model: nn.Module, names: Collection[str] | None = None, name: str | None = None
) -> nn.Module:
    """Replace adapters that are on ``model`` by one adapter, their exact scaled sum.

    The network computes what it did, to rounding. The one adapter has the scale 1, and its rank on
    a layer is the sum of theirs; see :func:`combine_adapters`. So :func:`.adapter.save_adapter`
    can write what was trained on top of other adapters as one that stands on the base alone. An
    adapter that is switched off adds nothing, as in :func:`.merge.merge_lora`.

    Args:
        model: network whose layers carry LoRA; changed in place, and returned.
        names: the adapters to add up; ``None``: all of them.
        name: of the sum; ``None``: that of the first adapter which is added up.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA, an adapter has none of these names, or
            ``name`` is that of another adapter. ``model`` is then as it was.
    """
    every = lora_names(model)
    names = every if names is None else [named_adapters(model, each)[0].name for each in names]
    named_adapters(model)  # refuses a network without any, and one that is merged
    name = name or names[0]
    if name in every and name not in names:
        raise ValueError(f"name={name}: expected another name than that of an adapter that stays")
    adapters = lora_adapters(model)
    if any(isinstance(a, DoRAParametrization) for a in adapters if a.name in names):
        raise ValueError("DoRA depends on what lies below it: expected plain LoRA to add up")
    settings, parts, _ = _sum(copy.deepcopy(model), names, None)
    for weight in lora_weights(model).values():
        weight.put(weight.base, [a for a in weight.adapters if a.name not in names])
    attach(model, settings, name, tensors=parts)
    return model


def _sum(
    model: nn.Module, names: Collection[str], rank: int | None
) -> tuple[dict[str, LayerSettings | None], dict[str, dict[str, Tensor]], float]:
    """Settings and tensors of the sum of the adapters called ``names``; the error of the cut."""
    parts: dict[str, dict[str, Tensor]] = {}
    settings: dict[str, LayerSettings | None] = {}
    lost = whole = 0.0
    for layer, weight in lora_weights(model).items():
        adapters = [adapter.double() for adapter in weight.adapters if adapter.name in names]
        factored = [adapter for adapter in adapters if isinstance(adapter, LoRAParametrization)]
        if not adapters:
            continue
        if len(factored) < len(adapters):
            # One of them trained the tensor whole.
            updates = [a.update(weight.base) * a.enabled for a in adapters]
            delta = torch.stack(updates).sum(0)
            parts[layer], settings[layer] = {"delta": delta}, None
            whole += delta.square().sum().item()
        else:
            products = [as_lora(adapter)[1:] for adapter in factored]
            lora_A = torch.cat([of_one for of_one, _ in products])
            scales = [a.scaling * a.scale * a.enabled for a in factored]
            scaled = [of_one * s for (_, of_one), s in zip(products, scales, strict=True)]
            lora_B = torch.cat(scaled, dim=1)
            if rank is not None:
                lora_A, lora_B, values = _cut(lora_A, lora_B, rank)
                lost += values[rank:].square().sum().item()
                whole += values.square().sum().item()
            parts[layer] = {"lora_A": lora_A, "lora_B": lora_B}
            settings[layer] = LayerSettings(len(lora_A), float(len(lora_A)))  # a scaling of 1
    return settings, parts, math.sqrt(lost / whole) if lost else 0.0


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
