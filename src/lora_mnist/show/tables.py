"""Tables on the screen: the parameters of a network, and its errors class by class."""

import logging
import os
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from lora_mnist.lora import base_state_dict, has_lora, lora_adapters, trainable_parameters
from lora_mnist.show.pictures import short_name
from lora_mnist.show.screen import WIDTH, sentence, show
from lora_mnist.show.verdict import targets_of, verdict

log = logging.getLogger(__name__)


# A longer table would push what was asked for off the screen; results.json has all of it.
_MOST_ROWS = 40
_CHOSEN_ROWS = 20


def print_parameters(net: nn.Module) -> None:
    """Print the shapes of every layer's tensors, and how many numbers these are."""
    base, adapted = base_state_dict(net), has_lora(net)
    table = Table("layer", "W", "b", *(["lora_A", "lora_B"] if adapted else []))
    layers = {n: layer for n, layer in net.named_modules() if f"{n}.weight".lstrip(".") in base}
    shown = list(layers)[: _MOST_ROWS if len(layers) <= _MOST_ROWS else _CHOSEN_ROWS]
    for name in shown:
        weight, bias = (base.get(f"{name}.{of}".lstrip(".")) for of in ("weight", "bias"))
        row = [name, _shape(weight), _shape(bias)]
        if adapters := lora_adapters(layers[name]):
            row += [_shape(adapters[-1].lora_A), _shape(adapters[-1].lora_B)]
        table.add_row(*row)
    if rest := len(layers) - len(shown):
        table.add_row(f"{rest} more")
    _print(table, trainable_parameters(net))


def print_results(results: dict[str, Any], classes: list[str]) -> None:
    """Print what results.json says, class by class, and what to make of it.

    Of very many classes those to repair, and those with the most errors, have rows of their own.
    """
    test, base = results["test"], results.get("test_base")
    verdict_line = sentence(verdict({**results, "classes": classes}))
    outcomes = [test, *([base] if base else [])]
    rows = [(classes[c], [c]) for c in _shown(results.get("digit"), outcomes)]
    if rest := sorted(set(range(len(classes))) - {c for _, (c,) in rows}):
        rows.append((f"{len(rest)} others", rest))
    if base is None:
        table = _table("errors on the test images", "class", "images", "errors")
        for name, of in rows:
            table.add_row(name, str(_sum(test, "images", of)), str(_sum(test, "errors", of)))
        table.add_section()
        table.add_row("all", str(sum(test["images_per_class"])), str(test["errors"]))
        _print(table, f"accuracy: {test['accuracy']:.4f}", verdict_line)
        return
    columns = ("class", "repaired", "broken", "base errors", "errors", "change", "images")
    title = "test images, * to be repaired" if targets_of(results) else "test images"
    table = _table(title, *columns)
    for name, of in rows:
        counts = [_sum(test, what, of) for what in ("repaired", "broken")]
        counts += [_sum(split, "errors", of) for split in (base, test)]
        # The mark is for who sees no colours, and for the log.
        target = of[0] in targets_of(results) and len(of) == 1
        style = "bold" if target else ""
        cells = _cells(counts, _sum(test, "images", of))
        table.add_row(f"{name} *" if target else name, *cells, style=style)
    table.add_section()
    counts = [test["repaired"], test["broken"], base["errors"], test["errors"]]
    table.add_row("all", *_cells(counts, sum(test["images_per_class"])))
    repair = f"repaired: {test['repaired']}, broken: {test['broken']}"
    accuracy = f"accuracy: {base['accuracy']:.4f} -> {test['accuracy']:.4f}"
    each = [_each_table(results, rows)] if "each" in results else []
    _print(repair, table, accuracy, *each, verdict_line)


