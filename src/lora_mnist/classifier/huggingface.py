"""Image classifiers of Hugging Face's transformers: folders that ``save_pretrained`` wrote.

Nothing is downloaded, and no code of a folder runs. The package is an extra, imported late.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from lora_mnist.data.folder import Preparation
from lora_mnist.errors import UserError, one_line

#: What a record calls such a network.
TARGET = "lora_mnist.huggingface"
#: The files of a folder.
_CONFIG, WEIGHTS, _PROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"


def huggingface(config: str) -> nn.Module:
    """A classifier of transformers with fresh weights, in float32.

    Images, (N, channels, height, width), give logits, (N, number of labels): of its outputs, the
    network returns ``logits`` alone. Its tensors have the names that transformers gives them.

    Args:
        config: the content of a config.json.

    Raises:
        ValueError: if transformers makes no image classifier of it.
    """
    from transformers import CONFIG_MAPPING, AutoModelForImageClassification

    values = json.loads(config)
    kind = values.get("model_type")
    if kind not in CONFIG_MAPPING or kind == "timm_wrapper":  # that one downloads
        raise ValueError(f"model_type={kind}; expected a classifier of transformers")
    for key in ("auto_map", "quantization_config"):  # code of its maker, other tensors
        values.pop(key, None)
    # Another attn_implementation may be code to download.
    made = AutoModelForImageClassification.from_config(
        CONFIG_MAPPING[kind].from_dict(values), dtype=torch.float32, attn_implementation=None
    )
    return with_logits(made)


def with_logits(net: Any) -> nn.Module:
    """The network itself, made to return its logits alone."""
    net.register_forward_hook(_logits)
    made: nn.Module = net.eval()
    return made


def _logits(net: nn.Module, images: Any, output: Any) -> Tensor:
    logits: Tensor = output.logits
    return logits


def from_folder(net: Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """A network's arguments with the content of a config.json for ``folder``, and that folder."""
    if net.get("_target_") != TARGET or net.get("folder") is None:
        return dict(net), None
    folder = Path(str(net["folder"])).expanduser()
    try:
        config = json.dumps(json.loads((folder / _CONFIG).read_text()))
    except (OSError, ValueError) as error:
        raise UserError(
            f"net.folder={folder}: {one_line(error)}; expected a folder with {_CONFIG} and "
            f"{WEIGHTS}, as save_pretrained writes it"
        ) from error
    return {"_target_": TARGET, "config": config}, folder


