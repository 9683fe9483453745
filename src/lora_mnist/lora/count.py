"""How many numbers a network holds, and how many of them training changes."""

from typing import Any

from torch import nn

from .model import lora_parameters


def count_parameters(model: nn.Module) -> dict[str, Any]:
    """How many numbers the base holds, LoRA adds and training changes.

    Returns:
        ``base``, ``lora`` and ``trainable``, and ``increase_percent``, 100 * lora / base.
    """
    lora = sum(p.numel() for p in lora_parameters(model))
    base = sum(p.numel() for p in model.parameters()) - lora
    return {
        "base": base,
        "lora": lora,
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "increase_percent": round(100 * lora / base, 3),
    }


def trainable_parameters(model: nn.Module) -> str:
    """What :func:`count_parameters` counts, in a line to print.

    For instance ``parameters: 53 + 22 of LoRA = 75, increase 41.509%; trainable: 22``.
    """
    count = count_parameters(model)
    total = f"parameters: {count['base']:,}"
    if count["lora"]:
        total += (
            f" + {count['lora']:,} of LoRA = {count['base'] + count['lora']:,}, "
            f"increase {count['increase_percent']:.3f}%"
        )
    return f"{total}; trainable: {count['trainable']:,}"
