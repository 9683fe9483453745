"""Tables: the parameters of a network, and its errors class by class.

A terminal gets them in its width and its colours; a pipe and the log as plain text.
"""

import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console, JustifyMethod, RenderableType
from rich.table import Column, Table
from rich.text import Text
from torch import Tensor, nn

from lora_mnist.classifier.significance import LEVEL, chance_text, mcnemar, wilson
from lora_mnist.lora import base_state_dict, lora_adapters, trainable_parameters
from lora_mnist.show.verdict import (
    Phrase,
    confusions,
    counts_per_class,
    mistakes_of,
    short_name,
    started_from,
    targets_of,
    verdict,
)

log = logging.getLogger(__name__)  # goes to the log's file
screen = logging.getLogger("lora_mnist.show.screen")  # goes to standard output

# A longer table would push what was asked for off the screen; results.json has all of it.
_MOST_ROWS = 40
_CHOSEN_ROWS = 20
_STYLES = {"good": "green", "bad": "red", "plain": "", "advice": "bold"}


@rank_zero_only
def show(*parts: RenderableType, width: int = 100) -> None:
    """Show tables and texts on the screen and, so many columns wide, in the log."""
    is_terminal = sys.stdout.isatty()
    screen.info("%s", _rendered(parts, None if is_terminal else width, is_terminal))
    log.info("%s", _rendered(parts, width, is_terminal=False))


def _rendered(parts: Sequence[RenderableType], width: int | None, is_terminal: bool) -> str:
    """The parts as text; ``None`` for the terminal's width; ``NO_COLOR`` is respected."""
    text = StringIO()
    plain: Any = {"force_jupyter": False, "markup": False, "emoji": False, "highlight": False}
    console = Console(file=text, width=width, force_terminal=is_terminal, **plain)
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def print_parameters(net: nn.Module) -> None:
    """Print the shapes of every layer's tensors, and how many numbers these are."""
    base = base_state_dict(net)
    layers = {n: layer for n, layer in net.named_modules() if f"{n}.weight".lstrip(".") in base}
    shown = list(layers)[: _MOST_ROWS if len(layers) <= _MOST_ROWS else _CHOSEN_ROWS]
    rows: list[dict[str, str]] = []
    for name in shown:
        row = {"layer": name}
        for column, part in (("W", "weight"), ("b", "bias")):
            row[column] = _shape(base.get(f"{name}.{part}".lstrip(".")))
        adapters = lora_adapters(layers[name])
        for adapter in adapters:
            if adapter.name == adapters[-1].name:  # the last one, which may be on weight and bias
                for part, tensor in adapter.named_parameters():
                    row[part] = f"{row[part]}, {_shape(tensor)}" if part in row else _shape(tensor)
        rows.append(row)
    columns = dict.fromkeys(column for row in rows for column in row)
    table = Table(*columns)
    for row in rows:
        table.add_row(*(row.get(column, "") for column in columns))
    if rest := len(layers) - len(shown):
        table.add_row(f"{rest} more")
    show(table, trainable_parameters(net))


def _shape(tensor: Tensor | None) -> str:
    return "-" if tensor is None else " x ".join(str(size) for size in tensor.shape)


def print_results(results: Mapping[str, Any]) -> None:
    """Print what results.json says, class by class, and what to make of it.

    Of very many classes those to repair, and those with the most errors, have rows of their own.
    """
    show(*_results_parts(results))


def results_text(results: Mapping[str, Any]) -> str:
    """What :func:`print_results` prints, as plain text."""
    return _rendered(_results_parts(results), 100, is_terminal=False)


def _results_parts(results: Mapping[str, Any]) -> list[RenderableType]:
    test, base = results["test"], results.get("test_base")
    # What is better is green, what is worse red, and no word is said by colour alone.
    verdict_line = _line(verdict(results))
    confused = [_line(phrases) for phrases in confusions(results).values()]
    table = _class_table(results, "class", counts_per_class(results))
    if base is None:
        table.title = "errors on the test images"
        return [table, f"accuracy: {test['accuracy']:.4f}", *confused, verdict_line]
    table.title = "test images, * to be repaired" if targets_of(results) else "test images"
    changes = f"repaired: {test['repaired']}, broken: {test['broken']}"
    parts: list[RenderableType] = [
        f"{changes}, {chance_text(test['p_value'])}",
        table,
        f"accuracy: {started_from(results)['accuracy']:.4f} -> {test['accuracy']:.4f}",
    ]
    if "each" in results:
        splits = {"base": base, **results["each"], "all adapters": test}
        columns = {name: outcome["errors_per_class"] for name, outcome in splits.items()}
        parts.append(_class_table(results, "errors with", columns))
    if mistakes := mistakes_of(results):
        table = _table("mistakes", ["right with the base", "right now", "images"])
        for name, counts in mistakes.items():
            table.add_row(name, *map(str, counts))
        parts.append(table)
    return [*parts, *confused, verdict_line]


