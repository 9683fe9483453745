"""Writes the results of a run: results.json, predictions.csv and the report.

:func:`collect_results` makes the keys of results.json that all runs have,
:meth:`.run_training.TrainingResult.about` a repair's, and each command its own.
"""

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from lora_mnist.choice import Choice
from lora_mnist.files import write_json
from lora_mnist.lora.base_state import count_parameters
from lora_mnist.measure.counts import count_by_split
from lora_mnist.measure.predictions import Predictions
from lora_mnist.run_paths import ENDED, RESULTS_FILE
from lora_mnist.show.loggers import log_results
from lora_mnist.show.predictions_file import write_test_predictions
from lora_mnist.show.report import make_report
from lora_mnist.show.run_results import RunResults
from lora_mnist.show.screen import print_results
from lora_mnist.training.session import Session

log = logging.getLogger(__name__)

#: The version of the names in results.json.
VERSION = 2


def finish(
    session: Session,
    tables: Mapping[str, Predictions],
    choices: Mapping[str, Choice],
    about: Mapping[str, Any],  # the stage's own entries of results.json, such as steps
) -> dict[str, Any]:
    """Write results.json, predictions.csv and the report; print the verdict, and log it."""
    cfg, run = session.cfg, session.run
    results = {**collect_results(session, tables, choices), **about}
    results["seconds"] = round(time.perf_counter() - session.started, 3)
    results[ENDED] = datetime.now(UTC).isoformat(timespec="microseconds")
    table, run_results = tables["test"], RunResults(results)
    write_json(run.folder / RESULTS_FILE, results)
    write_test_predictions(table, session.images.test.names, run.folder, run_results.classes)
    print_results(run_results, run.folder)
    figures: dict[str, Any] = {}
    if cfg.figures or (cfg.figures is None and not run.is_sweep):
        figures = make_report(run.folder, run_results, table, session.images.test)
    log_results(session.trainer.loggers, run_results, figures)
    log.info("run: %s", run.folder)
    return results


def collect_results(
    session: Session, tables: Mapping[str, Predictions], choices: Mapping[str, Choice]
) -> dict[str, Any]:
    """Return the content of results.json: the machine, and the counts of the predictions."""
    cfg, classifier, images = session.cfg, session.classifier, session.images
    base, dataset = classifier.base, classifier.dataset
    preprocessing = dataset.preprocessing()
    names = choices["target"].value if "target" in choices else classifier.record.targets
    targets = [number for number, name in enumerate(dataset.classes) if name in names]
    unknown = [owner for owner, digests in classifier.train_digests.items() if digests is None]
    own = images.train.labels[: session.mistakes_start]
    counts = own.bincount(minlength=len(dataset.classes))
    return {
        "version": VERSION,
        "stage": cfg.stage,
        "dataset": dataset.name,
        "overrides": session.run.overrides,
        "seed": cfg.get("seed"),
        "choose_by": classifier.record.choose_by if cfg.stage == "eval" else cfg.choose_by,
        "targets": targets,
        "choices": {name: choice.record for name, choice in choices.items()},
        "classes": dataset.classes,
        "data_sha256": dict(images.sha256),
        "training_images_per_class": counts.tolist(),
        "validation_images": len(images.val),
        "mean": preprocessing.get("mean"),
        "std": preprocessing.get("std"),
        "val_from": dataset.val_from,
        "held_out": dict(images.held_out),
        "duplicates": images.duplicates,
        "excluded": dict(images.excluded),
        # Somebody else's network, or adapter, may have been trained on these images.
        "unknown_train_digests": unknown,
        "parameters": count_parameters(classifier.net),
        "test_prior": classifier.test_prior,
        **count_by_split(tables, targets, classifier.test_prior),
        "base_sha256": base and base.sha256,
        "adapter": classifier.adapter and str(classifier.adapter),
        "point": choices["point"].value if "point" in choices else None,
    }
