"""``report.html`` of a run, made from a template.

A report is one file that needs nothing else, no script and no font.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from lora_mnist.disk.files import atomic_write
from lora_mnist.disk.predictions import Columns
from lora_mnist.project import command_line, program
from lora_mnist.repair.significance import knows_validation
from lora_mnist.show.changes import named
from lora_mnist.show.class_table import class_rows
from lora_mnist.show.figures import draw_confusion, draw_dial, save_figure
from lora_mnist.show.next_steps import next_steps
from lora_mnist.show.verdict import verdict

#: The figures' folder in a run's folder.
FIGURES = "figures"
#: With more classes the numbers in a matrix could not be read.
_MAX_IN_MATRIX = 12


def make_report(
    folder: Path,
    results: Mapping[str, Any],
    table: Columns,
    pictures: Mapping[str, Sequence[Any]],
) -> dict[str, Figure]:
    """Draw the figures of a run and write its ``report.html``; return the figures.

    ``pictures`` are some test images of each kind, as of :func:`.first_pictures`.
    """
    figures = {}
    if results.get("dial"):
        figures["dial"] = draw_dial(results)
    if len(results["classes"]) <= _MAX_IN_MATRIX:
        figures["confusion"] = draw_confusion(table, results["classes"])
    addresses = {}
    for name, figure in figures.items():
        addresses[name] = save_figure(figure, folder / FIGURES / f"{name}.png")
    typed, entry = results["overrides"], "eval" if results["stage"] == "eval" else "train"
    val, test = results.get("val_base"), results.get("test_base")
    write_page(
        folder / "report.html",
        "report.html.j2",
        folder=folder,
        results=results,
        verdict=verdict(results),
        next_steps=next_steps(results, folder),
        choice="",
        rows=class_rows(results),
        figures=addresses,
        pictures=pictures,
        named=named,
        knows_validation=bool(val and test and knows_validation(val, test)),
        command=command_line(typed, program(entry)) if typed else "",
    )
    return figures


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill in a template and write it, whole or not at all.

    The names of classes, and all else that comes from a file, are escaped.
    """
    environment = Environment(
        loader=PackageLoader("lora_mnist.show", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["commas"] = "{:,}".format
    text = environment.get_template(template).render(values)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
