"""What a person reads: tables of parameters and of errors, digit by digit."""

import logging
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lora_mnist.lora import base_state_dict, lora_layers, lora_parameters

log = logging.getLogger(__name__)


def count_parameters(net: nn.Module) -> dict[str, Any]:
    """How many numbers the base holds, LoRA adds and training changes, as in results.json."""
    total = sum(p.numel() for p in net.parameters())
    lora = sum(p.numel() for p in lora_parameters(net))
    base = total - lora
    return {
        "base": base,
        "lora": lora,
        "trainable": sum(p.numel() for p in net.parameters() if p.requires_grad),
        "increase_percent": round(100 * lora / base, 3),
    }


def report_parameters(net: nn.Module) -> None:
    """Print the shapes of every linear layer's tensors, and the totals."""
    base, adapted = base_state_dict(net), dict(lora_layers(net))
    table = Table("layer", "W", "b", *(["lora_A", "lora_B"] if adapted else []))
    for name, layer in net.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        row = [name, _shape(base[f"{name}.weight"]), _shape(base.get(f"{name}.bias"))]
        if name in adapted:
            adapters = adapted[name].parametrizations.weight
            row += [", ".join(_shape(getattr(a, side)) for a in adapters) for side in ("lora_A", "lora_B")]
        table.add_row(*row)
    count = count_parameters(net)
    text = f"parameters: {count['base']:,}"
    if adapted:
        text += (
            f" + {count['lora']:,} of LoRA = {count['base'] + count['lora']:,}, "
            f"increase {count['increase_percent']:.3f}%"
        )
    _print(table, f"{text}; trainable: {count['trainable']:,}")


def report_results(results: dict[str, Any], classes: list[str]) -> None:
    """Print what results.json says, class by class; with an adapter, before and after."""
    test, base = results["test"], results.get("test_base")
    table = Table("class", *(["errors of the base", "with the adapter", "difference"] if base else ["errors"]), "images")
    for column in table.columns[1:]:
        column.justify = "right"
    rows = zip(
        [*classes, "all"],
        [*test["errors_per_class"], test["errors"]],
        [*base["errors_per_class"], base["errors"]] if base else [None] * (len(classes) + 1),
        [*test["images_per_class"], sum(test["images_per_class"])],
        strict=True,
    )
    for name, errors, errors_of_base, images in rows:
        if name == "all":
            table.add_section()
        before_after = (
            [str(errors)]
            if errors_of_base is None
            else [str(errors_of_base), str(errors), f"{errors - errors_of_base:+d}"]
        )
        table.add_row(name, *before_after, str(images))
    accuracy = f"accuracy: {test['accuracy']:.4f}"
    if base:
        accuracy = f"accuracy: {base['accuracy']:.4f} -> {test['accuracy']:.4f}"
    _print(table, accuracy)


def _shape(tensor: Tensor | None) -> str:
    return "-" if tensor is None else " x ".join(str(size) for size in tensor.shape)


def _print(*parts: Table | str) -> None:
    """Log rich's tables as plain text, so that screen, pipe and train.log show the same."""
    console = Console(file=StringIO(), width=100)
    for part in parts:
        console.print(part)
    log.info("%s", console.file.getvalue())
