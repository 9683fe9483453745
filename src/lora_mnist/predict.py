"""From pictures to classes: prepare, ask the base and the adapted network, print both."""

import glob
import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor, nn

from lora_mnist.config import (
    build_data,
    build_net,
    require_bool,
    require_fit,
    require_known_keys,
)
from lora_mnist.data import ImageDataModule, MNISTDataModule
from lora_mnist.data.ink import DIGITS, doubt
from lora_mnist.disk.files import atomic_write
from lora_mnist.errors import IncompleteError, UserError, one_line
from lora_mnist.load import load_adapters, load_base, with_latest_adapter
from lora_mnist.lora import lora_disabled
from lora_mnist.show.pictures import draw_predictions
from lora_mnist.show.tables import print_predictions

log = logging.getLogger(__name__)


_KEYS = (
    *("stage", "data", "net", "base_name", "base_ckpt", "adapter", "allow_other_base", "paths"),
    *("images", "json", "picture"),
)
#: Pictures on a page: 20 rows of ten.
_PAGE = 200
#: More would fill the screen; the table has a note for each.
_MOST_NAMED = 3


def predict(cfg: DictConfig, run_folder: Path | None = None) -> list[dict[str, Any]]:
    """Print what the pictures of ``cfg.images`` show, for the base and with ``cfg.adapter``.

    A picture that cannot be read, or shows nothing, is named and skipped. One that seems to show
    no digit, or several, is answered all the same, with a note and a warning; see
    :mod:`lora_mnist.data.ink`.

    Args:
        cfg: a configuration of ``configs/predict.yaml``; it is not changed.
        run_folder: not used; predictions leave no files but those that ``cfg`` names.

    Returns:
        For each picture ``file``, and for ``base`` and ``adapted`` the ``class`` by name, as
        ``digit`` its number, its ``probability``, and the ``probabilities`` of all classes.
        ``note``, where the dataset is of digits: "no digit", "several digits", or ``None``.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
        IncompleteError: at the end, if a picture was skipped.
    """
    require_known_keys(cfg, *_KEYS)
    require_bool(cfg, "json")
    drawing = cfg.picture
    if drawing is not None and (not isinstance(drawing, str) or Path(drawing).is_dir()):
        raise UserError(f"picture={cfg.picture}: expected a file to draw in, or null")
    cfg = with_latest_adapter(cfg)
    files = _find(cfg.images)
    data: ImageDataModule = build_data(cfg, None)
    net = build_net(cfg)
    load_base(cfg, net)
    has_adapter = bool(load_adapters(cfg, net))
    seen = _prepare(data, files)
    predictions = []
    if seen:
        images = torch.stack(list(seen.values()))
        require_fit(net, data, images[:1])
        with lora_disabled(net) if has_adapter else nullcontext():
            base = _ask(net, data, images)
        adapted = _ask(net, data, images) if has_adapter else base
        for file, image, before, after in zip(seen, images, base, adapted, strict=True):
            found: dict[str, Any] = {"file": str(file), "base": before}
            if has_adapter:
                found["adapted"] = after
            if isinstance(data, MNISTDataModule) and data.dataset in DIGITS:
                found["note"] = doubt(image)
            predictions.append(found)
        if cfg.picture is not None:
            _draw(list(seen.values()), predictions, Path(cfg.picture))
    if cfg.json:
        print(json.dumps(predictions, indent=2))
    else:
        print_predictions(predictions)
    _warn(predictions)
    if skipped := len(files) - len(seen):
        raise IncompleteError(f"{skipped} of {len(files)} pictures skipped")
    return predictions


