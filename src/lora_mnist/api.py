"""The names that ``from lora_mnist import ...`` gives."""

from lora_mnist.classifier import Classifier, Prediction, load_classifier
from lora_mnist.lora.adapter import load_adapter, save_adapter
from lora_mnist.lora.merge import merge_lora, remove_lora, unmerge_lora
from lora_mnist.lora.model import (
    add_lora,
    lora_disabled,
    lora_parameters,
    set_lora_enabled,
    set_lora_scale,
)
from lora_mnist.repair.dial import dial_curve
from lora_mnist.repair.networks import CNN, MLP
from lora_mnist.repair.predictions import compare_errors

__all__ = [
    "CNN",
    "MLP",
    "Classifier",
    "Prediction",
    "add_lora",
    "compare_errors",
    "dial_curve",
    "load_adapter",
    "load_classifier",
    "lora_disabled",
    "lora_parameters",
    "merge_lora",
    "remove_lora",
    "save_adapter",
    "set_lora_enabled",
    "set_lora_scale",
    "unmerge_lora",
]
