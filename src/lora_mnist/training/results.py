"""How a run ends: it is judged, and :func:`finish` writes its files."""

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from torch import Tensor

from lora_mnist.choice import Choice
from lora_mnist.classifier.base import (
    base_name,
    find_base,
    set_current_base,
    versioned_base_path,
    write_base,
)
from lora_mnist.classifier.learnt import write_learnt
from lora_mnist.classifier.record import NO_RECORD, Record
from lora_mnist.config.command import Run
from lora_mnist.errors import TrainingError
from lora_mnist.files import write_json
from lora_mnist.lora.adapter import save_adapter
from lora_mnist.lora.base_state import count_parameters, fingerprint
from lora_mnist.measure.predictions import Predictions, outcomes_by_part
from lora_mnist.project import DATA
from lora_mnist.run_paths import ADAPTER_FOLDER, RESULTS_FILE
from lora_mnist.show.predictions_file import write_table
from lora_mnist.show.reading import Reading
from lora_mnist.show.report import log_results, make_report
from lora_mnist.show.screen import print_results
from lora_mnist.training.session import Session

log = logging.getLogger(__name__)

#: Keys that the record of a base or an adapter leaves out, with those below them.
_CHANGE_NO_NUMBER = (
    *("callbacks.checkpoint", "figures", "hydra", "launcher"),
    *("logger", "paths", "run_name", "sweep"),
)


def finish(
    session: Session,
    tables: Mapping[str, Predictions],
    choices: Mapping[str, Choice],
    about: Mapping[str, Any],  # what only the stage knows of results.json, steps among it
    learnt: Tensor | None = None,  # the digests of the images, after a training
) -> dict[str, Any]:
    """Judge a run and write all its files; at the end, refuse what is of no use."""
    cfg, run = session.cfg, session.run
    results = {**results_of(session, tables, choices), **about}
    base = _new_base(session, results) if cfg.stage == "pretrain" else None
    if base is not None and base.replaces is None:  # the user has to name it to other commands
        results["weights"] = os.path.relpath(base.path, run.folder)
    saves_adapter = cfg.stage == "lora" and not session.is_fast_dev_run
    if saves_adapter:
        assert learnt is not None
        _save_adapter(session, choices, learnt)
    results["seconds"] = round(time.perf_counter() - session.started, 3)
    table, reading = tables["test"], Reading(results)
    write_json(run.folder / RESULTS_FILE, results)
    write_table(table, session.images.test.names, run.folder, reading.classes)
    print_results(reading, run.folder)
    figures: dict[str, Any] = {}
    if cfg.figures or (cfg.figures is None and not run.is_sweep):
        figures = make_report(run.folder, reading, table, session.images.test)
    log_results(session.trainer.loggers, reading, figures)
    log.info("run: %s", run.folder)
    if base is not None:  # last: a run that fails on the way leaves the current base alone
        write_base(session.net.state_dict(), base.path, _record_of(session), learnt)
        if base.replaces is not None:
            set_current_base(base.path, base.replaces)
        else:
            log.info("base: %s; the current one stays", base.path)
        if base.why_useless is not None:
            raise TrainingError(base.why_useless)
    elif saves_adapter:  # last: where the disk is full, all that is smaller is there
        _keep_base(session)
    return results


def results_of(
    session: Session, tables: Mapping[str, Predictions], choices: Mapping[str, Choice]
) -> dict[str, Any]:
    """What results.json says of a run: on what it ran, and the counts of its predictions."""
    cfg, classifier, images = session.cfg, session.classifier, session.images
    base, dataset = classifier.base, classifier.dataset
    preprocessing = dataset.preprocessing()
    names = choices["target"].value if "target" in choices else classifier.record.targets
    targets = [number for number, name in enumerate(dataset.classes) if name in names]
    unknown = [owner for owner, digests in classifier.learnt.items() if digests is None]
    counts = images.train.labels.bincount(minlength=len(dataset.classes))
    adapter = classifier.adapter and str(classifier.adapter)
    if cfg.stage == "lora" and not session.is_fast_dev_run:
        adapter = ADAPTER_FOLDER
    return {
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
        "copies": images.copies,
        "left_out": dict(images.left_out),
        # Somebody else's network, or adapter, may have been trained on these images.
        "learnt_unknown": unknown,
        "parameters": count_parameters(classifier.net),
        **outcomes_by_part(tables, targets),
        "base_sha256": base.sha256 if base else fingerprint(classifier.net.state_dict()),
        "adapter": adapter,
        "point": choices["point"].value if "point" in choices else None,
    }


