"""``report.html`` of a run: what the repair did, made from the run's folder alone."""

import base64
import json
from pathlib import Path

from jinja2 import Environment, PackageLoader

from lora_mnist.classifier.significance import LEVEL, chance_text, mcnemar, wilson
from lora_mnist.disk.files import atomic_write
from lora_mnist.disk.predictions import read_predictions
from lora_mnist.project import program
from lora_mnist.show.figures import draw_run
from lora_mnist.show.verdict import (
    confusions,
    mistakes_of,
    started_from,
    targets_of,
    verdict,
)

REPORT_FILE = "report.html"


def make_report(folder: Path) -> Path:
    """Draw the figures of a run and write its report; return the report's path.

    The page is one file that needs nothing else, no script and no font.

    Predictions, adapter and configuration are shown where they are there.

    Raises:
        ValueError: if a file is damaged.
        OSError: if there is no results.json, or a file cannot be read or written.
    """
    results = json.loads((folder / "results.json").read_text())
    predictions = read_predictions(folder)
    figures = {}
    for name, path in draw_run(folder, results, predictions).items():
        figures[name] = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    hydra = folder / ".hydra"
    has_config = (hydra / "config.yaml").is_file()  # not of a run from Python
    environment = Environment(
        loader=PackageLoader("lora_mnist.show", "templates"),
        autoescape=True,  # names of classes are no markup
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(
        folder=folder,
        program=program,
        results=results,
        verdict=verdict(results),
        before=started_from(results) if "test_base" in results else None,
        confusions=confusions(results),
        targets=targets_of(results),
        mcnemar=mcnemar,
        chance_text=chance_text,
        level=LEVEL,
        wilson=wilson,
        mistakes=mistakes_of(results),
        has_predictions=predictions is not None,
        figures=figures,
        overrides=(hydra / "overrides.yaml").read_text() if has_config else "",
        config=(hydra / "config.yaml").read_text() if has_config else "",
    )
    with atomic_write(folder / REPORT_FILE) as path:
        path.write_text(html, encoding="utf-8")
    return folder / REPORT_FILE
