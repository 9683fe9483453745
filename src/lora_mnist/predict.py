"""From pictures to digits: prepare, ask the base and the adapted network, print both."""

import glob
import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig
from PIL import Image
from torch import Tensor, nn

from lora_mnist.build import build_net, require_bool, require_fit, require_known_keys
from lora_mnist.data import ImageDataModule
from lora_mnist.errors import IncompleteError, UserError, config_group, one_line
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
        For each picture ``file``, and for ``base`` and ``adapted`` the ``digit``, its name as
        ``class``, its ``probability``, and the ``probabilities`` of all classes.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
        IncompleteError: at the end, if a picture was skipped.
    """
    require_known_keys(cfg, *_KEYS)
    require_bool(cfg, "json")
    files = _find(cfg.images)
    with config_group("data"):
        data: ImageDataModule = instantiate(cfg.data, _convert_="all")
        data.measure()
    net = build_net(cfg)
    load_base(cfg, net)
    has_adapter = bool(load_adapters(cfg, net))
    seen = _prepare(data, files)
    predictions = []
    if seen:
        require_fit(net, data, torch.stack(list(seen.values())[:1]))
        images, _ = data.on_after_batch_transfer((torch.stack(list(seen.values())), Tensor()), 0)
        with lora_disabled(net) if has_adapter else nullcontext():
            base = _ask(net, images, data.classes)
        adapted = _ask(net, images, data.classes) if has_adapter else base
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


def _ask(net: nn.Module, images: Tensor, classes: list[str]) -> list[dict[str, Any]]:
    """Digit, its name and its probability for each image, and the probabilities of all classes."""
    with torch.no_grad():
        probabilities = net.eval()(images).softmax(dim=1)
    return [
        {
            "digit": (digit := max(range(len(row)), key=row.__getitem__)),
            "class": classes[digit],
            "probability": row[digit],
            "probabilities": row,
        }
        for row in probabilities.tolist()
    ]


def _draw(images: list[Tensor], file: str) -> None:
    """Write the images side by side, four times their size."""
    strip = torch.cat([image[0] for image in images], dim=1)
    large = strip.repeat_interleave(4, dim=0).repeat_interleave(4, dim=1)
    try:
        with atomic_write(Path(file)) as path:
            Image.fromarray(large.numpy()).save(path)
    except (OSError, ValueError) as error:  # ValueError: an ending that Pillow does not know
        reason = one_line(error)
        raise UserError(f"picture={file}: expected a picture file to write ({reason})") from error
