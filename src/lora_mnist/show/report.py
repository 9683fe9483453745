"""What loggers get of a run, and ``report.html``: one file that needs no script and no font."""

import re
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from PIL import Image

from lora_mnist.data.images import Images, viewable
from lora_mnist.errors import printable
from lora_mnist.files import atomic_write
from lora_mnist.measure.counts import confusion_of
from lora_mnist.measure.predictions import Predictions
from lora_mnist.show.belief import belief, choice_lines
from lora_mnist.show.figures import (
    draw_classes,
    draw_confusion,
    draw_dial,
    drawable,
    png_address,
    save_figure,
    shortened,
)
from lora_mnist.show.reading import Reading
from lora_mnist.show.screen import log
from lora_mnist.show.tags import logged_metrics
from lora_mnist.show.verdict import verdict

FIGURES = "figures"  # the folder in that of a run
#: With more classes the numbers in a matrix could not be read.
_MAX_IN_MATRIX = 12
_MAX_SHOWN = 16  # images of a kind
_MAX_SIDE = 64  # pixels
#: The page of Custom Scalars: titles of charts, and how the tags of their curves begin.
_CHARTS = {
    "loss": "(train|val)/loss$",
    "accuracy": "val(_base)?/accuracy$",
    "errors": "val(_base)?/errors$",
    "errors on what is to be repaired": "val(_base)?/errors_of_target$",
    "errors elsewhere": "val(_base)?/errors_elsewhere$",
    "false calls of it": "val(_base)?/false_calls_of_target$",
    "precision of it": "val(_base)?/precision_of_target$",
    "accuracy of each class": "val/accuracy_per_class/",
}
#: The columns of the page of HParams.
_HPARAMS = re.compile(
    "test/((balanced_)?accuracy|errors|errors_of_target|false_calls_of_target|repaired|broken)"
)


def log_results(loggers: Iterable[Any], reading: Reading, figures: Mapping[str, Figure]) -> None:
    """Give numbers, verdict and figures to the loggers of a run, and close them."""
    metrics = logged_metrics(reading.counts, reading.classes, reading.targets)
    text = " ".join(sentence.text for sentence in verdict(reading))
    for logger in loggers:
        logger.log_metrics(metrics, reading.steps)
        writer: Any = getattr(logger, "experiment", None)
        if hasattr(writer, "add_figure"):  # TensorBoard's
            writer.add_text("verdict", text)
            _log_pages(logger, reading, metrics, figures)
            continue
        logger.log_hyperparams({"verdict": text})
        logger.save()
        if hasattr(writer, "finish"):  # W&B's: in a sweep the next job has its own
            writer.finish()


def _log_pages(
    logger: Any, reading: Reading, metrics: Mapping[str, float], figures: Mapping[str, Figure]
) -> None:
    """Log a page of charts (Custom Scalars), texts, figures, and the run's row in HParams."""
    writer = logger.experiment
    curves = [*metrics, "train/loss"] if reading.steps else []
    charts = {}
    for title, pattern in _CHARTS.items():
        if any(re.match(pattern, tag) for tag in curves):
            charts[title] = ["Multiline", [pattern]]
    if charts:
        writer.add_custom_scalars({"training and validation": charts})
    writer.add_text("choices", "\n".join(f"- {line}" for line in choice_lines(reading)))
    for name, figure in figures.items():
        writer.add_figure(f"{FIGURES}/{name}", figure, close=False)
    shown = {tag: number for tag, number in metrics.items() if _HPARAMS.fullmatch(tag)}
    logger.log_hyperparams(logger.hparams, shown)
    writer.close()  # else its thread would stay, one more with each job of a sweep


def make_report(
    folder: Path, reading: Reading, table: Predictions, images: Images
) -> dict[str, Figure]:
    """Draw the figures of a run and write its ``report.html``; return the figures."""
    names = drawable(reading.classes)
    drawn = Reading({**reading.results, "classes": names})
    figures = {"classes": draw_classes(drawn)}
    if reading.dial:
        figures["dial"] = draw_dial(drawn)
    if len(names) <= _MAX_IN_MATRIX:
        matrices = []
        for prediction in table.prediction:
            matrices.append(confusion_of(table.label, prediction, table.num_classes).numpy())
        figures["confusion"] = draw_confusion(matrices, names)
    addresses = {}
    for name, figure in figures.items():
        addresses[name] = save_figure(figure, folder / FIGURES / f"{name}.png")
    # autoescape: names come from users and files.
    templates = PackageLoader("lora_mnist.show", "templates")
    environment = Environment(
        loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shortened"] = shortened
    text = environment.get_template("report.html.j2").render(
        folder=folder,
        reading=reading,
        verdict=verdict(reading),
        belief=belief(reading),
        choices=choice_lines(reading),
        figures=addresses,
        pictures=first_pictures(table, images, reading.classes),
    )
    page = folder / "report.html"
    with atomic_write(page) as temporary:
        temporary.write_text(printable(text), encoding="utf-8")
    log.info("report: %s", page)
    return figures


def first_pictures(
    table: Predictions, images: Images, classes: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """The surest of the ``broken``, ``wrong`` and ``repaired`` images; of a base, wrong ones."""
    sort_by = {"wrong": 0}
    if len(table.prediction) == 2:
        sort_by = {"broken": 0, "wrong": 1, "repaired": 1}
    outcomes = table.outcomes()
    probabilities = table.probability.double().round(decimals=6).numpy()
    pictures: dict[str, list[dict[str, Any]]] = {outcome: [] for outcome in sort_by}
    for outcome, place in sort_by.items():
        order = np.argsort(-probabilities[place], kind="stable")
        rows = order[outcomes[order] == outcome]
        for row in rows[:_MAX_SHOWN].tolist():
            predicted = [classes[number] for number in table.prediction[:, row].tolist()]
            pixels = viewable(images.take([row])[0][0]).movedim(0, -1).numpy()
            image = Image.fromarray(pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0])
            image.thumbnail((_MAX_SIDE, _MAX_SIDE))
            png = BytesIO()
            image.save(png, "PNG")
            picture = {
                "name": str(images.names[row]),
                "label": classes[int(table.label[row])],
                "predictions": list(zip(predicted, probabilities[:, row], strict=True)),
                "address": png_address(png.getvalue()),
            }
            pictures[outcome].append(picture)
    return pictures
