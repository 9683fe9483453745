"""The preprocessing that a network's makers recommend, as keys of ``prepare``.

timm, torchvision and Hugging Face each describe it in their own way.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision.models
from PIL import Image
from torch import Tensor, nn

from lora_mnist.classifier.huggingface import (
    PROCESSOR,
    TARGET,
    draw_test_pictures,
    load_processor,
    pixel_tolerance,
)
from lora_mnist.data.pictures import Preprocessing
from lora_mnist.errors import SIZING, UserError, one_line


def find_preprocessing(
    net: nn.Module,
    arguments: Mapping[str, Any],
    prepare: Mapping[str, Any],
    folder: Path | None = None,  # of Hugging Face
) -> dict[str, Any]:
    """Return the keys of ``prepare`` that a network's makers recommend; empty if there are none."""
    weights = arguments.get("weights")
    package, _, builder = str(arguments["_target_"]).rpartition(".")
    if arguments["_target_"] == TARGET:
        return _read_huggingface(net, prepare, folder)
    if "crop_pct" in getattr(net, "pretrained_cfg", {}):
        named = _read_timm(net, arguments)
    elif isinstance(weights, str) and package.startswith("torchvision.models"):
        if builder == "get_model":
            builder = str(arguments.get("name"))
        members: Any = torchvision.models.get_model_weights(builder)
        named = _read_torchvision(members[weights.rpartition(".")[2]].transforms())
    else:
        return {}
    named |= {"mean": list(named["mean"]), "std": list(named["std"])}
    named["channels"] = prepare.get("channels") or named["channels"]
    if prepare.get("image_size") is not None:  # the makers' resizing is for their own size
        for key in SIZING:
            named.pop(key, None)
    if len(named["mean"]) not in (1, named["channels"]):
        del named["mean"], named["std"]  # images are measured
    return named


def _read_timm(net: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    import timm.data  # here: an extra, and net has it

    named: dict[str, Any] = timm.data.resolve_model_data_config(net)
    channels, *original = named.pop("input_size")
    named["channels"] = arguments.get("in_chans") or channels  # an argument comes first
    size = arguments.get("img_size") or original
    named["image_size"] = [size, size] if isinstance(size, int) else list(size)
    if named["image_size"] != original:
        del named["crop_pct"]  # it belongs to that size
    named["resize"] = "stretch" if named.pop("crop_mode") == "squash" else "crop"
    return named


def _read_torchvision(transforms: Any) -> dict[str, Any]:
    size, scaled = transforms.crop_size[0], transforms.resize_size[0]
    return {
        "channels": 3,
        "image_size": [size, size],
        "resize": "crop",
        "crop_pct": round(size / scaled, 6),
        "interpolation": transforms.interpolation.value,
        "mean": transforms.mean,
        "std": transforms.std,
    }


def _read_huggingface(net: Any, prepare: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Return the order of the classes, and the keys of ``prepare`` for the processor's steps."""
    channels: int = prepare.get("channels") or int(getattr(net.config, "num_channels", 3))
    named: dict[str, Any] = {"channels": channels}
    labels = [str(net.config.id2label[number]) for number in range(net.config.num_labels)]
    if not all(
        re.fullmatch(r"LABEL_\d+", label) for label in labels
    ):  # these are transformers' default names
        named["classes"] = labels
    if folder is None or not (folder / PROCESSOR).is_file():
        return named
    if prepare.get("transform") is not None:
        return named
    # Processors interpret their values in different ways. So this one is tried on pictures.
    pictures = draw_test_pictures(channels)
    for color in ("black", "white"):
        pictures.append(Image.new(pictures[0].mode, (600, 400), color))
    where = f"net.folder={folder}: {PROCESSOR}"
    try:
        processor = load_processor(folder)
        inputs = processor(pictures)["pixel_values"]
        wide, tall, black, white = (torch.as_tensor(each) for each in inputs)
    except Exception as error:  # transformers has no common class for errors of this file
        raise UserError(f"{where}: {one_line(error)}") from error
    values = processor.to_dict()
    # An input is (pixel - mean) / std, of pixels from 0 to 1.
    std = 1 / (white - black).double().mean(dim=(1, 2))
    mean = 0 - black.double().mean(dim=(1, 2)) * std
    named["mean"] = [float(f"{value:.6g}") for value in mean.tolist()]
    named["std"] = [float(f"{value:.6g}") for value in std.tolist()]
    takes_any_size = wide.shape != tall.shape and not values.get("do_resize", True)
    if takes_any_size or prepare.get("image_size") is not None:
        return named
    pixels = [each * std[:, None, None] + mean[:, None, None] for each in (wide, tall)]
    way = _find_resize(pictures[:2], pixels, values)
    if way is None:
        raise UserError(
            f"{where} prepares pictures in a way that keys of prepare cannot; expected "
            "prepare.image_size=, or prepare.transform, a function of your own"
        )
    return named | way.sizing


def _find_resize(
    pictures: Sequence[Image.Image], pixels: Sequence[Tensor], values: Mapping[str, Any]
) -> Preprocessing | None:
    """Return the resizing that makes these pixels, from 0 to 1, of these pictures, or None.

    ``values`` are the processor's.
    """
    channels, height, width = pixels[0].shape
    if any(each.shape != pixels[0].shape for each in pixels):
        return None
    interpolation = Image.Resampling(values.get("resample", 2)).name.lower()
    shares = [1.0, 0.875, values.get("crop_pct") or 1.0]
    shares += [height / edge for edge in dict(values.get("size") or {}).values() if edge]
    ways = []
    for resize in ("stretch", "crop"):
        for share in shares:
            if 0.1 <= share <= 1:
                own = (resize, round(share, 6), interpolation)
                ways.append(Preprocessing(channels, (height, width), *own))

    def difference(way: Preprocessing) -> float:
        """Return the largest difference of all pixels."""
        largest = 0.0
        for picture, expected in zip(pictures, pixels, strict=True):
            largest = max(largest, (way(picture) / 255 - expected).abs().max().item())
        return largest

    best = min(ways, key=difference)
    return best if difference(best) <= pixel_tolerance(height, width) else None
