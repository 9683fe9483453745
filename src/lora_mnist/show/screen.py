"""Prints parameters, tables of errors, verdicts and predictions."""

import logging
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console, JustifyMethod, RenderableType
from rich.table import Column, Table
from rich.text import Text
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from lora_mnist.lora.base_state import count_parameters
from lora_mnist.lora.weight import float_parameters, lora_adapters
from lora_mnist.show.next_step import suggest_next_step
from lora_mnist.show.run_results import RunResults, format_count
from lora_mnist.show.verdict import describe_run

# configs/hydra/default.yaml sets the handlers of these two loggers.
screen = logging.getLogger("lora_mnist.tables.screen")
file = logging.getLogger("lora_mnist.tables.file")

#: Layers in the table of parameters on the screen; of more, the log's file has the table.
_MAX_LAYERS = 12
_STYLES = {"better": "green", "worse": "red"}


def show(*parts: RenderableType, width: int = 100) -> None:
    """Show tables and texts on the screen and in the log; ``width`` applies to plain text."""
    for logger, is_terminal in ((screen, sys.stdout.isatty()), (file, False)):
        logger.info("%s", render_lines(parts, is_terminal, None if is_terminal else width))


def render_lines(parts: Sequence[RenderableType], is_terminal: bool, width: int | None) -> str:
    """Render tables and texts as lines; a terminal gets colors unless ``NO_COLOR`` is set."""
    text = StringIO()
    # Names come from users and files: [/b] and :x: in them are not markup.
    plain: Any = {"force_jupyter": False, "markup": False, "emoji": False, "highlight": False}
    console = Console(file=text, width=width, force_terminal=is_terminal, **plain)
    for part in parts:
        # A command is not broken into lines, so that it can be copied.
        console.print(part, soft_wrap=isinstance(part, Text) and bool(part.no_wrap))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def print_parameters(net: nn.Module) -> None:
    """Print the shapes of every layer's tensors, or their kinds, and count the parameters."""
    count, rows, kinds = count_parameters(net), [], Counter[str]()
    named = [adapter.named_parameters() for adapter in lora_adapters(net)]
    columns = list(dict.fromkeys(name for each in named for name, _ in each))
    for layer, weight in float_parameters(net).items():
        if weight.attribute != "weight" and weight.original.ndim < 2:
            continue  # a bias stands in the row of its layer
        bias = getattr(weight.module, "bias", None) if weight.attribute == "weight" else None
        cells = [layer, _shape(weight.original), _shape(bias)]
        for adapter in weight.adapters:
            cells += [_shape(getattr(adapter, column, None)) for column in columns]
        rows.append(cells)
        kind: Any = type_before_parametrizations(weight.module)
        state = "not adapted" if columns and not weight.adapters else "adapted" if columns else ""
        kinds[f"{kind.__name__} {state}".rstrip()] += 1
    names = Column("layer", overflow="fold")
    table = Table(names, "W", "b", *columns)
    for row in rows:
        table.add_row(*row)
    layers: RenderableType = table
    if len(rows) > _MAX_LAYERS:
        file.info("%s", render_lines([table], False, 100))
        layers = "layers: " + ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    total = f"parameters: {count['base']:,}"
    if count["lora"]:
        total += f" + {count['lora']:,} of LoRA = {count['base'] + count['lora']:,}"
        total += f", increase {count['increase_percent']:.3f}%"
    numbers = [f"trainable: {count['trainable']:,}"]
    if count["lora"]:
        numbers.append(f"saved: {count['saved']:,}")
    show(layers, total, "; ".join(numbers))


def _shape(tensor: Any) -> str:
    """Return ``1000 x 784``, or a dash where a layer has no such tensor."""
    return " x ".join(map(str, tensor.shape)) if isinstance(tensor, Tensor) else "-"


def print_results(results: RunResults, folder: Path) -> None:
    """Print the table of errors, the verdict, and the next command after the run in ``folder``."""
    rows = results.build_rows()
    table = _table("class", rows[0].cells)
    table.title = "errors on the test images"
    if results.is_repair:
        table.title = "test images, before -> after, * to be repaired"
    for row in rows:
        # Better is green, worse is red, and the arrow says the same without colors.
        styles = {"errors": _STYLES.get(row.change.judgement, "")}
        cells = [Text(str(cell), styles.get(title, "")) for title, cell in row.cells.items()]
        name = f"{row.name} *" if row.is_target else row.name
        table.add_row(Text(name), *cells, style="bold" if row.is_target else "")
    table.rows[-2].end_section = True
    parts: list[RenderableType] = [table, results.format_accuracies()]
    parts += [Text(each.text, _STYLES.get(each.judgement, "")) for each in describe_run(results)]
    if step := suggest_next_step(results, folder):
        parts.append(step.text)
        if step.command:
            parts.append(Text(step.command, "bold", no_wrap=True))
    show(*parts)


def _table(first: str, others: Iterable[str], justify: JustifyMethod = "right") -> Table:
    """Return a table without rows. Long names are folded: a name that is cut cannot be copied."""
    columns = [Column(name, justify=justify, overflow="fold") for name in others]
    return Table(Column(first, overflow="fold"), *columns)


def print_predictions(predictions: Sequence[Mapping[str, Any]]) -> None:
    """Print class and probability of each picture; with an adapter, before and after."""
    titles = {"before": "before", "after": "after"}
    if "after" not in predictions[0]:
        titles = {"before": "prediction"}
    table, differing = _table("picture", titles.values(), "left"), 0
    for prediction in predictions:
        cells = []
        for side in titles:
            cells.append(Text(f"{prediction[side].label} ({prediction[side].probability:.3f})"))
        if "after" in titles and prediction["before"].label != prediction["after"].label:
            differing += 1
            cells[-1] = Text(f"{cells[-1]} *", "bold yellow")
        table.add_row(Text(str(prediction["file"])), *cells)
    parts: list[RenderableType] = [table]
    if differing:
        count = format_count(len(predictions), "picture")
        parts.append(f"* before and after differ: {differing:,} of {count}")
    show(*parts, width=1000)
