"""``report.html`` of a run: what the repair did, made from the run's folder alone.

:func:`show_run` is the end of every run; :func:`make_report` draws the same again at any time.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import Trainer

from lora_mnist.disk.files import atomic_write
from lora_mnist.disk.predictions import ANSWERS_FILE, Answers, read_answers
from lora_mnist.show import document
from lora_mnist.show.canvas import INK
from lora_mnist.show.figures import FIGURES, draw_run
from lora_mnist.show.pictures import caption, shade
from lora_mnist.show.tensorboard import show_outcome
from lora_mnist.show.verdict import targets_of, verdict
from lora_mnist.sweep.records import read_results

#: Not of this package, whose messages are results: what is said here is news on the way.
log = logging.getLogger("lora_mnist.report")

REPORT_FILE = "report.html"

#: What each figure shows, for who cannot see it, in the order of the page.
_LABELS = {
    "errors": "Errors of each class on the test images, base and adapted",
    "confusion_difference": "How many more or fewer images of each class got each answer",
    "confusion_base": "How many images of each class got each answer from the base",
    "layer": "Rows of what the adapter adds to the layer that sees the pixels, as images",
    "singular_values": "Singular values of what the adapter adds to each layer",
}
_KINDS = {
    "repaired": "Repaired: wrong with the base, right with the adapter",
    "broken": "Broken: right with the base, wrong with the adapter",
    "wrong": "Wrong",
}


def show_run(
    trainer: Trainer, results: Mapping[str, Any], folder: Path, figures: bool | str = "auto"
) -> None:
    """Draw a run that is over, and tell TensorBoard. What fails here fails no run.

    Args:
        trainer: whose loggers are told.
        results: what results.json holds.
        folder: the run's folder.
        figures: ``true``, ``false``, or ``auto``: for a single run, but not for a sweep's jobs.
    """
    sweeping = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        if figures is True or (figures == "auto" and not sweeping):
            log.info("report: %s", make_report(folder))
        show_outcome(trainer, results, folder)
    except Exception as error:  # a drawing is no reason to lose a run
        again = f"python report.py run={folder}"
        log.warning("the report was not drawn (%s); try again with: %s", error, again)


def make_report(folder: Path) -> Path:
    """Draw the figures of a run and write its report; return the report's path.

    Args:
        folder: a run's folder, with results.json.

    Raises:
        ValueError: if there is no results.json, or it is damaged.
        OSError: if a file cannot be written.
    """
    results = read_results(folder)
    if results is None or "test" not in results:
        raise ValueError(f"{folder}: no results.json of a run")
    _require_counts(results)
    answers = read_answers(folder)
    if answers is None:
        log.warning("%s: no %s, so no pictures of single images", folder, ANSWERS_FILE)
    drawn = draw_run(folder, results)
    parts = list(_parts(folder, results, drawn, answers))
    title = " ".join(phrase.text for phrase in verdict(results))
    with atomic_write(folder / REPORT_FILE) as path:
        path.write_text(document.document(title, parts), encoding="utf-8")
    return folder / REPORT_FILE


def _require_counts(results: Mapping[str, Any]) -> None:
    for split in ("test", "test_base"):
        for key, counts in (results.get(split) or {}).items():
            if key.endswith("_per_class") and any(type(n) is not int or n < 0 for n in counts):
                raise ValueError(f"results.json: damaged: {split}.{key}={counts}")


def _parts(
    folder: Path, results: Mapping[str, Any], drawn: Sequence[str], answers: Answers | None
) -> Iterator[document.Html]:
    classes = [str(name) for name in results["classes"]]
    said = (f'<span class="{p.mood}">{document.code_in(p.text)}</span>' for p in verdict(results))
    yield f"<h1>{' '.join(said)}</h1>"
    yield _kind_of_run(results)
    yield document.facts(_facts(results))
    figures = {
        name: document.drawing(folder / FIGURES / f"{name}.svg", label, INK)
        for name, label in _LABELS.items()
        if name in drawn
    }
    yield "<h2>Each class</h2>"
    yield f'<div class="pair">{_class_table(results, classes)}{figures.pop("errors", "")}</div>'
    if answers is not None:
        yield from _galleries(answers, classes)
    confusion = figures.pop("confusion_base", "")
    confusion = figures.pop("confusion_difference", "") or confusion
    inside = f"<div>{figures.get('layer', '')}{_no_pixels(results, figures, answers)}</div>"
    yield "<h2>Which answers</h2>" + confusion if confusion else ""
    if "singular_values" in figures:
        yield "<h2>Inside the adapter</h2>"
        yield f'<div class="pair">{inside}{figures["singular_values"]}</div>'
    yield from _configuration(folder)
    yield f"<footer>Drawn from {document.text(folder)}; again with "
    yield f"<code>python report.py run={document.text(folder)}</code></footer>"


def _galleries(answers: Answers, classes: Sequence[str]) -> Iterator[document.Html]:
    for kind, gallery in answers.galleries.items():
        if len(gallery.images):
            more = f"{len(gallery.images)} of {gallery.total:,}"
            yield f'<h2>{_KINDS[kind]} <span class="faint">({more})</span></h2>'
            told = "what it is: the answer" if kind == "wrong" else "base → adapted"
            yield f'<p class="faint">{told}; the surest first, the classes in turn</p>'
            yield document.gallery(
                (shade(image), caption(gallery, answers, place, classes))
                for place, image in enumerate(gallery.images)
            )


def _kind_of_run(results: Mapping[str, Any]) -> document.Html:
    base = str(results.get("base_sha256"))[:12]
    said = f"stage={results['stage']} on {results['dataset']}, base {base}"
    if results.get("base_unchanged"):
        said += ", which did not move by one bit"
    return f'<p class="faint">{document.text(said)}.</p>'


def _facts(results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    test, base = results["test"], results.get("test_base")
    if base:
        yield "accuracy", f"{base['accuracy']:.4f} → {test['accuracy']:.4f}"
        yield "errors", f"{base['errors']:,} → {test['errors']:,}"
        yield "repaired", f"{test['repaired']:,}"
        yield "broken", f"{test['broken']:,}"
    else:
        yield "accuracy", f"{test['accuracy']:.4f}"
        yield "errors", f"{test['errors']:,}"
    count = results["parameters"]
    if results["stage"] == "lora":
        yield "parameters of LoRA", f"{count['lora']:,} (+{count['increase_percent']:.3g}%)"
    if results["steps"]:
        yield "steps", f"{results['steps']:,}"
    yield "seconds", f"{results['seconds']['total']:.1f}"
    if results.get("seed") is not None:
        yield "seed", results["seed"]


def _class_table(results: Mapping[str, Any], classes: Sequence[str]) -> document.Html:
    test, base = results["test"], results.get("test_base")
    errors, images = test["errors_per_class"], test["images_per_class"]
    if base is None:
        rows = [list(row) for row in zip(classes, errors, images, strict=True)]
        return document.table(
            ["class", "errors", "images"], rows, foot=["all", sum(errors), sum(images)]
        )
    before = base["errors_per_class"]
    columns = (test["repaired_per_class"], test["broken_per_class"], before, errors)
    rows = [
        [name, *counts, _signed(counts[3] - counts[2])]
        for name, *counts in zip(classes, *columns, strict=True)
    ]
    totals = [sum(column) for column in columns]
    return document.table(
        ["class", "repaired", "broken", "base errors", "errors", "change"],
        rows,
        marked=targets_of(results),
        foot=["all", *totals, _signed(totals[3] - totals[2])],
    )


def _signed(change: int) -> tuple[str, str]:
    return f"{change:+,}", "good" if change < 0 else "bad" if change else ""


def _no_pixels(
    results: Mapping[str, Any], figures: Mapping[str, str], answers: Answers | None
) -> document.Html:
    """Why there is no picture of the first layer, where there is none."""
    if results["stage"] != "lora" or "layer" in figures or answers is None:
        return ""
    return '<p class="faint">No adapted layer sees the pixels one by one: nothing to draw.</p>'


def _configuration(folder: Path) -> Iterator[document.Html]:
    """The command's overrides, and the whole configuration, folded away."""
    hydra = folder / ".hydra"
    try:
        overrides = yaml.safe_load((hydra / "overrides.yaml").read_text())
        config = (hydra / "config.yaml").read_text()
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return
    yield "<h2>Configuration</h2>"
    if isinstance(overrides, list) and overrides:
        yield f"<pre>{document.text(' '.join(map(str, overrides)))}</pre>"
    yield f"<details><summary>every key</summary><pre>{document.text(config)}</pre></details>"