def renamed(net: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors of a file by their names in ``net``: transformers has renamed some since."""
    own: Any = net
    if not hasattr(net, "huggingface_processor") or tensors.keys() == net.state_dict().keys():
        return tensors
    with _quiet(), suppress(RuntimeError):  # of tensors that do not fit, which are told later
        loaded, wrong = type(own).from_pretrained(
            None,
            config=own.config,
            state_dict=dict(tensors),
            dtype=torch.float32,
            output_loading_info=True,
        )
        if not any(wrong.values()):
            named: dict[str, Tensor] = loaded.state_dict()
            return named
    return tensors


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside the ``with`` block transformers shows no bars, and says nothing but errors."""
    from transformers.utils import logging

    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()


def image_processor(folder: Path) -> Any:
    """What prepares pictures for the network of a folder; ``None``: it has no file for that."""
    from transformers import AutoImageProcessor

    if not (folder / _PROCESSOR).is_file():
        return None
    try:
        with _quiet():
            return AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # transformers has no one class for what such a file causes
        raise UserError(f"net.folder={folder}: {_PROCESSOR}: {one_line(error)}") from error


def preprocessing_of(net: Any, prepare: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``prepare`` that are the network's own: the order of its classes, its processor.

    Which ways of sizing are the processor's is found by trying them on pictures. With another
    ``image_size``, its way is not taken. UserError, if it does something else.
    """
    channels: int = prepare.get("channels") or int(getattr(net.config, "num_channels", 3))
    named: dict[str, Any] = {"channels": channels}
    labels = [str(net.config.id2label[number]) for number in range(net.config.num_labels)]
    if not all(re.fullmatch(r"LABEL_\d+", label) for label in labels):  # as nobody has named them
        named["classes"] = labels
    processor = net.huggingface_processor
    if processor is None or prepare.get("transform") is not None:
        return named
    mode = "RGB" if channels == 3 else "L"
    sizes = ((600, 400), (400, 600))
    try:
        black, white = (_input(processor, Image.new(mode, sizes[0], c)) for c in ("black", "white"))
        pictures = [_gradients(size).convert(mode) for size in sizes]
        inputs = [_input(processor, picture) for picture in pictures]
    except Exception as error:  # whatever a processor raises
        raise UserError(f"net.folder: {_PROCESSOR}: {one_line(error)}") from error
    # Of (pixel - mean) / std, for pixels from 0 to 1.
    std = 1 / (white - black).double().mean(dim=(1, 2))
    mean = -black.double().mean(dim=(1, 2)) * std
    for key, value in (("mean", mean), ("std", std)):
        named[key] = [float(f"{each:.6g}") + 0.0 for each in value.tolist()]  # no -0.0
    values, is_of_any_size = processor.to_dict(), inputs[0].shape != inputs[1].shape
    is_as_read = is_of_any_size and not values.get("do_resize", True)
    if prepare.get("image_size") is not None or is_as_read:
        return named
    if is_of_any_size:
        raise UserError(
            f"net.folder: {_PROCESSOR} gives pictures of several sizes; expected "
            "prepare.image_size=, one for all"
        )
    height, width = inputs[0].shape[1:]
    interpolation = Image.Resampling(values.get("resample", 2)).name.lower()
    named |= {"image_size": [height, width], "interpolation": interpolation}
    shares = [1.0, 0.875, values.get("crop_pct") or 1.0]
    shares += [height / edge for edge in dict(values.get("size") or {}).values() if edge]
    # Rounded down, since size / crop_pct is cut to whole pixels.
    shares = [math.floor(1e6 * share) / 1e6 for share in shares if 0.1 <= share <= 1]
    least = math.inf
    for resize, share in product(("stretch", "crop"), shares):
        way = Preparation(channels, (height, width), resize, share, interpolation, None)
        furthest = 0.0  # of all pixels, from 0 to 1
        for picture, expected in zip(pictures, inputs, strict=True):
            pixels = expected * std[:, None, None] + mean[:, None, None]
            furthest = max(furthest, (way(picture) / 255 - pixels).abs().max().item())
        if furthest < least:
            least = furthest
            named |= {"resize": resize, "crop_pct": share}
    if least > 2 / min(height, width, 128):  # rounded otherwise, it is cropped a pixel beside
        raise UserError(
            f"net.folder: {_PROCESSOR} prepares pictures as no keys of prepare do; expected "
            "prepare.transform, a function of your own"
        )
    return named


def _input(processor: Any, picture: Image.Image) -> Tensor:
    """What the network is given of a picture, (channels, height, width)."""
    pixels: Tensor = processor(picture, return_tensors="pt")["pixel_values"][0]
    if pixels.ndim != 3:
        raise ValueError(f"gives inputs of shape {tuple(pixels.shape)}")
    return pixels


def _gradients(size: tuple[int, int]) -> Image.Image:
    """A smooth picture in which each place and each channel differs."""
    gradient = Image.linear_gradient("L")
    bands = (gradient, gradient.rotate(90), Image.radial_gradient("L"))
    return Image.merge("RGB", bands).resize(size)


def save_folder(net: Any, preprocessing: Mapping[str, Any], folder: Path) -> nn.Module:
    """Write a folder for ``from_pretrained``; return its network, read back."""
    from transformers import AutoModelForImageClassification, BitImageProcessor

    classes = preprocessing["classes"]
    net.config.id2label = dict(enumerate(classes))
    net.config.label2id = {name: number for number, name in enumerate(classes)}
    values: dict[str, Any] = {"do_resize": False, "do_center_crop": False}
    if (sides := preprocessing.get("image_size")) is not None:
        height, width = (math.floor(side / preprocessing["crop_pct"] + 0.02) for side in sides)
        size = {"height": height, "width": width}
        if preprocessing["resize"] == "crop":
            size = {"shortest_edge": height}
            if height != width:
                raise UserError(
                    f"prepare.image_size={sides}: expected a square, or prepare.resize=stretch, "
                    "since the processor of a folder says no other"
                )
        mode = preprocessing["interpolation"].removesuffix("-exact").upper()
        values = {
            "size": size,
            "resample": Image.Resampling[mode],
            "crop_size": {"height": sides[0], "width": sides[1]},
        }
    for key in ("mean", "std"):
        value = preprocessing[key]
        values[f"image_{key}"] = value if isinstance(value, list) else [value]
    is_colour = preprocessing.get("channels", 1) == 3
    with _quiet():
        net.save_pretrained(folder)
        BitImageProcessor(**values, do_convert_rgb=is_colour).save_pretrained(folder)
        return with_logits(
            AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
        )
