"""From pictures to classes: prepare, predict before and after the repair, print both."""

import glob
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from lora_mnist.classifier.choose_point import apply_point
from lora_mnist.classifier.classifier import Classifier
from lora_mnist.config.keys import resolve_configuration
from lora_mnist.config.make import load_from_config, read_point
from lora_mnist.config.run import Run
from lora_mnist.data.listing import files_below
from lora_mnist.errors import (
    IncompleteError,
    PictureError,
    UserError,
    format_value,
    one_line,
    printable,
)
from lora_mnist.lora.point import BASE, Point
from lora_mnist.progress import progress
from lora_mnist.project import expand_path
from lora_mnist.run_paths import refuse_unwritable
from lora_mnist.show.predictions_file import write_predictions
from lora_mnist.show.reasons import log_choices
from lora_mnist.show.screen import print_predictions

log = logging.getLogger(__name__)


def predict(cfg: DictConfig, run: Run | None = None) -> list[dict[str, Any]]:
    """Print the predicted class of each picture, for the base and with ``cfg.adapter``.

    There may be any number of pictures. One that cannot be read, or shows nothing, is named and
    skipped.

    Args:
        cfg: a configuration of ``configs/predict.yaml``; it is not changed.
        run: the command line; predictions are written only to ``cfg.out``.

    Returns:
        For each picture a dictionary: its ``file``; ``before``, the base's :class:`.Prediction`;
        and, with an adapter, ``after``, the adapted network's. Empty with ``cfg.out``, whose file
        has them: they may not fit into memory.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
        IncompleteError: at the end, if a picture was skipped.
    """
    cfg = resolve_configuration(cfg, run)
    files = find_pictures(cfg.images)
    if cfg.out is not None:
        refuse_unwritable(Path(str(cfg.out)))
    classifier = load_from_config(cfg)
    classifier.check_network()
    log_choices(apply_point(classifier, read_point(cfg)))
    predictions, out = predict_files(classifier, files), cfg.out
    printed: list[dict[str, Any]] = []
    if out is not None:
        count = write_predictions(Path(str(out)), predictions, classifier.adapter is not None)
        log.info("%s: %d predictions", out, count)
    else:
        printed += predictions
        count = len(printed)
        if printed:
            print_predictions(printed)
    if skipped := len(files) - count:
        raise IncompleteError(f"{skipped} of {len(files)} pictures skipped")
    return printed


def predict_files(classifier: Classifier, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield one row of :func:`predict` for each file."""
    points: dict[str, Point | None] = {"before": BASE}
    if classifier.adapter is not None:
        points["after"] = None  # the current point
    images = read_pictures(classifier, files)
    for number, of_image in classifier.predict_at(images, list(points.values())):
        yield {"file": printable(files[number]), **dict(zip(points, of_image, strict=True))}


def read_pictures(classifier: Classifier, files: Sequence[Path]) -> Iterator[tuple[Tensor, int]]:
    """Yield the image and the index of each file that can be read."""
    for number, file in enumerate(progress(files, "predict", len(files))):
        try:
            yield classifier.read(file), number
        except PictureError as error:
            log.error("%s: skipped: %s", printable(file), one_line(error))


def find_pictures(images: Any) -> list[Path]:
    """Find the files that ``cfg.images`` names: a file, folder or pattern, or a list of them."""
    endings = (*IMG_EXTENSIONS, ".gif")
    files: list[Path] = []
    named = list(images) if isinstance(images, ListConfig) else [images]
    for each in named or [None]:
        is_missing = each is None or each == ""
        pattern = "" if is_missing else str(expand_path(each))
        folder, matches = Path(pattern), []
        if pattern and folder.is_dir():
            for path in sorted(files_below(folder)):
                if path.suffix.lower() in endings:
                    matches.append(path)
        elif pattern and folder.exists():  # it is no pattern, even with brackets
            matches.append(folder)
        else:
            found = map(Path, sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207
            matches += [path for path in found if path.is_file()]
        if not matches:
            reason = ": missing" if is_missing else f"={format_value(each)}: there is no picture"
            raise UserError(
                f'images{reason}; expected a file, a folder, or a pattern like "some/*.png"'
            )
        files += matches
    return list(dict.fromkeys(files))
