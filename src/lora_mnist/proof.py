"""What is proven of a training: that the base did not move, and that something was learnt."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn

from lora_mnist.classifier import Classifier
from lora_mnist.data import Images
from lora_mnist.disk.base import Base
from lora_mnist.errors import UserError
from lora_mnist.lora.base_state import base_state_dict, changed_tensors
from lora_mnist.repair.networks import evaluating
from lora_mnist.repair.significance import knows_validation

log = logging.getLogger(__name__)


def refuse_moving_base(trainer: Trainer, classifier: Classifier, images: Images) -> None:
    """Refuse a network that changes its own tensors in a forward pass, such as a counter of calls.

    The proof after training would fail. The random generators stay as they were.
    """
    net, base, device = classifier.net, classifier.base, trainer.strategy.root_device
    assert base is not None
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), evaluating(net, device), torch.no_grad():
        net(classifier.dataset.normalise(images.take([0])[0].to(device)))
    if changed := changed_tensors(base.tensors, base_state_dict(net)):
        target = classifier.settings["net"]["_target_"]
        raise UserError(
            f"net._target_={target}: expected a network that changes no tensor of its own while it "
            f"predicts, since the base is kept bit for bit; {changed[0]} has changed"
        )


def prove_unchanged(base: Base, net: nn.Module) -> None:
    """Prove that the base in ``net`` is what it was, bit for bit."""
    changed = changed_tensors(base.tensors, base_state_dict(net))
    if changed:
        raise RuntimeError(f"training the adapter changed the base: {', '.join(changed)}")
    log.info("base unchanged: %d tensors, bit for bit", len(base.tensors))


def warn_of_known_validation(outcomes: Mapping[str, Any], val_from: str) -> None:
    """Warn if the base makes far fewer errors on validation images than on test images.

    ``val_from`` is the part that these were taken from, ``train`` or ``test``.
    """
    if "val_base" not in outcomes:
        return
    val, test = outcomes["val_base"], outcomes["test_base"]
    if knows_validation(val, test):
        instead = ", or data.val_from=test" if val_from == "train" else ""
        log.warning(
            "the base has probably been trained on the validation images: it has %d of %d wrong, "
            "and %d of %d test images. Their advice may do harm; expected images that it has not "
            "seen%s",
            val["errors"],
            sum(val["images_per_class"]),
            test["errors"],
            sum(test["images_per_class"]),
            instead,
        )


def why_useless(outcomes: Mapping[str, Any], classes: Sequence[str], rate: float) -> str | None:
    """Why a network is useless: it is right no more often than by always saying the same class.

    ``None`` if it is better, or if its base was no better.
    """
    split = "val" if "val" in outcomes else "test"
    outcome, before = outcomes[split], outcomes.get(f"{split}_base")
    images, accuracy = outcome["images_per_class"], outcome["accuracy"]
    share = max(images) / sum(images)
    if accuracy > share or (before is not None and before["accuracy"] <= share):
        return None
    commonest = classes[images.index(max(images))]
    return (
        f"optimizer.lr={rate}: {accuracy:.1%} of the {split} images are right, no more than by "
        f"always saying {commonest}; expected another learning rate"
    )
