"""``report.html`` of a run, made from a template.

A report is one file that needs nothing else, no script and no font.
"""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from PIL import Image

from lora_mnist.disk.files import atomic_write
from lora_mnist.disk.predictions import Columns
from lora_mnist.project import command_line, program
from lora_mnist.repair.significance import knows_validation
from lora_mnist.show.changes import named
from lora_mnist.show.class_table import class_rows
from lora_mnist.show.figures import FIGURES, draw_run
from lora_mnist.show.next_steps import next_steps
from lora_mnist.show.verdict import verdict

if TYPE_CHECKING:  # a sweep's report needs no torch
    from lora_mnist.show.pictures import Picture


def make_report(
    folder: Path,
    results: Mapping[str, Any],
    table: Columns,
    pictures: "Mapping[str, Sequence[Picture]]",
) -> dict[str, Figure]:
    """Draw the figures of a run and write its ``report.html``; return the figures.

    ``pictures`` are some test images of each kind: ``repaired``, ``broken``, ``wrong``.
    """
    figures = draw_run(folder, results, table, pictures)
    in_page = {}
    for name in figures:
        in_page[name] = address_in_page((folder / FIGURES / f"{name}.png").read_bytes())
    typed, entry = results["overrides"], "eval" if results["stage"] == "eval" else "train"
    val, test = results.get("val_base"), results.get("test_base")
    write_page(
        folder / "report.html",
        "report.html.j2",
        folder=folder,
        results=results,
        verdict=verdict(results),
        next_steps=next_steps(results, folder),
        rows=class_rows(results),
        figures=in_page,
        pictures=_first_of_all(pictures),
        named=named,
        knows_validation=bool(val and test and knows_validation(val, test)),
        command=command_line(typed, program(entry)) if typed else "",
    )
    return figures


def _first_of_all(
    pictures: "Mapping[str, Sequence[Picture]]",
) -> "list[tuple[str, Picture, str]]":
    """Ten pictures to look at first, or fewer: five broken ones, then wrong ones.

    There are more broken ones where wrong ones are few. Each has its kind and its image's address.
    """
    broken, wrong = pictures.get("broken", []), pictures["wrong"]
    broken = broken[: max(5, 10 - len(wrong))]
    chosen = [("broken", picture) for picture in broken]
    chosen += [("wrong", picture) for picture in wrong[: 10 - len(broken)]]
    first = []
    for kind, picture in chosen:
        png = BytesIO()
        Image.fromarray(picture.pixels).save(png, "PNG")
        first.append((kind, picture, address_in_page(png.getvalue())))
    return first


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


def address_in_page(png: bytes) -> str:
    """The content of a PNG file as the address of an image."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
