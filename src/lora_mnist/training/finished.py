"""Finished trainings of a repair, which stay in the run's folder until the run is complete.

A repair that is killed loses the training that is under way, and no other: ``ckpt_path=RUN`` takes
the finished ones from its folder RUN. Each is a file in safetensors format with the adapter's
tensors and the digests of the training images; the file's metadata has the other fields of an
:class:`.run_training.TrainingResult`, as JSON, and what decided the run's trainings.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lora_mnist.errors import UserError
from lora_mnist.files import atomic_write
from lora_mnist.lora.base_state import hash_tensors
from lora_mnist.lora.point import Point
from lora_mnist.project import expand_path
from lora_mnist.run_paths import FINISHED_FOLDER, list_finished
from lora_mnist.training.checkpoint import refuse_other_training
from lora_mnist.training.fit import EARLY_RESUME_KEYS, LATE_RESUME_KEYS, build_hparams
from lora_mnist.training.session import Session
from lora_mnist.training.trials import Training

log = logging.getLogger(__name__)

#: The keys that decide the results of a repair's trainings.
_MAKE_A_REPAIR = (
    *EARLY_RESUME_KEYS,
    *LATE_RESUME_KEYS,
    *("trainer", "trials", "choose_by", "images_sha256"),
)
#: The tensors of a result beside its adapter's.
_TENSORS = ("train_digests", "image_scores")


def refuse_other_repair(session: Session) -> None:
    """Raise if ``ckpt_path`` is the folder of another repair, or has a damaged file."""
    folder = session.cfg.ckpt_path
    for file in list_finished(expand_path(folder)) if folder is not None else ():
        saved, _ = _read(file)
        refuse_other_training(folder, saved["run"], _describe_run(session), _MAKE_A_REPAIR)


def save_finished(session: Session, training: Training, fields: Mapping[str, Any]) -> None:
    """Write the fields of a training's result to the run's folder."""
    if not session.trainer.is_global_zero:
        return
    fields = dict(fields)
    tensors = {key: fields.pop(key) for key in _TENSORS}
    for key, tensor in fields.pop("tensors").items():
        tensors[key] = tensor.contiguous()
    content = {"run": _describe_run(session), "fields": fields}
    with atomic_write(_file(session.run.folder, training)) as path:
        save_file(tensors, path, {"content": json.dumps(content)})


def load_finished(session: Session, training: Training) -> dict[str, Any] | None:
    """Return the fields of a training's result from the folder ``ckpt_path``, or None."""
    folder = session.cfg.ckpt_path
    if folder is None or not (file := _file(expand_path(folder), training)).is_file():
        return None
    content, tensors = _read(file)
    text = "%s: %s at learning rate %g, taken from %s"
    log.info(text, training.title, training.name, training.lr, folder)
    fields: dict[str, Any] = content["fields"]
    fields |= {"point": Point(*fields["point"])} | {key: tensors.pop(key) for key in _TENSORS}
    return {**fields, "tensors": tensors}


def remove_finished(session: Session) -> None:
    """Remove the finished trainings from the folder of a run that is complete."""
    shutil.rmtree(session.run.folder / FINISHED_FOLDER, ignore_errors=True)


def _file(folder: Path, training: Training) -> Path:
    """Return the file of a training in a run's folder."""
    kind = "training" if training.total else "head"
    return folder / FINISHED_FOLDER / f"{kind}_{training.number}_{training.lr:g}.safetensors"


def _read(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return a file's metadata and tensors."""
    tensors = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 it is no dictionary
                tensors[key] = opened.get_tensor(key)
            return dict(json.loads(opened.metadata()["content"])), tensors
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        line = f"{file}: expected a finished training ({error}); delete it to repeat the training"
        raise UserError(line) from error


def _describe_run(session: Session) -> dict[str, Any]:
    """Return the values that decide the trainings of a run, by key, as a file stores them."""
    described, images = (
        build_hparams(session.cfg, session.classifier),
        dict[str, torch.Tensor](),
    )
    for split, each in (("train", session.images.train), ("val", session.images.val)):
        images |= {f"digests of {split}": each.digests, f"labels of {split}": each.labels}
    described["images_sha256"] = hash_tensors(images)
    return dict(json.loads(json.dumps(described)))
