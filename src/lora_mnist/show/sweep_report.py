"""``report.html`` of a sweep, and its pictures."""

from pathlib import Path
from typing import Any, NamedTuple

from lora_mnist.disk.files import read_json
from lora_mnist.disk.run_paths import RESULTS_FILE
from lora_mnist.show.changes import named
from lora_mnist.show.figures import draw_dial, draw_sweep, png_address, save_figure
from lora_mnist.show.next_steps import dial_text, scaled_command
from lora_mnist.show.report import write_page
from lora_mnist.show.verdict import verdict_text
from lora_mnist.sweep.summary import Summary, findings, points, table

#: Rows of the table of jobs; summary.csv has all.
_MAX_JOBS = 1000


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
            figures[name] = png_address((folder / name).read_bytes())
    write_page(
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
