"""The networks that are pretrained and then repaired: three of ours, or anybody's."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from inspect import signature
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.models
from torch import Tensor, nn

from lora_mnist.classifier.huggingface import TARGET, preprocessing_of
from lora_mnist.errors import SIZING, UserError, config_group, require
from lora_mnist.project import importable


class MLP(nn.Sequential):
    """Fully connected classifier with ReLU between its layers, ``linear1`` to ``linearN``.

    Images, (N, ...) with ``in_features`` values each, give logits, (N, num_classes). With the
    default sizes it is the notebook's ``RichBoyNet``: 784-1000-2000-10, 2,807,010 parameters, far
    larger than the task needs so that LoRA has something to be small beside.

    Args:
        in_features: number of input values per image, all dimensions but the first.
        hidden_sizes: width of each hidden layer.
        num_classes: number of logits.
    """

    def __init__(
        self,
        in_features: int = 28 * 28,
        hidden_sizes: Sequence[int] = (1000, 2000),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        sizes = [in_features, *hidden_sizes, num_classes]
        for number, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
            if number > 1:
                self.add_module(f"relu{number - 1}", nn.ReLU())
            self.add_module(f"linear{number}", nn.Linear(fan_in, fan_out))


class CNN(nn.Sequential):
    """Convolutional classifier: ``conv1`` to ``convN`` with ReLU and pooling, then ``linear1``.

    Images, (N, in_channels, image_size, image_size), give logits, (N, num_classes). Each
    convolution is 3x3 with padding, each max-pooling 2x2. With the default sizes it has 20,490
    parameters, and is the better classifier; it shows that nothing here is tied to the MLP.

    Args:
        in_channels: channels of the images.
        channels: output channels of each convolution.
        image_size: height and width of the images, at least ``2 ** len(channels)``.
        num_classes: number of logits.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32),
        image_size: int = 28,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        for number, (fan_in, fan_out) in enumerate(pairwise([in_channels, *channels]), start=1):
            self.add_module(f"conv{number}", nn.Conv2d(fan_in, fan_out, 3, padding=1))
            self.add_module(f"relu{number}", nn.ReLU())
            self.add_module(f"pool{number}", nn.MaxPool2d(2))
        side = image_size >> len(channels)  # pooling rounds down
        self.flatten = nn.Flatten()
        self.linear1 = nn.Linear(channels[-1] * side * side, num_classes)


class ResNet(nn.Sequential):
    """Residual network for small images: He et al. 2016, arXiv:1512.03385, section 4.2.

    Images, (N, in_channels, height, width), give logits, (N, num_classes). The layers are ``conv1``
    and ``bn1``, three stages of blocks of 16, 32 and 64 channels, ``block1`` to ``blockN``, and,
    after the mean of each channel, ``linear1``. With the default sizes it has 269,722 parameters.

    Args:
        depth: number of layers with weights, ``6 n + 2`` for ``n`` blocks a stage.
        in_channels: channels of the images.
        num_classes: number of logits.
    """

    def __init__(self, depth: int = 20, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        require(blocks > 0 and rest == 0, "depth", depth, "6 n + 2, such as 20, 32 or 56")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu1 = nn.ReLU()
        channels = [16] * (blocks + 1) + [32] * blocks + [64] * blocks
        for number, (fan_in, fan_out) in enumerate(pairwise(channels), start=1):
            self.add_module(f"block{number}", _Block(fan_in, fan_out))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear1 = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)


class _Block(nn.Module):
    """Two convolutions; their input is added, of half the size where the channels are doubled."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.stride, self.added = fan_out // fan_in, fan_out - fan_in
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out)

    def forward(self, images: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(images)).relu()))
        # The paper's option A: new channels get zeros, and no weights.
        shortcut = images[:, :, :: self.stride, :: self.stride]
        total: Tensor = out + F.pad(shortcut, (0, 0, 0, 0, 0, self.added))
        return total.relu()


_OURS = (MLP, CNN, ResNet)
#: Our networks, by the names that configurations and records have; the first is the default.
NETWORKS = {f"lora_mnist.{each.__name__}": each for each in _OURS}
DEFAULT = next(iter(NETWORKS))


def build(arguments: Any, is_transform: bool = False) -> Any:
    """Call what each ``_target_`` names, as Hydra's ``instantiate`` does, but without Hydra.

    Unlike there, a function of a picture may stand under the key ``transform``: it is not called.
    """
    if isinstance(arguments, Mapping):
        values = {}
        for key, value in arguments.items():
            if key != "_convert_":
                values[key] = build(value, is_transform or key == "transform")
        if "_target_" not in values:
            return values
        function = resolve_name(values.pop("_target_"))
        is_partial = values.pop("_partial_", False)
        if is_partial or (is_transform and _takes_a_picture(function, values)):
            return partial(function, **values)
        return function(**values)
    if isinstance(arguments, Sequence) and not isinstance(arguments, str):
        return [build(value, is_transform) for value in arguments]
    return arguments


def _takes_a_picture(function: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether ``function`` is a transform itself: one argument is missing, the picture."""
    if isinstance(function, type):
        return False  # it makes one
    if isinstance(function, nn.Module):  # such as a Compose that stands in the user's file
        return True
    missing = 0
    for name, parameter in signature(function).parameters.items():
        is_given = name in arguments or parameter.default is not parameter.empty
        if not is_given and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            missing += 1
    return missing == 1


