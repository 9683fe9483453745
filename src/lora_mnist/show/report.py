"""Pages made from templates: ``report.html`` of a run or a sweep.

A report is one file that needs nothing else, no script and no font.
"""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from PIL import Image

from lora_mnist.disk.files import atomic_write, read_json
from lora_mnist.disk.predictions import Columns
from lora_mnist.disk.run_paths import RESULTS_FILE
from lora_mnist.project import command_line, program
from lora_mnist.repair.significance import knows_validation
from lora_mnist.show.changes import named
from lora_mnist.show.class_table import class_rows
from lora_mnist.show.figures import FIGURES, draw_dial, draw_run, draw_sweep, save_figure
from lora_mnist.show.next_steps import dial_text, next_steps, scaled_command
from lora_mnist.show.verdict import verdict, verdict_text
from lora_mnist.sweep.summary import Summary, findings, points, table

if TYPE_CHECKING:  # a sweep's report needs no torch
    from lora_mnist.show.pictures import Picture

#: Rows of the table of jobs; summary.csv has all.
_MAX_JOBS = 1000


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
        in_page[name] = _in_page((folder / FIGURES / f"{name}.png").read_bytes())
    typed, entry = results["overrides"], "eval" if results["stage"] == "eval" else "train"
    val, test = results.get("val_base"), results.get("test_base")
    _write_page(
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
        first.append((kind, picture, _in_page(png.getvalue())))
    return first


class Front(NamedTuple):
    """Repairs of the same classes in a sweep, each at several scales of its adapter."""

    picture: str  # a PNG file's name
    sentence: str = ""  # which repair to take, and why
    command: str = ""  # that tests it


def make_sweep_report(summary: Summary, command: str) -> list[str]:
    """Write ``summary.png`` and ``report.html`` of a sweep; return the lines of its fronts.

    ``command`` is the one that goes on with the sweep.
    """
    folder, best = summary.folder, ""
    if summary.best and summary.jobs[0].swept:
        metric = str(summary.metric)
        if summary.has_seeds and summary.keys:
            metric = f"mean {metric} over seeds"
        save_figure(draw_sweep(points(summary), metric), folder / "summary.png")
    if summary.best and not summary.has_front:
        best = verdict_text(read_json(folder / summary.best.jobs[0].folder / RESULTS_FILE))
    titles, rows, base = table(summary, _MAX_JOBS)
    fronts = _draw_fronts(summary)
    figures = {}
    for name in [*(front.picture for front in fronts), "summary.png"]:
        if (folder / name).exists():
            figures[name] = _in_page((folder / name).read_bytes())
    _write_page(
        folder / "report.html",
        "sweep.html.j2",
        summary=summary,
        findings=findings(summary),
        command=command,
        best=best,
        fronts=fronts,
        figures=figures,
        titles=titles,
        rows=rows,
        base=base,
    )
    return [line for front in fronts for line in (front.sentence, front.command) if line]


def _draw_fronts(summary: Summary) -> list[Front]:
    """Draw the dials of all jobs that repair the same classes into one picture, if there are any.

    ``front.png``, or a picture for each choice of classes. Advised is the job whose validation
    errors are fewest at the scale that its dial advises, but none where seeds differ, so that no
    lucky one wins.
    """
    by_targets: dict[tuple[int, ...], dict[str, tuple[Path, Any]]] = {}
    for job in summary.jobs:
        folder = summary.folder / job.folder
        results = read_json(folder / RESULTS_FILE)
        if job.status == "finished" and "errors_of_target" in (results.get("dial") or {}):
            settings = [f"{k}={v}" for k, v in job.swept.items() if k not in ("digit", "target")]
            label = ", ".join(settings) or job.folder
            by_targets.setdefault(tuple(results["targets"]), {})[label] = folder, results
    fronts = []
    for targets, jobs in by_targets.items():
        picture = "front.png"
        if len(by_targets) > 1:
            picture = f"front_{'_'.join(map(str, targets))}.png"
        dials, advised, fewest = {}, None, None
        for label, (_, results) in jobs.items():
            dial = dials[label] = results["dial"]
            base, at = dial["scales"].index(0), dial["scales"].index(dial["advised"])
            of_target = dial["errors_of_target"]
            errors = dial["errors"][at], of_target[at]
            if of_target[at] < of_target[base] and (fewest is None or errors < fewest):
                advised, fewest = label, errors
        if summary.has_seeds:
            advised, front = None, Front(picture)
        elif advised is None:
            name = named(results["classes"], targets)
            text = f"no repair of {name} saves errors in all on validation images."
            front = Front(picture, text)
        else:
            folder, results = jobs[advised]
            dial = results["dial"]
            text = f"advised: {advised} at scale {dial['advised']:g}, with the fewest errors "
            text += f"on {dial['images']:,} validation images: {dial_text(results)}:"
            front = Front(picture, text, scaled_command(results, folder))
        save_figure(draw_dial(dials, advised, results), summary.folder / picture)
        fronts.append(front)
    return fronts


def _write_page(path: Path, template: str, **values: Any) -> None:
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


def _in_page(png: bytes) -> str:
    """The content of a PNG file as the address of an image."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
