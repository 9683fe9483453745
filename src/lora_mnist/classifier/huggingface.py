"""Image classifiers of Hugging Face's transformers: folders that ``save_pretrained`` wrote.

Nothing is downloaded, and no code of a folder runs. The package is an extra, imported late.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from lora_mnist.data.folder import Preparation, size_before_crop
from lora_mnist.errors import UserError, one_line, require_extra

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
        UserError: if transformers is not installed.
        ValueError: if it makes no image classifier of ``config``.
    """
    require_extra(f"net._target_={TARGET}", "huggingface", "transformers")
    from transformers import CONFIG_MAPPING, AutoModelForImageClassification

    values = json.loads(config)
    kind = values.get("model_type")
    if kind not in CONFIG_MAPPING or kind == "timm_wrapper":  # that one downloads
        raise ValueError(f"model_type={kind}; expected a classifier of transformers")
    for key in ("auto_map", "quantization_config"):  # code of its maker, other tensors
        values.pop(key, None)
    # Another attn_implementation may be code to download.
    return with_logits(
        AutoModelForImageClassification.from_config(
            CONFIG_MAPPING[kind].from_dict(values), dtype=torch.float32, attn_implementation=None
        )
    )


def with_logits(net: nn.Module) -> nn.Module:
    """The network itself, in eval mode, made to return its logits alone."""
    net.register_forward_hook(_logits)
    return net.eval()


def _logits(net: nn.Module, images: Any, output: Any) -> Any:
    return output.logits


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
    if not hasattr(net, "huggingface_folder") or tensors.keys() == net.state_dict().keys():
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


def preprocessing_of(net: Any, prepare: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``prepare`` that are the network's own: the order of its classes, its processor.

    With another ``image_size``, the processor's way of sizing is not taken. UserError, if no keys
    say what it does.
    """
    from transformers import AutoImageProcessor

    channels: int = prepare.get("channels") or int(getattr(net.config, "num_channels", 3))
    named: dict[str, Any] = {"channels": channels}
    labels = [str(net.config.id2label[number]) for number in range(net.config.num_labels)]
    if not all(re.fullmatch(r"LABEL_\d+", label) for label in labels):  # as nobody has named them
        named["classes"] = labels
    folder = net.huggingface_folder
    has_processor = folder is not None and (folder / _PROCESSOR).is_file()
    if not has_processor or prepare.get("transform") is not None:
        return named
    key = f"net.folder={folder}: {_PROCESSOR}"
    # Each family reads its values in another way, so the processor is tried: on smooth pictures,
    # in which each place and each channel differs, and on plain ones.
    gradient = Image.linear_gradient("L")
    picture = Image.merge("RGB", (gradient, gradient.rotate(90), Image.radial_gradient("L")))
    pictures = [picture.resize((600, 400)), picture.resize((400, 600))]
    pictures += [Image.new("RGB", (600, 400), colour) for colour in ("black", "white")]
    pictures = [picture.convert("RGB" if channels == 3 else "L") for picture in pictures]
    try:
        processor = AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        inputs = processor(pictures)["pixel_values"]
        wide, tall, black, white = (torch.as_tensor(each) for each in inputs)
    except Exception as error:  # transformers has no one class for what such a file causes
        raise UserError(f"{key}: {one_line(error)}") from error
    # An input is (pixel - mean) / std, of pixels from 0 to 1.
    std = 1 / (white - black).double().mean(dim=(1, 2))
    mean = 0 - black.double().mean(dim=(1, 2)) * std
    named["mean"] = [float(f"{value:.6g}") for value in mean.tolist()]
    named["std"] = [float(f"{value:.6g}") for value in std.tolist()]
    if prepare.get("image_size") is not None:
        return named
    values = processor.to_dict()
    if wide.shape != tall.shape:
        if not values.get("do_resize", True):
            return named  # pictures are taken as they are
        raise UserError(
            f"{key} gives pictures of several sizes; expected prepare.image_size=, one for all"
        )
    height, width = wide.shape[1:]
    interpolation = Image.Resampling(values.get("resample", 2)).name.lower()
    pixels = [each * std[:, None, None] + mean[:, None, None] for each in (wide, tall)]
    shares = [1.0, 0.875, values.get("crop_pct") or 1.0]
    shares += [height / edge for edge in dict(values.get("size") or {}).values() if edge]
    differences = {}  # the largest of all pixels, from 0 to 1
    for resize, share in product(("stretch", "crop"), shares):
        if not 0.1 <= share <= 1:
            continue
        crop_pct = round(share, 6)
        way = Preparation(channels, (height, width), resize, crop_pct, interpolation, None)
        difference = 0.0
        for picture, expected in zip(pictures[:2], pixels, strict=True):
            difference = max(difference, (way(picture) / 255 - expected).abs().max().item())
        differences[resize, crop_pct] = difference
    best = min(differences, key=lambda each: differences[each])
    if differences[best] > 2 / min(height, width, 128):  # a crop may lie a pixel beside
        raise UserError(
            f"{key} prepares pictures as no keys of prepare do; expected prepare.transform, a "
            "function of your own"
        )
    named |= {"image_size": [height, width], "interpolation": interpolation}
    named["resize"], named["crop_pct"] = best
    return named


def save_folder(net: Any, preprocessing: Mapping[str, Any], folder: Path) -> nn.Module:
    """Write a folder for ``from_pretrained``; return its network, read back."""
    from transformers import AutoModelForImageClassification, BitImageProcessor

    classes = preprocessing["classes"]
    net.config.id2label = dict(enumerate(classes))
    net.config.label2id = {name: number for number, name in enumerate(classes)}
    values: dict[str, Any] = {"do_resize": False, "do_center_crop": False}
    if (sides := preprocessing.get("image_size")) is not None:
        height, width = size_before_crop(sides, preprocessing["crop_pct"])
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