def _shown(target: int | list[int] | None, outcomes: list[dict[str, Any]]) -> list[int]:
    """The classes that have rows of their own."""
    per_class = zip(*(outcome["errors_per_class"] for outcome in outcomes), strict=True)
    errors = [max(counts) for counts in per_class]
    if len(errors) <= _MOST_ROWS:
        return list(range(len(errors)))
    targets = [] if target is None else target if isinstance(target, list) else [target]
    by_errors = sorted(range(len(errors)), key=lambda c: (c not in targets, -errors[c]))
    return sorted(by_errors[:_CHOSEN_ROWS])


def _table(title: str | None, *columns: str) -> Table:
    table = Table(*columns, title=title)
    for column in table.columns:
        column.overflow = "fold"  # a name that is cut names nothing
        column.justify = "right" if column is not table.columns[0] else "left"
    return table


def _sum(outcome: dict[str, Any], what: str, classes: list[int]) -> int:
    counts: list[int] = outcome[f"{what}_per_class"]
    return sum(counts[c] for c in classes)


def _cells(counts: list[int], images: int) -> list[Text]:
    """Repaired, broken and errors before and after, as the table has them."""
    change = counts[3] - counts[2]
    styles = [
        "green" if counts[0] else "",
        "red" if counts[1] else "",
        *("", ""),
        "red" if change > 0 else "green" if change < 0 else "",
        "",
    ]
    texts = [*map(str, counts), f"{change:+d}", str(images)]
    return [Text(text, style) for text, style in zip(texts, styles, strict=True)]


def _each_table(results: dict[str, Any], rows: list[tuple[str, list[int]]]) -> Table:
    """Errors of every class with each adapter alone, and with all of them."""
    splits = {"base": results["test_base"], **results["each"], "all adapters": results["test"]}
    table = _table(None, "errors with", *splits)
    for name, of in rows:
        table.add_row(name, *(str(_sum(outcome, "errors", of)) for outcome in splits.values()))
    table.add_section()
    table.add_row("all", *(str(outcome["errors"]) for outcome in splits.values()))
    return table


def print_predictions(predictions: list[dict[str, Any]]) -> None:
    """Print class and probability of each picture; with an adapter, the base beside it.

    Pictures of one folder are named below it, so that long paths leave room for the answers.
    """
    sides = [side for side in ("base", "adapted") if predictions and side in predictions[0]]
    has_notes = any(found.get("note") for found in predictions)
    folder, names = _below([found["file"] for found in predictions])
    table = Table("picture", *sides, *(["note"] if has_notes else []))
    table.columns[0].overflow = "fold"  # a name that is cut can be neither read nor copied
    for column in table.columns[1 : 1 + len(sides)]:
        column.overflow = "fold"
    differing = 0
    for name, found in zip(names, predictions, strict=True):
        differs = len({found[side]["class"] for side in sides}) > 1
        differing += differs
        cells = [
            Text(f"{short_name(found[side]['class'])} ({found[side]['probability']:.3f})")
            for side in sides
        ]
        if differs:
            # The mark is for who sees no colours, and for a pipe.
            cells[-1] = Text(f"{cells[-1]} *", "bold yellow")
        table.add_row(Text(str(name)), *cells, *([found.get("note") or ""] if has_notes else []))
    where = [Text(f"pictures in {folder}", overflow="fold")] if folder else []
    count = f"{len(predictions):,} picture{'' if len(predictions) == 1 else 's'}"
    told = [f"* base and adapted differ: {differing:,} of {count}"] if differing else []
    _print(*where, table, *told, width=1000)


def _below(files: list[str]) -> tuple[str | None, list[str]]:
    """The folder that several files have in common, and their names below it."""
    try:
        folder = os.path.commonpath([os.path.dirname(file) for file in files])  # noqa: PTH120
    except ValueError:  # none, or relative ones among absolute ones
        return None, files
    if not folder or len(files) == 1:
        return None, files
    return folder, [os.path.relpath(file, folder) for file in files]


def _shape(tensor: Tensor | None) -> str:
    return "-" if tensor is None else " x ".join(str(size) for size in tensor.shape)


@rank_zero_only
def _print(*parts: RenderableType, width: int = WIDTH) -> None:
    show(log, *parts, width=width)
