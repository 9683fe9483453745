"""``report.html`` of a sweep: its best job, its picture, and its jobs in a table beside their base.

Made from what the jobs left; the jobs' own reports are made one by one, with ``report.py``. Imports
no torch.
"""

import base64
from pathlib import Path

from jinja2 import Environment, PackageLoader

from lora_mnist.disk.files import atomic_write
from lora_mnist.project import program
from lora_mnist.show.verdict import verdict_text
from lora_mnist.sweep.command import command_line, override
from lora_mnist.sweep.records import RESULTS_FILE, read_json
from lora_mnist.sweep.summary import Ranked

#: Rows of the table; summary.csv has them all.
_MOST_ROWS = 1000


def make_sweep_report(folder: Path) -> Path:
    """Write the report of the sweep in ``folder``; return its path.

    Raises:
        ValueError: if no job of a sweep is there.
        OSError: if a file cannot be read or written.
    """
    ranked = Ranked(folder)
    if not ranked.jobs:
        raise ValueError(f"{folder}: no job of a sweep")
    best, verdict = ranked.best, None
    headline = f"{len(ranked.jobs):,} jobs"
    if best:
        verdict = verdict_text(read_json(folder / best.jobs[0].folder / RESULTS_FILE))
        settings = [f" {key}={value}" for key, value in ranked.settings(best.jobs[0]).items()]
        headline = f"{ranked.verdict()}: {ranked.metric} {best.mean(ranked.metric):.4f}"
        headline += f" with{''.join(settings)}" if settings else ""
        if len(best.jobs) > 1:
            headline += f", the mean of {len(best.jobs)} seeds"
        start = ranked.start_value(best, ranked.metric)
        if start is not None:
            headline += f"; the {ranked.sweep['start']['title']} has {start:.4f}"
    titles, rows, start_row = ranked.table(_MOST_ROWS)
    picture = folder / "summary.png"
    environment = Environment(loader=PackageLoader("lora_mnist", "show/templates"), autoescape=True)
    page = environment.get_template("sweep.html.j2").render(
        folder=folder,
        headline=headline,
        labels=ranked.labels(),
        verdict=verdict,
        best=ranked.best_command() if best else None,
        rivals=ranked.rivals(),
        jobs=len(ranked.jobs),
        finished=len(ranked.jobs) - len(ranked.unfinished),
        metric=ranked.metric,
        picture=base64.b64encode(picture.read_bytes()).decode() if picture.exists() else None,
        titles=titles,
        rows=rows,
        start=start_row,
        commands=ranked.sweep["commands"],
        again=command_line([override("run", folder)], program("report")),
    )
    with atomic_write(folder / "report.html") as path:
        path.write_text(page, encoding="utf-8")
    return folder / "report.html"
