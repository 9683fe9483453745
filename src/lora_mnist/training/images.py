"""Loads a run's images: excludes those trained on, adds mistakes, and limits their number."""

import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig
from torch import Tensor

from lora_mnist.classifier.classifier import Classifier
from lora_mnist.data import Images, ImageSets
from lora_mnist.data.mistakes import Mistakes, append_mistakes, find_mistakes
from lora_mnist.lora.point import BASE
from lora_mnist.measure.predictions import compute_predictions_at

log = logging.getLogger(__name__)


def load_images(
    cfg: DictConfig, trainer: Trainer, classifier: Classifier
) -> tuple[ImageSets, Mistakes | None]:
    """Load the images of a run, limited like its Trainer, and its mistakes."""
    images, mistakes = classifier.images, None
    if cfg.mistakes is not None:
        mistakes, excluded = _find_mistakes(classifier, cfg, trainer.strategy.root_device)
        images = replace(images, excluded={**images.excluded, **excluded})
        images = append_mistakes(images, mistakes)
    for split, about in images.excluded.items():
        # No warning for val: a refit trains on it, and a command that needs it raises an error.
        log.log(logging.INFO if split == "val" else logging.WARNING, "%s", about["line"])
    size = classifier.dataset.eval_batch_size
    dev_batches = int(cfg.trainer.get("fast_dev_run") or 0)  # true is 1
    val = _limit_images(images.val, dev_batches or cfg.trainer.get("limit_val_batches"), size)
    test = _limit_images(images.test, dev_batches or cfg.trainer.get("limit_test_batches"), size)
    return replace(images, val=val, test=test), mistakes


def _find_mistakes(
    classifier: Classifier, cfg: DictConfig, device: torch.device
) -> tuple[Mistakes, dict[str, Any]]:
    """Return the pictures in ``mistakes`` that the base gets wrong, and those excluded."""
    net, dataset = classifier.net, classifier.dataset

    def predict(pictures: Iterable[tuple[Tensor, int]]) -> Tensor:
        return compute_predictions_at(
            net, dataset.stack_pictures(pictures, device), [BASE]
        ).prediction[0]

    net.eval().to(device)
    mistakes = find_mistakes(predict, dataset, Path(str(cfg.mistakes)), cfg.mistakes_test)
    test, about = mistakes.test.without_train_images(classifier.train_digests, "held-out mistakes")
    return mistakes._replace(test=test), {"mistakes_test": about} if about else {}


def _limit_images(images: Images, limit: int | float | None, batch_size: int) -> Images:
    """Return the images of ``limit`` batches; a share, such as 0.1, gives one batch at least."""
    batches = math.ceil(len(images) / batch_size)
    if isinstance(limit, float):
        batches = max(1, int(limit * batches)) if limit else 0
    elif limit is not None:
        batches = limit
    count = batches * batch_size
    if count >= len(images):
        return images
    places = torch.linspace(0, len(images) - 1, count, dtype=torch.float64).long()
    return images.subset(places)  # spread evenly, since a folder's images are sorted by class
