"""Tables on the screen: the parameters of a network, and its errors class by class."""

import logging
from collections.abc import Mapping
from io import StringIO
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lora_mnist.lora import base_state_dict, has_lora, lora_adapters

log = logging.getLogger(__name__)


def print_parameters(net: nn.Module, count: Mapping[str, Any]) -> None:
    """Print the shapes of every layer's tensors, and the totals in ``count``."""
    base, adapted = base_state_dict(net), has_lora(net)
    table = Table("layer", "W", "b", *(["lora_A", "lora_B"] if adapted else []))
    for name, layer in net.named_modules():
        if f"{name}.weight" not in base:
            continue
        row = [name, _shape(base[f"{name}.weight"]), _shape(base.get(f"{name}.bias"))]
        if adapters := lora_adapters(layer):
            row += [_shape(adapters[-1].lora_A), _shape(adapters[-1].lora_B)]
        table.add_row(*row)
    total = f"parameters: {count['base']:,}"
    if adapted:
        total += (
            f" + {count['lora']:,} of LoRA = {count['base'] + count['lora']:,}, "
            f"increase {count['increase_percent']:.3f}%"
        )
    _print(table, f"{total}; trainable: {count['trainable']:,}")


def print_results(results: dict[str, Any], classes: list[str]) -> None:
    """Print what results.json says, class by class; where there is a base, what the repair did."""
    test = results["test"]
    each = [_each_table(results)] if "each" in results else []
    if "test_base" not in results:
        table = _table("errors on the test images", "class", "images", "errors")
        for number, name in enumerate(classes):
            table.add_row(
                name, *map(str, (_of(test, "images", number), _of(test, "errors", number)))
            )
        table.add_section()
        table.add_row("all", str(sum(test["images_per_class"])), str(test["errors"]))
        _print(table, f"accuracy: {test['accuracy']:.4f}")
        return
    base = results["test_base"]
    columns = ("class", "repaired", "broken", "base errors", "errors", "change", "images")
    table = _table("test images", *columns)
    for number, name in enumerate(classes):
        counts = [_of(test, what, number) for what in ("repaired", "broken")]
        counts += [_of(split, "errors", number) for split in (base, test)]
        table.add_row(name, *_cells(counts, _of(test, "images", number)))
    table.add_section()
    counts = [test["repaired"], test["broken"], base["errors"], test["errors"]]
    table.add_row("all", *_cells(counts, sum(test["images_per_class"])))
    repair = f"repaired: {test['repaired']}, broken: {test['broken']}"
    accuracy = f"accuracy: {base['accuracy']:.4f} -> {test['accuracy']:.4f}"
    _print(repair, table, accuracy, *each)


def _table(title: str | None, *columns: str) -> Table:
    table = Table(*columns, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _of(outcome: dict[str, Any], what: str, number: int) -> int:
    count: int = outcome[f"{what}_per_class"][number]
    return count


def _cells(counts: list[int], images: int) -> list[str]:
    """Repaired, broken and errors before and after, as the table has them."""
    return [*map(str, counts), f"{counts[3] - counts[2]:+d}", str(images)]


def _each_table(results: dict[str, Any]) -> Table:
    """Errors of every class with each adapter alone, and with all of them."""
    rows = {"base": results["test_base"], **results["each"], "all adapters": results["test"]}
    classes = range(len(results["test"]["errors_per_class"]))
    table = _table(None, "errors with", *map(str, classes), "all")
    for name, outcome in rows.items():
        table.add_row(name, *map(str, outcome["errors_per_class"]), str(outcome["errors"]))
    return table


def print_predictions(predictions: list[dict[str, Any]]) -> None:
    """Print digit and probability of each picture; with an adapter, the base beside it."""
    sides = [side for side in ("base", "adapted") if predictions and side in predictions[0]]
    table = Table("picture", *sides)
    for found in predictions:
        cells = [f"{found[side]['class']} ({found[side]['probability']:.3f})" for side in sides]
        table.add_row(found["file"], *cells)
    _print(table)


def _shape(tensor: Tensor | None) -> str:
    return "-" if tensor is None else " x ".join(str(size) for size in tensor.shape)


@rank_zero_only
def _print(*parts: Table | str) -> None:
    """Log rich's tables as plain text, so that screen, pipe and train.log show the same."""
    text = StringIO()
    console = Console(file=text, width=100, markup=False, emoji=False, highlight=False)
    for part in parts:
        console.print(part)
    log.info("%s", text.getvalue().rstrip())
