"""Image classifiers of Hugging Face's transformers: folders that ``save_pretrained`` wrote.

Nothing is downloaded, and no code of a folder runs. The package is an extra, imported late.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from lora_mnist.data.pictures import size_before_crop
from lora_mnist.errors import UserError, one_line, require_extra
from lora_mnist.project import expand_path

#: The ``_target_`` of such a network in a record.
TARGET = "lora_mnist.huggingface"
#: The files of a folder.
_CONFIG, WEIGHTS, PROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"


def huggingface(config: str) -> nn.Module:
    """Build a classifier of transformers with fresh weights, in float32.

    The network takes images, (N, channels, height, width), and returns only logits, (N, number of
    labels). Its tensors have the names that transformers gives them.

    Args:
        config: the content of a config.json.

    Raises:
        UserError: if transformers is not installed.
        ValueError: if transformers builds no image classifier from ``config``.
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
    """Make a network return its logits alone; return this network, in eval mode."""
    net.register_forward_hook(_logits)
    return net.eval()


def _logits(net: nn.Module, images: Any, output: Any) -> Any:
    return output.logits


def read_folder(net: Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """Return a network's arguments with a config.json's content for ``folder``, and the folder."""
    if net.get("_target_") != TARGET or net.get("folder") is None:
        return dict(net), None
    folder = expand_path(net["folder"])
    try:
        config = json.dumps(json.loads((folder / _CONFIG).read_text()))
    except (OSError, ValueError) as error:
        raise UserError(
            f"net.folder={folder}: {one_line(error)}; expected a folder with {_CONFIG} and "
            f"{WEIGHTS}, as save_pretrained writes it"
        ) from error
    if others := {key for key, value in net.items() if value is not None} - {"_target_", "folder"}:
        raise UserError(f"net.{min(others)}: expected no key beside net.folder; {_CONFIG} has them")
    return {"_target_": TARGET, "config": config}, folder


def rename_tensors(net: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a file's tensors by their names in ``net``: transformers has renamed some."""
    own: Any = net
    if tensors.keys() == net.state_dict().keys():
        return tensors
    with _quiet(), suppress(RuntimeError):  # of tensors that do not fit, which are reported later
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
    """Hide the bars and warnings of transformers inside the ``with`` block."""
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


def load_processor(folder: Path) -> Any:
    """Load the image processor from a network's folder."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )


def draw_test_pictures(channels: int) -> list[Image.Image]:
    """Draw a wide and a tall picture, both smooth, to compare preprocessing on."""
    gradient = Image.linear_gradient("L")
    smooth = Image.merge("RGB", (gradient, gradient.rotate(90), Image.radial_gradient("L")))
    smooth = smooth.convert("RGB" if channels == 3 else "L")
    return [smooth.resize((600, 400)), smooth.resize((400, 600))]


def pixel_tolerance(height: int, width: int) -> float:
    """Return the largest allowed difference of pixels in 0..1: a crop may be off by one pixel."""
    return 2 / min(height, width, 128)


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
                    "since a folder's processor has no other resizing"
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
    is_color = preprocessing.get("channels", 1) == 3
    with _quiet():
        net.save_pretrained(folder)
        BitImageProcessor(**values, do_convert_rgb=is_color).save_pretrained(folder)
        return with_logits(
            AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
        )
