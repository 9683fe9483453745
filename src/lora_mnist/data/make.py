"""The data module of a configuration, with the preprocessing that the network itself names."""

import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torchvision.models
from hydra.utils import instantiate
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig
from torch import Tensor, nn

from lora_mnist.data.datamodule import ImageDataModule
from lora_mnist.errors import UserError, config_group, one_line

_info = rank_zero_only(logging.getLogger(__name__).info)


@contextmanager
def code_of(cfg: DictConfig) -> Iterator[None]:
    """Inside the ``with`` block Python also looks for modules where the command was started."""
    path = list(sys.path)
    sys.path.append(str(cfg.paths.here))
    try:
        yield
    finally:
        sys.path[:] = path


def make_data(cfg: DictConfig, stage: str, net: nn.Module | None = None) -> ImageDataModule:
    """The data of ``cfg.data`` with the images of ``stage``: "fit", "test", or "predict" for none.

    Keys that are null take what ``net`` itself names; see :func:`missing_settings`. ``UserError``,
    if it cannot take the images.
    """
    target, mistakes = cfg.get("target"), cfg.data.get("mistakes")
    if target is not None and mistakes is not None:
        raise UserError(f"target={target}: expected null, since data.mistakes={mistakes} is learnt")
    with config_group("data"):
        changes = {} if net is None else missing_settings(cfg, net)
        if changes:
            text = " ".join(f"data.{key}={value}" for key, value in changes.items())
            _info("%s: the network's own preprocessing", text.replace(", ", ","))
        with code_of(cfg):
            data: ImageDataModule = instantiate(cfg.data, _convert_="all", **changes)
        data.setup(stage)
    if net is not None and stage != "predict":
        images = data.train_set if stage == "fit" else data.test_set
        require_compatible(net, data, images.take([0, 0])[0])
    return data


@torch.no_grad()
def require_compatible(net: nn.Module, data: ImageDataModule, images: Tensor) -> None:
    """Refuse a network that cannot take ``images`` of ``data``, or has no output for each class."""
    batch, mode = data.normalise(images), net.training
    try:
        output: Any = net.eval()(batch)
    except Exception as error:  # whatever the network's own layers raise
        raise UserError(
            f"net: cannot take images of shape {tuple(batch.shape)} from {data.name} "
            f"({one_line(error)})"
        ) from error
    net.train(mode)
    expected = (len(batch), len(data.classes))
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != expected:
        raise UserError(
            f"net: gives {shape} for images of shape {tuple(batch.shape)}; expected {expected}, "
            f"since {data.name} has {len(data.classes)} classes"
        )


def missing_settings(cfg: DictConfig, net: nn.Module) -> dict[str, Any]:
    """The keys of ``cfg.data`` that are null, as the network itself names them.

    A network of timm has a ``pretrained_cfg``; the weights of a torchvision network,
    ``cfg.net.weights``, have ``transforms()``. Mean and deviation of more channels than the images
    have are left out: images are measured then.
    """
    if "image_size" not in cfg.data or cfg.data.get("transform"):
        return {}
    timm, weights = getattr(net, "pretrained_cfg", None), cfg.net.get("weights")
    package, _, builder = cfg.net._target_.rpartition(".")
    if isinstance(timm, dict) and "crop_pct" in timm:
        size = cfg.net.get("img_size") or timm["input_size"][1:]  # an argument comes first
        named = {
            "image_size": [size, size] if isinstance(size, int) else list(size),
            "resize": "stretch" if timm.get("crop_mode") == "squash" else "crop",
            "crop_pct": timm["crop_pct"],
            "interpolation": timm["interpolation"],
            "mean": list(timm["mean"]),
            "std": list(timm["std"]),
        }
    elif isinstance(weights, str) and package.startswith("torchvision.models"):
        members: Any = torchvision.models.get_model_weights(builder)
        transforms = members[weights.rpartition(".")[2]].transforms()
        size, scaled = transforms.crop_size[0], transforms.resize_size[0]
        named = {
            "image_size": [size, size],
            "resize": "crop",
            # Rounded down, since size / crop_pct is cut to whole pixels.
            "crop_pct": math.floor(1e6 * size / scaled) / 1e6,
            "interpolation": transforms.interpolation.value,
            "mean": list(transforms.mean),
            "std": list(transforms.std),
        }
    else:
        return {}
    settings = {}
    for key, value in named.items():
        fits = key not in ("mean", "std") or len(value) in (1, cfg.data.channels)
        if fits and key in cfg.data and cfg.data[key] is None:
            settings[key] = value
    return settings
