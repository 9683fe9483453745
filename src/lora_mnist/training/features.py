"""Features: the inputs of a network's last linear layer, computed once for each image.

The layers before it are frozen, so one pass through the network is enough for a training of the
last layer alone, and its steps cost next to nothing: Kang et al. 2020, "Decoupling Representation
and Classifier for Long-Tailed Recognition", arXiv:1910.09217 (cRT).
"""

import copy
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lora_mnist.data import Images
from lora_mnist.data.dataset import ImageDataset
from lora_mnist.lora.point import BASE
from lora_mnist.measure.predictions import logits_at
from lora_mnist.training.fit import build_datamodule
from lora_mnist.training.session import Session
from lora_mnist.training.trials import Training


class LastLayer(nn.Module):
    """The last linear layer of a network, under its name in the network; both share it."""

    def __init__(self, net: nn.Module, name: str) -> None:
        super().__init__()
        self.layer_name, parent = name, self
        *parents, last = name.split(".")
        for each in parents:
            parent.add_module(each, nn.Module())
            parent = getattr(parent, each)
        parent.add_module(last, net.get_submodule(name))

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of features, (N, D)."""
        logits: Tensor = self.get_submodule(self.layer_name)(features)
        return logits


class FeatureDataset(ImageDataset):
    """The classes of a data set whose images are features, which are not normalized again."""

    def __init__(self, dataset: ImageDataset) -> None:
        super().__init__(dataset.name, dataset.classes, dataset.channels)
        self.split_settings = dataset.split_settings

    def normalize(self, images: Tensor) -> Tensor:
        return images


def use_features(session: Session, training: Training) -> tuple[Session, Training]:
    """Return copies of both that train the last layer on features, not the network on images."""
    indices, images = _indices_in_batches(session, training), training.images
    train = _add_features(session, training, images.train, indices)
    val, val_of_run = (
        _add_features(session, training, each, range(len(each)))
        for each in (images.val, session.images.val)
    )
    classifier = copy.copy(session.classifier)  # keeps the cached test prior
    classifier.net = LastLayer(session.net, training.last_layer)
    classifier.dataset = FeatureDataset(session.classifier.dataset)
    of_run = replace(session.images, val=val_of_run)
    return (
        replace(session, classifier=classifier, images=of_run),
        replace(training, images=replace(images, train=train, val=val)),
    )


def _indices_in_batches(session: Session, training: Training) -> list[int]:
    """Return the indices of the training images in this process's batches."""
    plan, trainer = build_datamodule(session, training).plan, training.cfg.trainer
    if trainer.max_steps == -1 or trainer.max_epochs != -1:  # epochs may be cut short
        _, to_learn, to_replay = plan.selection
        return torch.cat([to_learn, to_replay]).tolist()
    used, steps = set[int](), trainer.max_steps * trainer.accumulate_grad_batches
    for batch in islice(plan.batches(), steps):
        used.update(batch[session.trainer.global_rank :: plan.processes])
    return sorted(used)


def _add_features(
    session: Session, training: Training, images: Images, indices: Iterable[int]
) -> Images:
    """Return ``images`` with the features of those at ``indices`` in their place."""
    known, digests = training.features, images.digests.tolist()
    missing = [index for index in indices if digests[index] not in known]
    if missing:
        inputs: list[Tensor] = []

        def keep_input(layer: nn.Module, arguments: Any) -> None:
            inputs.append(arguments[0].float().cpu())

        layer = session.net.get_submodule(training.last_layer)
        hook = layer.register_forward_pre_hook(keep_input)
        dataset, device = session.classifier.dataset, session.switch_to_eval()
        batches = dataset.batches(images, device, torch.tensor(missing), "features")
        for _ in logits_at(session.net, batches, [BASE]):
            pass
        hook.remove()
        for index, row in zip(missing, torch.cat(inputs), strict=True):
            known[digests[index]] = row
    no_row = torch.empty(0)  # of an image that no batch has
    features = [known.get(digest, no_row) for digest in digests]
    return Images(features, images.labels, images.names, digests=images.digests)
