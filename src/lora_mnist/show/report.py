"""Pages made from templates: ``report.html`` of a run or a sweep, and the card of an adapter.

A report is one file that needs nothing else, no script and no font.
"""

import base64
from collections.abc import Mapping
from importlib.metadata import version
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader
from PIL import Image

from lora_mnist.classifier.significance import knows_validation
from lora_mnist.disk.files import atomic_write, read_json
from lora_mnist.disk.predictions import Predictions, kinds_of, read_predictions
from lora_mnist.disk.run_paths import ADAPTER_FOLDER, RESULTS_FILE
from lora_mnist.project import command_line, program
from lora_mnist.show.changes import named, outcome_before, repaired_classes, start_of
from lora_mnist.show.class_table import class_rows
from lora_mnist.show.figures import as_rgb, draw_dial, draw_run, draw_sweep, save_figure
from lora_mnist.show.next_steps import dial_text, next_steps, scaled_command
from lora_mnist.show.verdict import verdict, verdict_text
from lora_mnist.sweep.summary import Summary, findings, points, table

#: Rows of the table of jobs; summary.csv has all.
_MAX_JOBS = 1000


def make_report(folder: Path, results: Mapping[str, Any]) -> dict[str, Path]:
    """Draw the figures of a run and write its ``report.html``; return the figures' files.

    Predictions are shown where the folder has them.
    """
    predictions = read_predictions(folder, results["classes"])
    figures = draw_run(folder, results, predictions)
    typed, entry = results["overrides"], "eval" if results["stage"] == "eval" else "train"
    val, test = results.get("val_base"), results.get("test_base")
    _write_page(
        folder / "report.html",
        "report.html.j2",
        folder=folder,
        results=results,
        verdict=verdict(results),
        next_steps=next_steps(results, folder),
        before=outcome_before(results),
        rows=class_rows(results),
        figures={name: _in_page(path.read_bytes()) for name, path in figures.items()},
        predictions=predictions,
        pictures=_first_pictures(predictions) if predictions else [],
        named=named,
        start=start_of(results),
        knows_validation=bool(val and test and knows_validation(val, test)),
        command=command_line(typed, program(entry)) if typed else "",
    )
    return figures


def _first_pictures(predictions: Predictions) -> list[tuple[str, int, str]]:
    """Ten pictures to look at, or fewer: broken ones, then wrong ones, the most probable first.

    Each has its kind, its place in ``predictions`` and the address of its image.
    """
    kinds = kinds_of(predictions)
    pictures: list[tuple[str, int, str]] = []
    most_broken = max(5, 10 - len(kinds["wrong"]))
    for kind, most in (("broken", most_broken), ("wrong", 10)):
        pairs = zip(kinds.get(kind, []), predictions.get(f"{kind}.images", []), strict=False)
        for place, pixels in islice(pairs, most - len(pictures)):
            png = BytesIO()
            Image.fromarray(as_rgb(pixels)).save(png, "PNG")
            pictures.append((kind, place, _in_page(png.getvalue())))
    return pictures


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
    pictures = [front.picture for front in fronts]
    _write_page(
        folder / "report.html",
        "sweep.html.j2",
        summary=summary,
        findings=findings(summary),
        command=command,
        best=best,
        fronts=fronts,
        figures={
            name: _in_page((folder / name).read_bytes())
            for name in [*pictures, "summary.png"]
            if (folder / name).exists()
        },
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
    by_targets: dict[tuple[int, ...], list[tuple[str, Path, Any]]] = {}
    for job in summary.jobs:
        folder = summary.folder / job.folder
        results = read_json(folder / RESULTS_FILE)
        if job.status == "finished" and "errors_of_target" in (results.get("dial") or {}):
            settings = [f"{k}={v}" for k, v in job.swept.items() if k not in ("digit", "target")]
            label = ", ".join(settings) or job.folder
            by_targets.setdefault(tuple(results["targets"]), []).append((label, folder, results))
    fronts = []
    for targets, jobs in by_targets.items():
        numbers = "_".join(map(str, targets))
        picture = "front.png" if len(by_targets) == 1 else f"front_{numbers}.png"
        dials, points = {}, []
        for place, (label, _, results) in enumerate(jobs):
            dial = dials[label] = results["dial"]
            base, at = dial["scales"].index(0), dial["scales"].index(dial["advised"])
            of_target = dial["errors_of_target"]
            if of_target[at] < of_target[base]:
                points.append((dial["errors"][at], of_target[at], place))
        first, name = jobs[0][2], named(jobs[0][2]["classes"], targets)
        front, advised = Front(picture), None
        if not summary.has_seeds:
            text = f"no repair of {name} saves errors in all on validation images."
            front = Front(picture, text)
            if points:
                advised, folder, results = jobs[min(points)[-1]]
                dial = results["dial"]
                text = f"advised: {advised} at scale {dial['advised']:g}, with the fewest errors "
                text += f"on {dial['images']:,} validation images: {dial_text(results)}:"
                front = Front(picture, text, scaled_command(results, folder))
        save_figure(draw_dial(dials, advised, first), summary.folder / picture)
        fronts.append(front)
    return fronts


def write_card(folder: Path, results: Mapping[str, Any]) -> None:
    """Write ``README.md``, the card of a run's adapter, as the Hugging Face Hub shows it."""
    left_out = ("base_ckpt=", "paths.")  # somebody else has other files
    typed = [
        text for text in results["overrides"] or () if not text.lstrip("+~").startswith(left_out)
    ]
    repaired = repaired_classes(results)
    _write_page(
        folder / ADAPTER_FOLDER / "README.md",
        "card.md.j2",
        results=results,
        what=named(results["classes"], repaired) if repaired else "all classes",
        verdict=verdict_text(results),
        rows=class_rows(results),
        command=command_line(typed) if typed else "",
        versions={name: version(name) for name in ("lora-mnist", "torch")},
    )


def _write_page(path: Path, template: str, **values: Any) -> None:
    """Fill in a template and write it, whole or not at all.

    In HTML the names of classes, and all else that comes from a file, are escaped.
    """
    environment = Environment(
        loader=PackageLoader("lora_mnist.show", "templates"),
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["commas"] = "{:,}".format
    environment.globals["program"] = program
    text = environment.get_template(template).render(values)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _in_page(png: bytes) -> str:
    """The content of a PNG file as the address of an image."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