def _line(phrases: Sequence[Phrase]) -> Text:
    return Text(" ").join(Text(text, _STYLES[mood]) for text, mood in phrases)


def _class_table(
    results: Mapping[str, Any], first: str, columns: Mapping[str, Sequence[int]]
) -> Table:
    """A row for each class and one for all; ``columns`` hold a count for each class.

    Beside errors and images stands the 95% interval of the errors; a change that chance explains
    has no colour.
    """
    classes, targets = results["classes"], targets_of(results)
    every = list(range(len(classes)))
    own, rest = every, []
    if len(classes) > _MOST_ROWS:
        tests = [results[test] for test in ("test", "test_base") if test in results]
        sides = [test["errors_per_class"] for test in tests]
        order = sorted(every, key=lambda c: (c not in targets, -max(side[c] for side in sides)))
        own, rest = sorted(order[:_CHOSEN_ROWS]), order[_CHOSEN_ROWS:]
    rows = [(str(classes[c]), [c]) for c in own]
    if rest:
        rows.append((f"{len(rest)} others", rest))
    has_interval, is_repair = "images" in columns, "change" in columns
    table = _table(first, [*columns, "errors, 95%"] if has_interval else columns)
    for name, of in [*rows, ("all", every)]:
        is_target = is_repair and len(of) == 1 and of[0] in targets
        totals = {name: sum(counts[c] for c in of) for name, counts in columns.items()}
        cells = [Text(str(count)) for count in totals.values()]
        if is_repair:
            change, at = totals["change"], list(totals).index("change")
            is_chance = mcnemar(totals["repaired"], totals["broken"]) > LEVEL
            cells[at] = Text(f"{change:+d}", "" if is_chance else "green" if change < 0 else "red")
        if has_interval:
            low, high = wilson(totals["errors"], totals["images"])
            cells.append(Text(f"{low:.0f}-{high:.0f}"))
        # The mark is for who sees no colours, and for the log.
        mark = " *" if is_target else ""
        table.add_row(Text(name + mark), *cells, style="bold" if is_target else "")
    table.rows[-2].end_section = True
    return table


def _table(first: str, others: Iterable[str], justify: JustifyMethod = "right") -> Table:
    """A table without rows; a name that is cut could be neither read nor copied."""
    columns = [Column(name, justify=justify, overflow="fold") for name in others]
    return Table(Column(first, overflow="fold"), *columns)


def print_predictions(predictions: Sequence[Mapping[str, Any]]) -> None:
    """Print class and probability of each picture; with an adapter, the base beside it.

    Pictures of one folder are named below it, so that long paths leave room for the classes.
    """
    sides = [side for side in ("base", "adapted") if predictions and side in predictions[0]]
    table = _table("picture", sides, "left")
    names = [str(prediction["file"]) for prediction in predictions]
    parts: list[RenderableType] = [table]
    folders = {os.path.dirname(name) for name in names}  # noqa: PTH120 a URL stays one
    if len(names) > 1 and len(folders) == 1 and (folder := folders.pop()):
        parts.insert(0, Text(f"pictures in {folder}", overflow="fold"))
        names = [os.path.basename(name) for name in names]  # noqa: PTH119
    differing = 0
    for name, prediction in zip(names, predictions, strict=True):
        cells = []
        for side in sides:
            probability = prediction[side]["probability"]
            cells.append(Text(f"{short_name(prediction[side]['class'])} ({probability:.3f})"))
        if len({prediction[side]["class"] for side in sides}) > 1:
            differing += 1
            cells[-1] = Text(f"{cells[-1]} *", "bold yellow")
        table.add_row(Text(name), *cells)
    if differing:
        count = f"{len(predictions):,} picture{'' if len(predictions) == 1 else 's'}"
        parts.append(f"* base and adapted differ: {differing:,} of {count}")
    show(*parts, width=1000)
