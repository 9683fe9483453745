"""Pages made from templates: ``report.html`` of a run or a sweep, and the card of an adapter.

A report is one file that needs nothing else, no script and no font.
"""

import base64
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from lora_mnist.classifier.significance import chance_text
from lora_mnist.disk.files import atomic_write, read_json
from lora_mnist.disk.predictions import Predictions, kinds_of, read_predictions
from lora_mnist.disk.run_paths import ADAPTER_FOLDER, RESULTS_FILE
from lora_mnist.project import Run, command_line, program
from lora_mnist.show.advice import advice, dial_text, scaled_command
from lora_mnist.show.changes import class_rows, named, outcome_before, repaired_classes
from lora_mnist.show.figures import draw_dial, draw_run, draw_sweep, save_figure, sides_of
from lora_mnist.show.verdict import verdict, verdict_text
from lora_mnist.sweep.summary import Ranked

#: Rows of the table of jobs; summary.csv has all.
_MOST_JOBS = 1000


def make_report(folder: Path) -> dict[str, Path]:
    """Draw the figures of a run and write its ``report.html``; return the figures' files.

    Predictions and configuration are shown where the folder has them.
    """
    results = read_json(folder / RESULTS_FILE)
    predictions = read_predictions(folder, results["classes"])
    figures = draw_run(folder, results, predictions)
    hydra = folder / ".hydra"
    has_config = (hydra / "config.yaml").is_file()  # a run from Python has none
    _write_page(
        folder / "report.html",
        "report.html.j2",
        folder=folder,
        results=results,
        verdict=verdict(results),
        advice=advice(results, folder),
        before=outcome_before(results),
        rows=class_rows(results),
        chance_text=chance_text,
        figures={name: _in_page(path) for name, path in figures.items()},
        pictures=_list_pictures(predictions, results["classes"]) if predictions else {},
        overrides=(hydra / "overrides.yaml").read_text() if has_config else "",
        config=(hydra / "config.yaml").read_text() if has_config else "",
    )
    return figures


def _list_pictures(predictions: Predictions, classes: Sequence[str]) -> dict[str, list[str]]:
    """A line for each picture in the galleries, by kind: its name, two classes, how surely."""
    lines: dict[str, list[str]] = {}
    for kind, places in kinds_of(predictions).items():
        first, second = sides_of(kind, predictions)
        lines[kind] = []
        for place in places[: len(predictions[f"{kind}.images"])]:
            pair = (classes[predictions[side][place]] for side in (first, second))
            probability = predictions[f"{second}_probability"][place]
            text = f"{predictions['name'][place]}: {' → '.join(pair)} ({probability:.3f})"
            lines[kind].append(text)
    return lines


def make_sweep_report(folder: Path) -> list[str]:
    """Write ``summary.png`` and ``report.html`` of a sweep; return the lines of the front."""
    ranked, best = Ranked(folder), ""
    if ranked.best and ranked.jobs[0].swept:
        metric = str(ranked.metric)
        if ranked.has_seeds and ranked.keys:
            metric = f"mean {metric} over seeds"
        save_figure(draw_sweep(ranked.points(), metric), folder / "summary.png")
    if ranked.best:
        best = verdict_text(read_json(folder / ranked.best.jobs[0].folder / RESULTS_FILE))
    titles, rows, base = ranked.table(_MOST_JOBS)
    front = _draw_front(ranked)
    figures = {}
    for name in ("front", "summary"):
        if (folder / f"{name}.png").exists():
            figures[name] = _in_page(folder / f"{name}.png")
    _write_page(
        folder / "report.html",
        "sweep.html.j2",
        ranked=ranked,
        best=best,
        front=front,
        figures=figures,
        titles=titles,
        rows=rows,
        base=base,
    )
    return front


def _draw_front(ranked: Ranked) -> list[str]:
    """Draw the dials of all jobs that repair a class into ``front.png``, if there are any.

    The lines to print say where the validation errors are fewest, and which command tests that.
    """
    dials, points = {}, []
    for job in ranked.jobs:
        folder = ranked.folder / job.folder
        results = read_json(folder / RESULTS_FILE)
        dial = results.get("dial") or {}
        if job.status != "finished" or "errors_of_target" not in dial:
            continue
        label = ", ".join(f"{key}={value}" for key, value in job.swept.items()) or job.folder
        dials[label] = dial
        place = dial["scales"].index(dial["advised"])
        errors = dial["errors"][place], dial["errors_of_target"][place]
        points.append((errors, label, folder, results))
    if not points:
        return []
    _, label, folder, results = min(points, key=lambda point: point[0])
    dial = dials[label]
    save_figure(draw_dial(dials, label, results), ranked.folder / "front.png")
    text = f"advised: {label} at scale {dial['advised']:g}, {dial_text(results)}"
    text += f" errors on {dial['images']:,} validation images:"
    return [text, scaled_command(results, folder)]


def write_card(run: Run, results: Mapping[str, Any]) -> None:
    """Write ``README.md``, the card of a run's adapter, as the Hugging Face Hub shows it."""
    typed = run.typed_without("base_ckpt=", "paths.", "resume=", "sweep.", "hydra.")
    repaired = repaired_classes(results)
    _write_page(
        run.folder / ADAPTER_FOLDER / "README.md",
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


def _in_page(picture: Path) -> str:
    """A PNG file as the address of an image."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
