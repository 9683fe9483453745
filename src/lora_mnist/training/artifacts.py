"""The files of a training for other commands: a base, or an adapter with its record."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig
from torch import Tensor

from lora_mnist.choice import Choice
from lora_mnist.classifier.base import (
    base_name,
    find_base_by_sha256,
    permanent_base_path,
    set_current_base,
    write_base,
)
from lora_mnist.classifier.record import NO_RECORD, Record
from lora_mnist.classifier.train_digests_file import write_train_digests
from lora_mnist.config.run import Run
from lora_mnist.data import is_published
from lora_mnist.errors import TrainingError
from lora_mnist.lora.adapter import save_adapter
from lora_mnist.lora.base_state import hash_tensors
from lora_mnist.measure.counts import count_both
from lora_mnist.measure.predictions import Predictions
from lora_mnist.project import DATA, expand_path
from lora_mnist.run_paths import ADAPTER_FOLDER
from lora_mnist.training.session import Session, is_quick
from lora_mnist.training.trials import resolve_augment

log = logging.getLogger(__name__)

#: Keys that the record of a base or an adapter omits, with the keys below them.
_OMITTED_KEYS = (
    *("callbacks.checkpoint", "figures", "hydra", "launcher"),
    *("logger", "paths", "run_name", "sweep"),
)


class NewBase(NamedTuple):
    """The base that a pretraining has made, and its files."""

    sha256: str
    path: Path
    replaces: Path | None  # the current base; None: it is not replaced
    why_useless: str | None


def current_base_path(cfg: DictConfig, run: Run) -> Path | None:
    """Return the current base, which pretraining replaces; a sweep replaces only a named one."""
    if run.is_sweep and "base_ckpt" not in run.keys:
        return None
    if cfg.base_ckpt is not None:
        return expand_path(cfg.base_ckpt)
    return Path(cfg.paths.bases, f"{base_name(cfg.data, cfg.net)}.ckpt")


def new_base(session: Session, tables: Mapping[str, Predictions], current: Path | None) -> NewBase:
    """Return the new base with its files: kept and current, or in the run's folder alone."""
    cfg, settings = session.cfg, session.classifier.settings
    folder, replaces, why_useless = session.run.folder, None, None
    knows_some = cfg.target is not None  # of the classes
    if not (is_quick(cfg) or knows_some):
        why_useless = _why_useless(session, tables)
        if why_useless is None:
            folder, replaces = Path(cfg.paths.bases), current
    sha256, name = hash_tensors(session.net.state_dict()), base_name(settings.data, settings.net)
    return NewBase(sha256, permanent_base_path(folder, name, sha256), replaces, why_useless)


def _why_useless(session: Session, tables: Mapping[str, Predictions]) -> str | None:
    """Return the reason that a new base is no better than always one class, or None."""
    split = "val" if "val" in tables else "test"
    counts = count_both(tables[split])["before"]
    images, accuracy = counts["images_per_class"], counts["accuracy"]
    if accuracy > max(images) / sum(images):
        return None
    commonest = session.classifier.classes[images.index(max(images))]
    return (
        f"optimizer.lr={session.cfg.optimizer.lr}: {accuracy:.1%} of the {split} images are right, "
        f"no more than if all were predicted as {commonest}; expected more steps, or another "
        f"learning rate; the base stays in {session.run.folder}"
    )


def write_new_base(session: Session, base: NewBase, train_digests: Tensor) -> None:
    """Write a new base to its permanent file."""
    write_base(session.net.state_dict(), base.path, _build_record(session), train_digests)


def make_current(base: NewBase) -> None:
    """Make a new base the current one; refuse a useless one, which stays in the run's folder."""
    if base.replaces is not None:
        set_current_base(base.path, base.replaces)
    else:
        log.info("base: %s; the current one stays", base.path)
    if base.why_useless is not None:
        raise TrainingError(base.why_useless)


def write_adapter(session: Session, choices: Mapping[str, Choice], train_digests: Tensor) -> None:
    """Save the adapter with its record."""
    base, record = session.classifier.base, _build_record(session)
    assert base is not None
    values = {name: choice.value for name, choice in choices.items()}
    targets = values.pop("target", [])
    folder = session.run.folder / ADAPTER_FOLDER
    record = replace(
        record,
        made={**record.made, **values},
        base_sha256=base.sha256,
        targets=targets,
        train_digests=write_train_digests(folder, train_digests),  # before the adapter
    )
    save_adapter(session.net, folder, metadata=record.content())


def keep_base(session: Session) -> None:
    """Keep a copy of an adapter's base, where there is none."""
    classifier, bases = session.classifier, Path(session.cfg.paths.bases)
    base, settings = classifier.base, classifier.settings
    assert base is not None
    if find_base_by_sha256(bases, base.sha256) is None:
        path = permanent_base_path(bases, base_name(settings.data, settings.net), base.sha256)
        record = base.record
        if record == NO_RECORD:  # from elsewhere: its training is unknown
            record = replace(_build_record(session), data={}, made={})
        write_base(base.tensors, path, record, base.train_digests)


def _build_record(session: Session) -> Record:
    """Return the record for the file of a base or an adapter, with all that a command needs."""
    classifier, dataset = session.classifier, session.classifier.dataset
    settings, prepare = classifier.settings, dataset.preprocessing()
    if settings.prepare.get("transform") is not None:
        prepare["transform"] = settings.prepare["transform"]
    data = {key: value for key, value in settings.data.items() if value is not None}
    data |= dataset.split_settings
    for key in ("num_workers", "eval_batch_size"):  # a machine's own
        data.pop(key, None)
    folder = expand_path(data.pop("data_dir", DATA)).absolute()
    if folder != DATA or not is_published(data):  # else each machine has it
        data["data_dir"] = str(folder)
    net = dict(settings.net)
    if net["_target_"] == "timm.create_model":
        net.pop("pretrained", None)  # the weights are in the base's file, and prepare is resolved
    made = {
        "stage": session.cfg.stage,
        "overrides": session.run.overrides_without(*_OMITTED_KEYS),
        "seed": session.cfg.seed,
        "choose_by": session.cfg.choose_by,
        "augment": resolve_augment(session.cfg, classifier),
        "versions": {package: version(package) for package in ("lora-mnist", "torch")},
    }
    return Record(str(dataset.name), net, prepare, data, made)
