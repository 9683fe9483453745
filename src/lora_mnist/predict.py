"""From pictures to classes: prepare, ask the base and the adapted network, print both."""

import glob
import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from PIL import Image
from torch import Tensor, nn

from lora_mnist.build import (
    build_data,
    build_net,
    require_bool,
    require_fit,
    require_known_keys,
)
from lora_mnist.data import ImageDataModule
from lora_mnist.errors import IncompleteError, UserError, one_line
from lora_mnist.files import atomic_write
from lora_mnist.load import load_adapters, load_base
from lora_mnist.lora import lora_disabled
from lora_mnist.show.tables import print_predictions

log = logging.getLogger(__name__)


_KEYS = (
    *("stage", "data", "net", "base_name", "base_ckpt", "adapter", "allow_other_base", "paths"),
    *("images", "json", "picture"),
)


def predict(cfg: DictConfig, run_folder: Path | None = None) -> list[dict[str, Any]]:
    """Print what the pictures of ``cfg.images`` show, for the base and with ``cfg.adapter``.

    A picture that cannot be read, or shows nothing, is named and skipped.

    Args:
        cfg: a configuration of ``configs/predict.yaml``; it is not changed.
        run_folder: not used; predictions leave no files but those that ``cfg`` names.

    Returns:
        For each picture ``file``, and for ``base`` and ``adapted`` the ``class`` by name, as
        ``digit`` its number, its ``probability``, and the ``probabilities`` of all classes.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
        IncompleteError: at the end, if a picture was skipped.
    """
    require_known_keys(cfg, *_KEYS)
    require_bool(cfg, "json")
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
        for file, before, after in zip(seen, base, adapted, strict=True):
            found = {"file": str(file), "base": before}
            predictions.append({**found, "adapted": after} if has_adapter else found)
        if cfg.picture is not None:
            _draw(list(seen.values()), cfg.picture)
    if cfg.json:
        print(json.dumps(predictions, indent=2))
    else:
        print_predictions(predictions)
    if skipped := len(files) - len(seen):
        raise IncompleteError(f"{skipped} of {len(files)} pictures skipped")
    return predictions


def _find(images: Any) -> list[Path]:
    if images is None:
        raise UserError('images=null: expected a picture, or a pattern such as "some/*.png"')
    files: list[Path] = []
    for pattern in images if isinstance(images, ListConfig) else [images]:
        # A name that is there is meant as it stands, brackets and all.
        name = str(pattern)
        # Path.glob takes no absolute pattern.
        found = [name] if Path(name).exists() else glob.glob(name)  # noqa: PTH207
        if not found:
            raise UserError(f"images={pattern}: expected pictures; there is no such file")
        if folders := [path for path in found if Path(path).is_dir()]:
            raise UserError(f'images={pattern}: a folder; expected "{folders[0]}/*.png" or such')
        files += map(Path, sorted(found))
    return list(dict.fromkeys(files))


def _prepare(data: ImageDataModule, files: list[Path]) -> dict[Path, Tensor]:
    """The pictures that can be used, as uint8; the others are named."""
    seen = {}
    for file in files:
        try:
            seen[file] = data.read_picture(file)
        except ValueError as error:
            log.error("%s: skipped: %s", file, one_line(error))
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


def _draw(images: list[Tensor], file: str) -> None:
    """Write the images side by side, four times their size."""
    strip = torch.cat(images, dim=2)
    large = strip.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    pixels = large[0] if len(large) == 1 else large.permute(1, 2, 0)
    try:
        with atomic_write(Path(file)) as path:
            Image.fromarray(pixels.numpy()).save(path)
    except (OSError, ValueError) as error:  # ValueError: an ending that Pillow does not know
        reason = one_line(error)
        raise UserError(f"picture={file}: expected a picture file to write ({reason})") from error
