"""``report.html`` of a sweep, and its pictures."""

from pathlib import Path
from typing import Any, NamedTuple

from lora_mnist.disk.files import read_json
from lora_mnist.disk.run_paths import RESULTS_FILE
from lora_mnist.show.changes import named
from lora_mnist.show.figures import draw_dial, draw_sweep, save_figure
from lora_mnist.show.next_steps import dial_text, scaled_command
from lora_mnist.show.report import write_page
from lora_mnist.sweep.summary import Summary, findings, points, table

#: Rows of the table of jobs; summary.csv has all.
_MAX_JOBS = 1000


class Front(NamedTuple):
    """Repairs of the same classes in a sweep, each at several scales of its adapter."""

    address: str  # of the picture, in a page
    sentence: str = ""  # which repair to take, and why
    command: str = ""  # that tests it


def make_sweep_report(summary: Summary, command: str) -> list[str]:
    """Write ``summary.png`` and ``report.html`` of a sweep; return the lines of its fronts.

    ``command`` is the one that goes on with the sweep.
    """
    picture = ""
    if summary.best and summary.keys:
        metric = f"mean {summary.metric} over seeds" if summary.has_seeds else str(summary.metric)
        figure = draw_sweep(points(summary), metric)
        picture = save_figure(figure, summary.folder / "summary.png")
    titles, rows, base = table(summary, _MAX_JOBS)
    fronts = _draw_fronts(summary)
    write_page(
        summary.folder / "report.html",
        "sweep.html.j2",
        summary=summary,
        findings=findings(summary),
        command=command,
        fronts=fronts,
        picture=picture,
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
        if "dial.errors_of_target.0" in job.results:
            folder = summary.folder / job.folder
            results = read_json(folder / RESULTS_FILE)
            settings = [f"{k}={v}" for k, v in job.swept.items() if k not in ("digit", "target")]
            label = ", ".join(settings) or job.folder
            by_targets.setdefault(tuple(results["targets"]), {})[label] = folder, results
    fronts = []
    for targets, jobs in by_targets.items():
        dials, errors = {}, {}
        for label, (_, results) in jobs.items():
            dial = dials[label] = results["dial"]
            base, at = dial["scales"].index(0), dial["scales"].index(dial["advised"])
            of_target = dial["errors_of_target"]
            if of_target[at] < of_target[base] and not summary.has_seeds:
                errors[label] = dial["errors"][at], of_target[at]
        advised, sentence, command = None, "", ""
        if errors:
            advised = min(errors, key=lambda label: errors[label])
            folder, results = jobs[advised]
            dial = results["dial"]
            sentence = f"advised: {advised} at scale {dial['advised']:g}, with the fewest errors "
            sentence += f"on {dial['images']:,} validation images: {dial_text(results)}:"
            command = scaled_command(results, folder)
        elif not summary.has_seeds:
            name = named(results["classes"], targets)
            sentence = f"no repair of {name} saves errors in all on validation images."
        numbers = f"_{'_'.join(map(str, targets))}" if len(by_targets) > 1 else ""
        path = summary.folder / f"front{numbers}.png"
        address = save_figure(draw_dial(dials, advised, results), path)
        fronts.append(Front(address, sentence, command))
    return fronts
