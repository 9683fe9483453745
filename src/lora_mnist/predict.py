"""From pictures to classes: prepare, ask the base and the adapted network, print both."""

import glob
import hashlib
import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from lora_mnist.classify import Classifier, open_classifier
from lora_mnist.disk.files import atomic_write
from lora_mnist.errors import IncompleteError, UserError, config_group, one_line
from lora_mnist.lora.model import lora_disabled
from lora_mnist.project import Run
from lora_mnist.settings import checked
from lora_mnist.show.tables import print_predictions

log = logging.getLogger(__name__)


def predict(cfg: DictConfig, run: Run | None = None) -> list[dict[str, Any]]:
    """Print what the pictures of ``cfg.images`` show, for the base and with ``cfg.adapter``.

    A picture that cannot be read, or shows nothing, is named and skipped.

    Args:
        cfg: a configuration of ``configs/predict.yaml``; it is not changed.
        run: how the command was typed; predictions leave no files but those in ``cfg.mistakes``.

    Returns:
        For each picture its ``file``, and for ``base`` and ``adapted`` the ``class`` by name, as
        ``digit`` its number, its ``probability``, and the ``probabilities`` of all classes.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
        IncompleteError: at the end, if a picture was skipped.
    """
    cfg = checked(cfg)
    files = find_pictures(cfg.images, with_subfolders=cfg.mistakes is not None)
    classifier = open_classifier(cfg, run)
    labels = {}
    if cfg.mistakes is not None:
        with config_group("images"):
            for file in files:
                labels[file] = classifier.data.class_of_folder(file.resolve().parent.name)
    images: dict[Path, Tensor] = {}
    predictions: list[dict[str, Any]] = []
    for file in files:
        try:
            images[file] = classifier.prepare(file)
        except ValueError as error:
            log.error("%s: skipped: %s", file, one_line(error))
    if images:
        batch = torch.stack(list(images.values()))
        predictions = [{"file": str(file)} for file in images]
        with lora_disabled(classifier.net) if cfg.adapter else nullcontext():
            _classify("base", classifier, batch, predictions)
        if cfg.adapter:
            _classify("adapted", classifier, batch, predictions)
        if cfg.mistakes is not None:
            wrong = copied = 0
            for file, prediction in zip(images, predictions, strict=True):
                if prediction["base"]["digit"] != labels[file]:
                    wrong += 1
                    copied += copy_into(Path(cfg.mistakes), file)
            message = "the base gets %d of %d pictures wrong: %d copied to %s, %d were there"
            log.info(message, wrong, len(images), copied, cfg.mistakes, wrong - copied)
    if cfg.json:
        print(json.dumps(predictions, indent=2))
    elif predictions:
        print_predictions(predictions)
    if skipped := len(files) - len(images):
        raise IncompleteError(f"{skipped} of {len(files)} pictures skipped")
    return predictions


def copy_into(folder: Path, file: Path) -> bool:
    """Copy a picture into a folder of its class below ``folder``, unless it is there already.

    Where another picture has its name there, a part of its SHA-256 makes the name another.
    """
    content = file.read_bytes()
    place = folder / file.resolve().parent.name / file.name
    if place.exists() and place.read_bytes() != content:
        place = place.with_stem(f"{place.stem}-{hashlib.sha256(content).hexdigest()[:16]}")
    if place.exists():
        return False
    with atomic_write(place) as path:
        path.write_bytes(content)
    return True


def find_pictures(images: Any, with_subfolders: bool = False) -> list[Path]:
    """The files that ``cfg.images`` names: files, folders, patterns, or a list of such."""
    from torchvision.datasets.folder import IMG_EXTENSIONS  # here: it takes its time

    if images is None:
        raise UserError('images=null: expected a picture, a folder, or a pattern like "some/*.png"')
    files: list[Path] = []
    for pattern in images if isinstance(images, ListConfig) else [images]:
        name = Path(str(pattern))
        matches = [name]  # a name that exists is no pattern, even with brackets
        if name.is_dir():
            inside = sorted(name.glob("[!.]*"))
            if with_subfolders:
                inside += sorted(name.glob("[!.]*/[!.]*"))
            matches = [each for each in inside if each.suffix.lower() in (*IMG_EXTENSIONS, ".gif")]
        elif not name.exists():  # Path.glob takes no absolute pattern
            matches = [Path(p) for p in sorted(glob.glob(str(name))) if Path(p).is_file()]  # noqa: PTH207
        if not matches:
            raise UserError(f"images={pattern}: expected pictures; there is no such file")
        files += matches
    return list(dict.fromkeys(files))


def _classify(
    side: str, classifier: Classifier, images: Tensor, predictions: list[dict[str, Any]]
) -> None:
    """Add the class of each of ``images`` to its prediction, under the name ``side``."""
    for row, entry in zip(classifier.probabilities(images), predictions, strict=True):
        prediction = classifier.prediction(row)
        entry[side] = {
            "digit": classifier.classes.index(prediction.label),
            "class": prediction.label,
            "probability": prediction.probability,
            "probabilities": prediction.probabilities,
        }
