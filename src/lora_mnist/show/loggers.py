"""Sends a run's numbers, verdict and figures to its loggers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from lora_mnist.measure.class_weights import MEASURES
from lora_mnist.measure.counts import CURVE_COUNTS
from lora_mnist.show.reasons import choice_lines
from lora_mnist.show.run_results import RunResults
from lora_mnist.show.verdict import describe_run

#: The counts that loggers get.
LOGGED = (*MEASURES, "loss", "repaired", "broken", *CURVE_COUNTS, "precision_of_target")
#: With more classes only the target classes have curves of their own.
_MAX_CURVES = 16
#: The page of Custom Scalars: titles of charts, and patterns of the tags of their curves.
_CHARTS = {
    "loss": "(train|val)/loss$",
    "accuracy": "val(_base)?/accuracy$",
    "errors": "val(_base)?/errors$",
    "errors on the target": "val(_base)?/errors_of_target$",
    "errors elsewhere": "val(_base)?/errors_elsewhere$",
    "false positives of the target": "val(_base)?/false_positives_of_target$",
    "precision of the target": "val(_base)?/precision_of_target$",
    "accuracy of each class": "val/accuracy_per_class/",
}
#: The columns of the page of HParams.
_HPARAMS = re.compile(
    "test/((balanced_)?accuracy|errors|errors_of_target|false_positives_of_target|repaired|broken)"
)


def logged_metrics(
    outcomes: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    targets: Sequence[int],
) -> dict[str, float]:
    """Return the numbers of ``outcomes`` by a logger's tag, with each class's accuracy by name."""
    classes: Sequence[int] = range(len(names))
    if len(names) > _MAX_CURVES:
        classes = targets[:_MAX_CURVES]
    tags: dict[str, float] = {}
    for split, outcome in outcomes.items():
        numbers = {key: outcome.get(key) for key in LOGGED}
        errors, images = outcome["errors_per_class"], outcome["images_per_class"]
        if split in ("val", "test", "test_base"):
            for c in classes:
                name = names[c].replace("/", "-")  # else it would begin a level of tags
                if images[c]:
                    numbers[f"accuracy_per_class/{name}"] = 1 - errors[c] / images[c]
        for key, number in numbers.items():
            if number is not None:
                tags[f"{split}/{key}"] = float(number)
    return tags


def log_results(loggers: Iterable[Any], results: RunResults, figures: Mapping[str, Figure]) -> None:
    """Give numbers, verdict and figures to the loggers of a run, and close them."""
    metrics = logged_metrics(results.counts, results.classes, results.targets)
    text = " ".join(sentence.text for sentence in describe_run(results))
    for logger in loggers:
        logger.log_metrics(metrics, results.steps)
        writer: Any = getattr(logger, "experiment", None)
        if hasattr(writer, "add_figure"):  # TensorBoard's
            writer.add_text("verdict", text)
            _log_pages(logger, results, metrics, figures)
            continue
        logger.log_hyperparams({"verdict": text})
        logger.finalize("success")  # as a Trainer does; with several trainings no Trainer closes it
        if hasattr(writer, "finish"):  # W&B's: in a sweep the next job has its own
            writer.finish()


def _log_pages(
    logger: Any, results: RunResults, metrics: Mapping[str, float], figures: Mapping[str, Figure]
) -> None:
    """Log a page of charts (Custom Scalars), texts, figures, and the run's row in HParams."""
    writer = logger.experiment
    curves = [*metrics, "train/loss"] if results.steps else []
    charts = {}
    for title, pattern in _CHARTS.items():
        if any(re.match(pattern, tag) for tag in curves):
            charts[title] = ["Multiline", [pattern]]
    if charts:
        writer.add_custom_scalars({"training and validation": charts})
    writer.add_text("choices", "\n".join(f"- {line}" for line in choice_lines(results)))
    for name, figure in figures.items():
        writer.add_figure(f"figures/{name}", figure, close=False)
    shown = {tag: number for tag, number in metrics.items() if _HPARAMS.fullmatch(tag)}
    logger.log_hyperparams(logger.hparams, shown)
    writer.close()  # else its thread would stay, one more with each job of a sweep
