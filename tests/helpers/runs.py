"""A run, made up: its results, its predictions, and their images."""

from dataclasses import replace

import torch

from lora_mnist.data import Images
from lora_mnist.measure.counts import count_both
from lora_mnist.measure.predictions import Predictions

CLASSES = ["cat", "dog", "<b>cow</b>"]


def curve_row(scale, offset, accuracy, of_target, elsewhere, false_positives):
    """A row of a scale curve."""
    return {
        **{"scale": scale, "offset": offset, "weighted_accuracy": accuracy},
        **{"errors": of_target + elsewhere, "errors_of_target": of_target},
        "errors_elsewhere": elsewhere,
        "false_positives_of_target": false_positives,
    }


CURVE = {
    **{"images": 50, "choose_by": "balanced_accuracy", "advised": {"scale": 0.5, "offset": 0}},
    "base": curve_row(0, 0, 0.8, 9, 3, 0),
    "rows": [
        curve_row(0, 0, 0.8, 9, 3, 0),
        curve_row(0.5, 0, 0.85, 5, 5, 2),
        curve_row(1, 0.25, 0.9, 2, 7, 4),
    ],
}


def outcome(errors, images=20):
    """The counts of a base with so many errors of each class; they are called as the next one."""
    return repaired(errors, [0] * len(errors), [0] * len(errors), images, "before")


def repaired(base, broken, fixed, images=20, side="after", targets=()):
    """The counts after a repair of a base with these errors, by class."""
    count = len(base)
    numbers = images if isinstance(images, list) else [images] * count
    label = torch.arange(count).repeat_interleave(torch.tensor(numbers))
    place = torch.cat([torch.arange(number) for number in numbers])  # of each image in its class
    wrong, mended, lost = (torch.tensor(each)[label] for each in (base, fixed, broken))
    was_wrong = place < wrong
    is_wrong = (was_wrong & (place >= mended)) | (~was_wrong & (place < wrong + lost))
    other = (label + 1) % count
    sides = [torch.where(each, other, label) for each in (was_wrong, is_wrong)]
    return count_both(make_table(count, label, *sides), targets)[side]


def results(stage="lora", **more):
    """What is read of the results of a repair of the dogs, or of a base."""
    base = [2, 9, 1]
    splits = {"test": outcome(base)}
    if stage != "pretrain":
        splits = {"test": repaired(base, [4, 0, 0], [0, 7, 1]), "test_base": splits["test"]}
    return {
        "stage": stage,
        "dataset": "farm",
        "overrides": ["stage=lora", "notes=<script>alert(1)</script>"],
        "point": None if stage == "pretrain" else {"scale": 1.0, "offset": 0.0},
        "choices": {},
        "val_from": "train",
        "choose_by": "balanced_accuracy",
        "held_out": {"val": "train"},
        "duplicates": 0,
        "unknown_train_digests": [],
        "excluded": {},
        "targets": [] if stage == "pretrain" else [1],
        "classes": CLASSES,
        "training_images_per_class": [100] * 3,
        "validation_images": 60,
        "steps": 12,
        **splits,
        "base_unchanged": stage == "lora" or None,
        "base_sha256": "ab" * 32,
        "adapter": None if stage == "pretrain" else "adapter",
        **more,
    }


def make_table(num_classes, label, *prediction):
    """A table of these predictions, each of them sure."""
    sure = torch.ones(len(prediction), len(label))
    return Predictions(num_classes, label, torch.stack(prediction), sure, torch.zeros_like(sure))


def at(table, rows):
    """The predictions for some of the images."""
    names = ("label", "prediction", "probability", "loss")
    return replace(table, **{name: getattr(table, name)[..., rows] for name in names})


def predictions(pair=True):
    """Predictions for six images."""
    scales = 2 if pair else 1
    return Predictions(
        num_classes=3,
        label=torch.tensor([0, 0, 1, 1, 2, 2]),
        prediction=torch.tensor([[0, 1, 0, 1, 2, 2], [0, 1, 1, 1, 0, 1]])[:scales],
        probability=torch.tensor(
            [[0.9, 0.5, 0.6, 0.7, 1.0, 0.8], [0.9, 0.5, 0.6, 0.7, 0.25, 0.75]]
        )[:scales],
        loss=torch.zeros(scales, 6),
    )


def images(names=()):
    """The six images, each of one gray."""
    grays = torch.arange(0, 60, 10, dtype=torch.uint8)
    return Images(grays[:, None, None, None].expand(6, 1, 4, 4), predictions().label, names)
