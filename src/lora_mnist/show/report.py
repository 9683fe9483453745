"""Pages made from templates: ``report.html`` of a run or a sweep, and the card of an adapter.

A report is one file that needs nothing else, no script and no font.
"""

import base64
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

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
_MAX_JOBS = 1000


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


class Front(NamedTuple):
    """Repairs of the same classes in a sweep, each at several scales of its adapter."""

    picture: str  # a PNG file's name
    sentence: str = ""  # which repair to take, and why
    command: str = ""  # that tests it


def make_sweep_report(folder: Path) -> list[str]:
    """Write ``summary.png`` and ``report.html`` of a sweep; return the lines of its fronts."""
    ranked, best = Ranked(folder), ""
    if ranked.best and ranked.jobs[0].swept:
        metric = str(ranked.metric)
        if ranked.has_seeds and ranked.keys:
            metric = f"mean {metric} over seeds"
        save_figure(draw_sweep(ranked.points(), metric), folder / "summary.png")
    if ranked.best and not ranked.has_front:
        best = verdict_text(read_json(folder / ranked.best.jobs[0].folder / RESULTS_FILE))
    titles, rows, base = ranked.table(_MAX_JOBS)
    fronts = _draw_fronts(ranked)
    pictures = [front.picture for front in fronts]
    _write_page(
        folder / "report.html",
        "sweep.html.j2",
        ranked=ranked,
        best=best,
        fronts=fronts,
        figures={
            name: _in_page(folder / name)
            for name in [*pictures, "summary.png"]
            if (folder / name).exists()
        },
        titles=titles,
        rows=rows,
        base=base,
    )
    return [line for front in fronts for line in (front.sentence, front.command) if line]


def _draw_fronts(ranked: Ranked) -> list[Front]:
    """Draw the dials of all jobs that repair the same classes into one picture, if there are any.

    ``front.png``, or a picture for each choice of classes. Advised is the job whose validation
    errors are fewest at the scale that its dial advises, but none where seeds differ, so that no
    lucky one wins.
    """
    by_targets: dict[tuple[int, ...], list[tuple[str, Path, Any]]] = {}
    for job in ranked.jobs:
        folder = ranked.folder / job.folder
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
        if not ranked.has_seeds:
            text = f"no repair of {name} saves errors in all on validation images."
            front = Front(picture, text)
            if points:
                advised, folder, results = jobs[min(points)[-1]]
                dial = results["dial"]
                text = f"advised: {advised} at scale {dial['advised']:g}, with the fewest errors "
                text += f"on {dial['images']:,} validation images: {dial_text(results)}:"
                front = Front(picture, text, scaled_command(results, folder))
        save_figure(draw_dial(dials, advised, first), ranked.folder / picture)
        fronts.append(front)
    return fronts


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
        command="" if run.typed is None else command_line(typed),
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
