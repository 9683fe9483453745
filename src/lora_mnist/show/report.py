"""``report.html``, one file that needs no script and no font, and its figures."""

import logging
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from PIL import Image

from lora_mnist.data.images import Images, viewable
from lora_mnist.files import atomic_write
from lora_mnist.measure.counts import confusion_matrix
from lora_mnist.measure.predictions import Predictions
from lora_mnist.show.caveats import describe_test_images
from lora_mnist.show.figures import (
    draw_classes,
    draw_confusion,
    draw_scale_curve,
    encode_png,
    replace_undrawable_names,
    save_figure,
    shorten,
)
from lora_mnist.show.reasons import choice_lines
from lora_mnist.show.run_results import RunResults
from lora_mnist.show.verdict import describe_run

log = logging.getLogger(__name__)

#: With more classes the numbers in a matrix could not be read.
_MAX_IN_MATRIX = 12
_MAX_SHOWN = 16  # images of a kind
_MAX_SIDE = 64  # pixels


def make_report(
    folder: Path, results: RunResults, table: Predictions, images: Images
) -> dict[str, Figure]:
    """Draw the figures of a run and write its ``report.html``; return the figures."""
    names = replace_undrawable_names(results.classes)
    drawn = results.with_names(names)
    figures = {"classes": draw_classes(drawn)}
    if results.scale_curve and len(results.scale_curve["rows"]) > 1:  # an offset alone has no curve
        figures["scale_curve"] = draw_scale_curve(drawn)
    if len(names) <= _MAX_IN_MATRIX:
        matrices = []
        for prediction in table.prediction:
            matrices.append(confusion_matrix(table.label, prediction, table.num_classes).numpy())
        figures["confusion"] = draw_confusion(matrices, names)
    addresses = {}
    for name, figure in figures.items():
        addresses[name] = save_figure(figure, folder / "figures" / f"{name}.png")
    # autoescape: names come from users and files.
    templates = PackageLoader("lora_mnist.show", "templates")
    environment = Environment(
        loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shorten"] = shorten
    text = environment.get_template("report.html.j2").render(
        folder=folder,
        results=results,
        verdict=describe_run(results),
        choices=choice_lines(results),
        test_images=describe_test_images(results),
        figures=addresses,
        pictures=select_pictures(table, images, results.classes),
    )
    page = folder / "report.html"
    with atomic_write(page) as temporary:
        # A picture's file may be named in Latin-1.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    log.info("report: %s", page)
    return figures


def select_pictures(
    table: Predictions, images: Images, classes: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Return the surest ``broken``, ``wrong`` and ``repaired`` images; a base's are wrong."""
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
                "address": encode_png(png.getvalue()),
            }
            pictures[outcome].append(picture)
    return pictures