class NewBase(NamedTuple):
    """Where a pretraining leaves its base."""

    path: Path
    replaces: Path | None  # the current base; None: that one stays
    why_useless: str | None


def _new_base(session: Session, results: Mapping[str, Any]) -> NewBase:
    """A base for other commands is one of all bases, and the current one; else it stays here."""
    cfg, run, settings = session.cfg, session.run, session.classifier.settings
    folder, replaces, why_useless = run.folder, None, None
    knows_some = bool(results["targets"])  # of the classes
    if not (cfg.debug or session.is_fast_dev_run or knows_some):
        why_useless = _why_useless(session, results)
        if why_useless is None:
            folder, replaces = Path(cfg.paths.bases), current_base_path(cfg, run)
    name = base_name(settings.data, settings.net)
    path = versioned_base_path(folder, name, results["base_sha256"])
    return NewBase(path, replaces, why_useless)


def current_base_path(cfg: DictConfig, run: Run) -> Path | None:
    """The file of the current base, which a pretraining replaces; in a sweep a typed one alone."""
    if run.is_sweep and "base_ckpt" not in run.keys:
        return None
    if cfg.base_ckpt is not None:
        return Path(str(cfg.base_ckpt))
    return Path(cfg.paths.bases, f"{base_name(cfg.data, cfg.net)}.ckpt")


def _record_of(session: Session) -> Record:
    """The record for the file of a base or an adapter: all that a command needs, resolved."""
    classifier, dataset = session.classifier, session.classifier.dataset
    settings, prepare = classifier.settings, dataset.preprocessing()
    if settings.prepare.get("transform") is not None:
        prepare["transform"] = settings.prepare["transform"]
    data = {key: value for key, value in settings.data.items() if value is not None}
    data |= dataset.split_settings
    for key in ("num_workers", "eval_batch_size"):  # a machine's own
        data.pop(key, None)
    folder = Path(str(data.pop("data_dir", DATA))).expanduser().absolute()
    if folder != DATA:  # which each machine has
        data["data_dir"] = str(folder)
    made = {
        "stage": session.cfg.stage,
        "overrides": session.run.typed_without(*_CHANGE_NO_NUMBER),
        "seed": session.cfg.seed,
        "choose_by": session.cfg.choose_by,
        "augment": session.augment,
        "versions": {package: version(package) for package in ("lora-mnist", "torch")},
    }
    return Record(str(dataset.name), dict(settings.net), prepare, data, made)


def _save_adapter(session: Session, choices: Mapping[str, Choice], learnt: Tensor) -> None:
    """Save the adapter with its record."""
    base, record = session.classifier.base, _record_of(session)
    assert base is not None
    values = {name: choice.value for name, choice in choices.items()}
    targets = values.pop("target", [])
    folder = session.run.folder / ADAPTER_FOLDER
    record = replace(
        record,
        made={**record.made, **values},
        base_sha256=base.sha256,
        targets=targets,
        learnt=write_learnt(folder, learnt),  # first: no adapter is without it
    )
    save_adapter(session.net, folder, metadata=record.content())


def _keep_base(session: Session) -> None:
    """Keep a copy of an adapter's base, where there is none."""
    classifier, bases = session.classifier, Path(session.cfg.paths.bases)
    base, settings = classifier.base, classifier.settings
    assert base is not None
    if find_base(bases, base.sha256) is None:
        path = versioned_base_path(bases, base_name(settings.data, settings.net), base.sha256)
        # Of somebody else's, which images there are is each command's choice.
        record = base.record
        if record == NO_RECORD:
            record = replace(_record_of(session), data={})
        write_base(base.tensors, path, record, base.learnt)


def _why_useless(session: Session, results: Mapping[str, Any]) -> str | None:
    """Why a new base is of no use: it is no better than one class for all images."""
    part = "val" if "val" in results else "test"
    images, accuracy = results[part]["images_per_class"], results[part]["accuracy"]
    if accuracy > max(images) / sum(images):
        return None
    commonest = session.classifier.classes[images.index(max(images))]
    return (
        f"optimizer.lr={session.cfg.optimizer.lr}: of the {part} images {accuracy:.1%} are right, "
        f"no more than by always saying {commonest}; expected more steps, or another rate; the "
        f"base stays in {session.run.folder}"
    )
