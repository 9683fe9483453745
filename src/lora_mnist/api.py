"""The names that ``from lora_mnist import ...`` gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lora_mnist.classifier.classifier import Classifier, Prediction
from lora_mnist.classifier.huggingface import huggingface
from lora_mnist.classifier.networks import CNN, MLP, ResNet
from lora_mnist.lora.adapter import load_adapter, save_adapter
from lora_mnist.lora.model import (
    add_lora,
    lora_disabled,
    lora_parameters,
    merge_lora,
    remove_lora,
    set_lora_enabled,
    set_lora_offset,
    set_lora_scale,
    unmerge_lora,
)
from lora_mnist.measure.counts import compare_errors
from lora_mnist.measure.scale_curve import scale_curve

__all__ = [
    "CNN",
    "MLP",
    "Classifier",
    "Prediction",
    "ResNet",
    "add_lora",
    "compare_errors",
    "huggingface",
    "load_adapter",
    "load_classifier",
    "lora_disabled",
    "lora_parameters",
    "merge_lora",
    "remove_lora",
    "save_adapter",
    "scale_curve",
    "set_lora_enabled",
    "set_lora_offset",
    "set_lora_scale",
    "unmerge_lora",
]


def load_classifier(
    adapter: str | Path | None = None,
    base: str | Path | None = None,
    *,
    net: nn.Module | None = None,
    transform: Callable[[Any], Tensor] | None = None,
) -> Classifier:
    """Load a classifier, with its adapter where one is named, ready to predict pictures.

    Network, classes and preprocessing follow from the files; no training image is needed.
    Code that a file names is run only if it is torchvision's, timm's or ours; for any other, pass
    ``net`` or ``transform``.

    Args:
        adapter: the folder of an adapter, or of the run that left it; ``None``: the base alone.
        base: the file of the base; ``None``: the one in ``outputs/base`` for which the adapter was
            made, found by its SHA-256, or the current one.
        net: the network, which gets the base's weights. ``None``: the network in the record.
        transform: from a picture of Pillow to the network's input, (channels, height, width);
            ``None``: as the files say.

    Raises:
        UserError: if a file is missing, does not fit, or names code of its maker.
    """
    prepare = {} if transform is None else {"transform": transform}
    classifier = Classifier.load(adapter, base, net=net, prepare=prepare)
    classifier.check_network()
    return classifier
