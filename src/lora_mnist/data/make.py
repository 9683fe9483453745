"""The data module of a configuration, and the preprocessing that a network itself names."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torchvision.models
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from lora_mnist.data.datamodule import ImageDataModule
from lora_mnist.data.images import Images
from lora_mnist.errors import UserError, config_group, error_in_user_code, one_line


@contextmanager
def user_code_importable(cfg: DictConfig) -> Iterator[None]:
    """Inside the ``with`` block Python also looks for modules in ``cfg.paths.here``."""
    path = list(sys.path)
    sys.path.append(str(cfg.paths.here))
    try:
        yield
    finally:
        sys.path[:] = path


def make_data(cfg: DictConfig, stage: str) -> ImageDataModule:
    """The data of ``cfg.data`` with the images of ``stage``: "fit", "test", or "predict" for none.

    A key that is null has the default of the class. For "predict" no image is needed where
    ``cfg.data`` says how one is prepared.
    """
    target, mistakes = cfg.get("target"), cfg.data.get("mistakes")
    if target is not None and mistakes is not None:
        raise UserError(f"target={target}: expected null, since data.mistakes={mistakes} is learnt")
    settings: Any = OmegaConf.to_container(cfg.data, resolve=True)
    # Only the seed means something else by null: an order that torch draws.
    settings = {k: value for k, value in settings.items() if value is not None or k == "seed"}
    is_known = {"image_size", "mean", "std"} <= settings.keys() or "transform" in settings
    if stage == "predict" and is_known and "classes" in settings:
        settings["data_dir"] = None
    with config_group("data"):
        with user_code_importable(cfg):
            data: ImageDataModule = instantiate(settings, _convert_="all")
        data.setup(stage)
    return data


@torch.no_grad()
def require_compatible(net: nn.Module, data: ImageDataModule, images: Images) -> None:
    """Refuse a network that cannot take ``images`` of ``data``, or has no output for each class."""
    batch, mode = data.normalise(images.take([0, 0])[0]), net.training
    try:
        output: Any = net.eval()(batch)
    except Exception as error:  # whatever the network's own layers raise
        raise UserError(
            f"net: cannot take images of shape {tuple(batch.shape)} from {data.name} "
            f"({error_in_user_code(error) or one_line(error)}); "
            "expected other data.image_size or data.channels"
        ) from error
    net.train(mode)
    expected = (len(batch), len(data.classes))
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != expected:
        raise UserError(
            f"net: gives {shape} for images of shape {tuple(batch.shape)}; expected {expected}, "
            f"since {data.name} has {len(data.classes)} classes"
        )


def own_preprocessing(cfg: DictConfig, net: nn.Module) -> dict[str, Any]:
    """The preprocessing that ``net`` itself names, as arguments of a folder of images.

    It is that of a network of timm, or of the weights of a torchvision network,
    ``cfg.net.weights``. The share to crop belongs to the size that these name, and is left out with
    another. Mean and deviation of more channels than the images have are left out: images are
    measured then.
    """
    weights = cfg.net.get("weights")
    package, _, builder = cfg.net._target_.rpartition(".")
    if "crop_pct" in getattr(net, "pretrained_cfg", {}):
        from timm.data import resolve_model_data_config  # here: an extra, and net has it

        named = resolve_model_data_config(net)
        channels, *original = named.pop("input_size")
        channels = cfg.net.get("in_chans") or channels  # an argument comes first
        size = cfg.net.get("img_size") or original
        is_squashed = named.pop("crop_mode") == "squash"
        named["resize"] = "stretch" if is_squashed else "crop"
    elif isinstance(weights, str) and package.startswith("torchvision.models"):
        members: Any = torchvision.models.get_model_weights(builder)
        transforms = members[weights.rpartition(".")[2]].transforms()
        channels, size, scaled = 3, transforms.crop_size[0], transforms.resize_size[0]
        original = [size, size]
        named = {
            "resize": "crop",
            # Rounded down, since size / crop_pct is cut to whole pixels.
            "crop_pct": math.floor(1e6 * size / scaled) / 1e6,
            "interpolation": transforms.interpolation.value,
            "mean": transforms.mean,
            "std": transforms.std,
        }
    else:
        return {}
    named |= {"mean": list(named["mean"]), "std": list(named["std"])}
    size = cfg.data.get("image_size") or size
    named["image_size"] = [size, size] if isinstance(size, int) else list(size)
    named["channels"] = cfg.data.get("channels") or channels
    if named["image_size"] != list(original):
        del named["crop_pct"]
    if len(named["mean"]) not in (1, named["channels"]):
        del named["mean"], named["std"]
    return named
