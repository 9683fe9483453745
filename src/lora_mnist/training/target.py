"""Chooses the target classes, as set or by their errors, and the images to learn and replay."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lora_mnist.choice import Choice, Reason
from lora_mnist.data.plan import Selection
from lora_mnist.errors import UserError, format_value, suggest_nearest
from lora_mnist.measure.counts import count_both
from lora_mnist.measure.predictions import Predictions
from lora_mnist.measure.significance import find_weak, find_weakest
from lora_mnist.training.session import Session

#: The values of target for which images decide: the weakest class, and all weak ones.
WEAK = ("weakest", "weak")


def choose_target(
    session: Session, before: Predictions | None = None
) -> tuple[Selection, dict[str, Choice]]:
    """Choose the classes as ``target`` says, and the images to learn and to replay."""
    cfg, images, classes = session.cfg, session.images, session.classifier.classes
    labels, target = images.train.labels, cfg.target
    if session.mistakes is not None:
        indices, start = torch.arange(len(labels)), session.mistakes_start
        return Selection([], indices[start:], indices[:start]), {}
    if target in WEAK:
        assert before is not None  # open_session has looked for validation images
        names, reason = _find_weak(session, before)
        choice = Choice(names, [reason], None, len(before))
        return select_images(labels, classes, names), {"target": choice}
    selection = select_images(labels, classes, target)
    if target is None:
        return selection, {}
    names = [classes[c] for c in selection.targets]
    return selection, {"target": Choice(names, [session.explain_setting("target")])}


def _find_weak(session: Session, before: Predictions) -> tuple[list[str], Reason]:
    """Return the names of the weakest class, or of all weak ones, and the reason."""
    target, classes = session.cfg.target, session.classifier.classes
    counts = count_both(before)
    errors = counts["before"]["errors_per_class"]
    numbers = counts["before"]["images_per_class"]
    if target == "weakest" and any(errors):
        worst = find_weakest(errors, numbers)
        unseen = [name for name, number in zip(classes, numbers, strict=True) if not number]
        facts = {"errors": errors[worst], "images": numbers[worst], "unseen": unseen}
        return [classes[worst]], Reason("weakest", **facts)
    if found := find_weak(errors, numbers):
        each = {classes[c]: (errors[c], numbers[c], p_value) for c, p_value in found.items()}
        return list(each), Reason("weak", classes=each)
    why = "no class has more errors on validation images than the rest beyond chance"
    if not any(errors):
        why = f"the base has all {len(before)} validation images right"
    expected = "a class"
    if session.images.can_validate_on_test:
        expected += ", or data.val_from=test if the base was trained on these images"
    raise UserError(f"target={target}: {why}; expected {expected}")


def select_images(labels: Tensor, classes: Sequence[str], target: Any) -> Selection:
    """Return the images of one or several classes to learn; the others may be replayed."""
    if target is None:
        return Selection([], torch.arange(len(labels)), torch.arange(0))
    selection = select_classes(labels, class_indices(classes, target))
    for c in selection.targets:
        if not (labels == c).any():
            expected = f"expected classes with training images; {classes[c]} has none"
            raise UserError(f"target={format_value(target)}: {expected}")
    return selection


def select_classes(labels: Tensor, targets: list[int]) -> Selection:
    """Return the images of these classes to learn, and all others to replay."""
    is_target = torch.isin(labels, torch.tensor(targets, dtype=torch.int64))
    return Selection(targets, is_target.nonzero()[:, 0], (~is_target).nonzero()[:, 0])


def class_indices(classes: Sequence[str], target: Any) -> list[int]:
    """Return the indices of the classes in ``target``, each once; 9 is the class of that name."""
    targets: list[int] = []
    for name in [target] if isinstance(target, str | int | float) else target:
        # YAML reads 1.10 as 1.1, and 010 as 8.
        if isinstance(name, float | bool) or str(name) not in classes:
            if name in WEAK:
                raise UserError(f"target={format_value(target)}: expected {name} alone")
            problem = (
                suggest_nearest(str(name), classes) or f"; there are {', '.join(classes[:12])}"
            )
            if not isinstance(name, str):
                problem += "; a name like a number, or true, stands in quotes: 'target=\"010\"'"
            named = format_value(name)
            raise UserError(
                f"target={format_value(target)}: no class has the name {named}{problem}; "
                "expected a class by name, a list, weakest, weak, or null for all"
            )
        targets.append(classes.index(str(name)))
    return list(dict.fromkeys(targets))