def _find(images: Any) -> list[Path]:
    """The files that ``images`` names: files, folders, patterns, or a list of such."""
    if images is None:
        raise UserError('images=null: expected a picture, a folder, or a pattern like "some/*.png"')
    files: list[Path] = []
    for pattern in images if isinstance(images, ListConfig) else [images]:
        # A name that is there is meant as it stands, brackets and all.
        name = Path(str(pattern))
        if name.is_dir():
            files += _pictures_in(name)
            continue
        # Path.glob takes no absolute pattern.
        found = [name] if name.exists() else map(Path, sorted(glob.glob(str(name))))  # noqa: PTH207
        kept = [path for path in found if not path.is_dir()]
        if not kept:
            raise UserError(f"images={pattern}: expected pictures; there is no such file")
        files += kept
    return list(dict.fromkeys(files))


def _pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder by name; what else is in it, subfolders too, is counted."""
    from torchvision.datasets.folder import IMG_EXTENSIONS  # here: it takes its time

    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"images={folder}: expected a folder to read ({error.strerror})") from error
    endings = (*IMG_EXTENSIONS, ".gif")
    pictures = [p for p in paths if p.suffix.lower() in endings and not p.is_dir()]
    if not pictures:
        raise UserError(
            f"images={folder}: expected files that end in {', '.join(endings)}; "
            "subfolders are not searched"
        )
    subfolders = sum(path.is_dir() for path in paths)
    if others := len(paths) - len(pictures) - subfolders:
        log.info("%s: files that are no pictures by their names, left out: %d", folder, others)
    if subfolders:
        log.info("%s: subfolders, left out: %d", folder, subfolders)
    return pictures


def _prepare(data: ImageDataModule, files: list[Path]) -> dict[Path, Tensor]:
    """The pictures that can be used, as uint8; the others are named."""
    seen = {}
    for file in files:
        try:
            seen[file] = data.read_picture(file)
        except ValueError as error:
            log.error("%s: skipped: %s", one_line(file), one_line(error))
    return seen


@torch.no_grad()
def _ask(net: nn.Module, data: ImageDataModule, images: Tensor) -> list[dict[str, Any]]:
    """Class, its number and its probability for each image, and the probabilities of all."""
    rows: list[list[float]] = []
    for batch in torch.split(images, data.eval_batch_size):
        normalised, _ = data.on_after_batch_transfer((batch, Tensor()), 0)
        rows += net.eval()(normalised).softmax(dim=1).tolist()
    return [
        {
            "digit": (digit := max(range(len(row)), key=row.__getitem__)),
            "class": data.classes[digit],
            "probability": row[digit],
            "probabilities": row,
        }
        for row in rows
    ]


def _warn(predictions: list[dict[str, Any]]) -> None:
    doubtful = [found for found in predictions if found.get("note")]
    if doubtful:
        named = [f"{one_line(found['file'])} ({found['note']})" for found in doubtful[:_MOST_NAMED]]
        log.warning(
            "%d of %d pictures seem to show no digit or several, whatever the answer: %s%s",
            *(len(doubtful), len(predictions), ", ".join(named)),
            ", ..." if len(doubtful) > len(named) else "",
        )


def _draw(images: list[Tensor], predictions: list[dict[str, Any]], file: Path) -> None:
    """Write what the network saw, and its answers; the second page to ``NAME-2.png``."""
    starts = range(0, len(images), _PAGE)
    title = f"{len(images):,} pictures as the network saw them"
    if len(images) == 1:
        title = "1 picture as the network saw it"
    for page, start in enumerate(starts, 1):
        chosen = slice(start, start + _PAGE)
        shown = [image.numpy() for image in images[chosen]]
        part = f", {start + 1:,} to {start + len(shown):,}" if len(starts) > 1 else ""
        drawn = draw_predictions(shown, predictions[chosen], title + part)
        target = file if page == 1 else file.with_stem(f"{file.stem}-{page}")
        try:
            with atomic_write(target) as path:
                drawn.save(path)
        except (OSError, ValueError) as error:  # ValueError: an ending that Pillow does not know
            expected = f"expected a picture file to write ({one_line(error)})"
            raise UserError(f"picture={file}: {expected}") from error
    if len(starts) > 1:
        log.info("picture: %d pages, the last is %s", len(starts), target)
