"""``report.html``: what a repair did, or a sweep, made from its folder alone.

A page is one file that needs nothing else, no script and no font.
"""

import base64
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from lora_mnist.classifier.significance import chance_text
from lora_mnist.disk.files import atomic_write
from lora_mnist.disk.predictions import read_predictions
from lora_mnist.project import program
from lora_mnist.show.figures import draw_run
from lora_mnist.show.verdict import (
    class_rows,
    confusions,
    started_from,
    verdict,
    verdict_text,
)
from lora_mnist.sweep.records import RESULTS_FILE, read_json
from lora_mnist.sweep.summary import Ranked

#: Rows of a table; results.json and summary.csv have them all.
_MOST_ROWS = 1000


def make_report(folder: Path) -> dict[str, Path]:
    """Draw the figures of a run and write its ``report.html``; return the figures' files.

    Predictions, adapter and configuration are shown where they are there.
    """
    results = json.loads((folder / "results.json").read_text())
    drawn = draw_run(folder, results, read_predictions(folder))
    hydra = folder / ".hydra"
    has_config = (hydra / "config.yaml").is_file()  # not of a run from Python
    write_page(
        folder / "report.html",
        "report.html.j2",
        folder=folder,
        program=program,
        results=results,
        verdict=verdict(results),
        before=started_from(results),
        rows=class_rows(results, _MOST_ROWS),
        confusions=confusions(results),
        chance_text=chance_text,
        figures={name: _in_page(path) for name, path in drawn.items()},
        overrides=(hydra / "overrides.yaml").read_text() if has_config else "",
        config=(hydra / "config.yaml").read_text() if has_config else "",
    )
    return drawn


def make_sweep_report(folder: Path) -> None:
    """Write the ``report.html`` of the sweep in ``folder``."""
    ranked, best = Ranked(folder), ""
    if ranked.best:
        best = verdict_text(read_json(folder / ranked.best.jobs[0].folder / RESULTS_FILE))
    titles, rows, base = ranked.table(_MOST_ROWS)
    picture = folder / "summary.png"
    write_page(
        folder / "report.html",
        "sweep.html.j2",
        ranked=ranked,
        best=best,
        picture=_in_page(picture) if picture.exists() else None,
        titles=titles,
        rows=rows,
        base=base,
        program=program,
    )


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill in a template and write it, whole or not at all.

    In HTML names of classes, and whatever else a file says, are no markup.
    """
    environment = Environment(
        loader=PackageLoader("lora_mnist.show", "templates"),
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["commas"] = "{:,}".format
    text = environment.get_template(template).render(values)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _in_page(picture: Path) -> str:
    """A PNG file as the address of an image."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