def build_network(arguments: Mapping[str, Any], folder: Path | None = None) -> nn.Module:
    """The network of these arguments, with fresh weights, in eval mode.

    ``folder`` is the one of Hugging Face's that it comes from, if there is one.
    """
    key = f"net._target_={arguments.get('_target_')}"
    try:
        with importable(), config_group(key):
            net = build(arguments)
    except UserError as error:
        if "Unknown model" not in str(error):
            raise
        import timm  # here: an extra

        nearest = get_close_matches(str(arguments["model_name"]), timm.list_models())
        raise UserError(f"{error}; the nearest: {', '.join(nearest)}") from error
    if arguments.get("_target_") == TARGET:
        net.huggingface_folder = folder
    if not isinstance(net, nn.Module):
        raise UserError(f"{key}: gives a {type(net).__name__}")
    # In train mode, batch normalisation would move its running statistics.
    return net.eval()


def outputs_key(arguments: Mapping[str, Any]) -> str | None:
    """The key of the number of outputs of a network with these arguments, if it has one."""
    parameters = signature(resolve_name(arguments["_target_"])).parameters
    for name in ("num_classes", "nc"):  # nc: Ultralytics
        if name in parameters:
            return f"net.{name}"
    has_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return "net.num_classes" if has_any else None  # as timm and torchvision hand them on


@torch.no_grad()
def check_outputs(net: nn.Module, images: Tensor, num_classes: int, dataset: str) -> None:
    """Refuse a network that cannot take these images, or does not give a logit for each class."""
    shape = tuple(images.shape)
    try:
        output: Any = net(images)
    except Exception as error:  # whatever the network's own layers raise
        reason = (
            f"images of shape {shape} from {dataset}; expected another net, such as net=resnet20"
        )
        reason += ", other sizes of its own, or other prepare.image_size or prepare.channels"
        if isinstance(net, _OURS):
            raise UserError(f"net: {type(net).__name__} cannot take {reason}") from error
        error.add_note(f"net: {reason}?")
        raise
    expected = (len(images), num_classes)
    given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if given != expected:
        raise UserError(
            f"net: gives {given} for images of shape {shape}; expected {expected}, since "
            f"{dataset} has {num_classes} classes"
        )
    if not output.isfinite().all():
        raise UserError("net: gives NaN or infinity; expected finite logits")
    # Rounding is far smaller, in half precision too.
    most = 0.02 * max(output.std().item(), 1e-6)
    alone = torch.cat([net(image[None]) for image in images])
    if alone.shape != output.shape or (alone - output).abs().max() > most:
        raise UserError(
            "net: gives an image another output when it is asked alone; expected the same each time"
        )
    sums = output.sum(dim=1)
    if output.min() >= 0 and output.max() <= 1 and (sums - 1).abs().max() < 1e-3:
        raise UserError("net: its outputs sum to 1, as after a softmax; expected logits")


@torch.no_grad()
def lay_out(net: nn.Module, images: Tensor) -> None:
    """Lay a network of convolutions out in memory as they compute fastest: channels last.

    One that calls ``view`` on an image raises on it, and stays as it was.
    """
    if sum(isinstance(module, nn.Conv2d) for module in net.modules()) < 2:
        return  # a vision transformer has one, and gains nothing
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        net(images)
    except RuntimeError:
        net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def own_preprocessing(
    net: nn.Module, net_arguments: Mapping[str, Any], prepare: Mapping[str, Any]
) -> dict[str, Any]:
    """The preprocessing of a network's own: timm's, Hugging Face's, torchvision's ``net.weights``.

    With another ``image_size`` than theirs, their way to bring pictures to a size is not taken.
    """
    if hasattr(net, "huggingface_folder"):
        return preprocessing_of(net, prepare)
    weights = net_arguments.get("weights")
    package, _, builder = str(net_arguments["_target_"]).rpartition(".")
    if "crop_pct" in getattr(net, "pretrained_cfg", {}):
        import timm.data  # here: an extra, and net has it

        named: dict[str, Any] = timm.data.resolve_model_data_config(net)
        channels, *original = named.pop("input_size")
        named["channels"] = net_arguments.get("in_chans") or channels  # an argument comes first
        size = net_arguments.get("img_size") or original
        named["image_size"] = [size, size] if isinstance(size, int) else list(size)
        if named["image_size"] != original:
            del named["crop_pct"]  # it belongs to that size
        named["resize"] = "stretch" if named.pop("crop_mode") == "squash" else "crop"
    elif isinstance(weights, str) and package.startswith("torchvision.models"):
        members: Any = torchvision.models.get_model_weights(builder)
        transforms = members[weights.rpartition(".")[2]].transforms()
        size, scaled = transforms.crop_size[0], transforms.resize_size[0]
        named = {
            "channels": 3,
            "image_size": [size, size],
            "resize": "crop",
            "crop_pct": round(size / scaled, 6),
            "interpolation": transforms.interpolation.value,
            "mean": transforms.mean,
            "std": transforms.std,
        }
    else:
        return {}
    named |= {"mean": list(named["mean"]), "std": list(named["std"])}
    named["channels"] = prepare.get("channels") or named["channels"]
    if prepare.get("image_size") is not None:
        for key in SIZING:
            named.pop(key, None)
    if len(named["mean"]) not in (1, named["channels"]):
        del named["mean"], named["std"]  # images are measured
    return named


def device_of(accelerator: str, key: str = "accelerator") -> torch.device:
    """The device that one of Lightning's words means: ``auto``, ``cpu``, ``gpu`` or ``mps``.

    ``key`` is the one that has it, for a refusal.
    """
    own = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator == "cpu" or (accelerator == "auto" and own is None):
        return torch.device("cpu")
    if own is None or (accelerator == "mps" and own.type != "mps"):
        has = f"a {own.type} device" if own else "no GPU"
        raise UserError(f"{key}={accelerator}: expected auto or cpu; this machine has {has}")
    return own
