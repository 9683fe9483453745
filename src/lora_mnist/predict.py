"""From pictures to classes: prepare, predict before and after the repair, print both."""

import csv
import glob
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from lora_mnist.classifier import Classifier
from lora_mnist.configuration import checked_copy, classifier_of
from lora_mnist.disk.files import atomic_write
from lora_mnist.errors import IncompleteError, UserError, one_line
from lora_mnist.lora.model import lora_disabled
from lora_mnist.progress import progress
from lora_mnist.run import Run
from lora_mnist.show.tables import print_predictions

log = logging.getLogger(__name__)


def predict(cfg: DictConfig, run: Run | None = None) -> list[dict[str, Any]]:
    """Print what the pictures of ``cfg.images`` show, for the base and with ``cfg.adapter``.

    There may be any number of pictures. One that cannot be read, or shows nothing, is named and
    skipped.

    Args:
        cfg: a configuration of ``configs/predict.yaml``; it is not changed.
        run: how the command was typed; predictions leave no file but ``cfg.out``.

    Returns:
        For each picture its ``file``, and for ``before``, the base, and with an adapter ``after``
        the ``class`` by name, its ``probability``, and the ``probabilities`` of all classes;
        nothing with ``cfg.out``.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
        IncompleteError: at the end, if a picture was skipped.
    """
    cfg = checked_copy(cfg, run)
    files = find_pictures(cfg.images)
    if cfg.out is not None and Path(cfg.out).exists():
        raise UserError(f"out={cfg.out}: expected a new file; this one exists")
    classifier = classifier_of(cfg, run)
    classifier.check()
    classifier.set_scale(cfg.scale)
    predictions = _classify(classifier, files)
    printed: list[dict[str, Any]] = []
    if cfg.out is not None:
        count = _write_table(predictions, Path(cfg.out))
        log.info("%s: %d predictions", cfg.out, count)
    else:
        printed = list(predictions)
        count = len(printed)
        if printed:
            print_predictions(printed)
    if skipped := len(files) - count:
        raise IncompleteError(f"{skipped} of {len(files)} pictures skipped")
    return printed


def _classify(classifier: Classifier, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The predictions for the files that can be read, as :func:`predict` returns them."""
    has_adapter = classifier.adapter is not None
    for file in progress(files, "predict", len(files)):
        try:
            image = classifier.prepare(file)[None]
        except ValueError as error:
            log.error("%s: skipped: %s", file, one_line(error))
            continue
        with lora_disabled(classifier.net) if has_adapter else nullcontext():
            rows = {"before": classifier.probabilities(image)[0]}
        if has_adapter:
            rows["after"] = classifier.probabilities(image)[0]
        if not all(row.isfinite().all() for row in rows.values()):
            log.error("%s: skipped: the network's output is not finite", file)
            continue
        entry: dict[str, Any] = {"file": str(file)}
        for side, row in rows.items():
            prediction = classifier.prediction(row)
            entry[side] = {
                "class": prediction.label,
                "probability": prediction.probability,
                "probabilities": prediction.probabilities,
            }
        yield entry


def _write_table(predictions: Iterable[Mapping[str, Any]], out: Path) -> int:
    """Write predictions to a CSV file, whole or not at all, as they come; return their number."""
    count = 0
    with atomic_write(out) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for count, prediction in enumerate(predictions, start=1):
            row = {"file": prediction["file"]}
            titles = {"before": ("prediction", "probability")}
            if "after" in prediction:
                titles["before"] = ("before", "before_probability")
                titles["after"] = ("after", "after_probability")
            for side, (class_title, probability_title) in titles.items():
                row[class_title] = prediction[side]["class"]
                row[probability_title] = f"{prediction[side]['probability']:.6f}"
            if count == 1:
                writer.writerow(row)
            writer.writerow(row.values())
    return count


def find_pictures(images: Any) -> list[Path]:
    """The files that ``cfg.images`` names: files, folders, patterns, or a list of such.

    A folder stands for all pictures in it and in its subfolders, but hidden ones.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS  # here: it takes its time

    endings = (*IMG_EXTENSIONS, ".gif")
    patterns = images if isinstance(images, ListConfig) else [images]
    if images is None or not patterns:
        given = "null" if images is None else images
        raise UserError(
            f'images={given}: expected a picture, a folder, or a pattern like "some/*.png"'
        )
    files: list[Path] = []
    for pattern in patterns:
        name = Path(str(pattern))
        matches = [name]  # a name that exists is no pattern, even with brackets
        if name.is_dir():
            matches = [path for path in _files_in(name) if path.suffix.lower() in endings]
        elif not name.exists():  # Path.glob takes no absolute pattern
            matches = [Path(p) for p in sorted(glob.glob(str(name))) if Path(p).is_file()]  # noqa: PTH207
        if not matches:
            raise UserError(f"images={pattern}: expected pictures; there are none")
        files += matches
    return list(dict.fromkeys(files))


def _files_in(folder: Path, above: Sequence[Path] = ()) -> list[Path]:
    """All files in a folder and its subfolders, but hidden ones, also where these are links.

    A link to one of the folders ``above`` is left out.
    """
    files, place = [], folder.resolve()
    for path in sorted(folder.glob("[!.]*")):
        if path.is_file():
            files.append(path)
        elif path.is_dir() and path.resolve() not in (place, *above):
            files += _files_in(path, (place, *above))
    return files
