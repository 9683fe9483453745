"""What fine-tuning minimises: losses of single images, and their mean over a batch."""

import math
import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``-log softmax(z)_y``: zero only at full certainty, so it never stops pushing.

    Args:
        logits: ``z``, shape (N, num_classes).
        labels: ``y``, int64, shape (N,).

    Returns:
        The loss of each image, shape (N,).
    """
    return F.cross_entropy(logits, labels, reduction="none")


def hinge(logits: Tensor, labels: Tensor, margin: float) -> Tensor:
    """``max(0, margin - (z_y - max_{c != y} z_c))``: zero once the label leads by ``margin``.

    The multiclass hinge loss of Crammer and Singer 2001, "On the Algorithmic Implementation of
    Multiclass Kernel-based Vector Machines", JMLR 2. Where nothing is to be fixed there is no
    gradient, and so nothing gets broken.

    Args:
        logits: ``z``, shape (N, num_classes).
        labels: ``y``, int64, shape (N,).
        margin: lead over the best other class from which on an image costs nothing.

    Returns:
        The loss of each image, shape (N,).
    """
    label = labels.unsqueeze(1)
    lead = logits.gather(1, label) - logits.scatter(1, label, -math.inf).amax(1, keepdim=True)
    return F.relu(margin - lead.squeeze(1))


def distillation(logits: Tensor, base_logits: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(z_base / T) || softmax(z / T))``: how far the answer moved from the base's.

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2
    (the factor ``T^2`` keeps the gradient's size); against forgetting, with the network before
    fine-tuning as teacher: Li and Hoiem 2016, "Learning without Forgetting", arXiv:1606.09282.

    Args:
        logits: ``z``, shape (N, num_classes).
        base_logits: ``z_base``, of the same images; no gradient flows there.
        temperature: ``T``; above 1 it looks closer at how the base ranks the unlikely classes.

    Returns:
        The loss of each image, shape (N,).
    """
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(base_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


def weighted_mean(losses: Tensor, is_target: Tensor, target_weight: float) -> Tensor:
    """``w mean(target's losses) + (1 - w) mean(others')``, with ``w = target_weight``.

    Args:
        losses: loss of each image, shape (N,).
        is_target: whether it is of a class to repair, bool, shape (N,).
        target_weight: share of the target's images, from 0 to 1.

    Returns:
        The loss of the batch, a scalar; the plain mean where all images are of one kind.
    """
    target = is_target.sum()
    others = is_target.numel() - target
    weights = torch.where(is_target, target_weight / target, (1 - target_weight) / others)
    return torch.where((target == 0) | (others == 0), losses.mean(), (weights * losses).sum())


#: The loss has its square as a factor, in float32.
_HOTTEST = 1e6


class Loss:
    """The loss of a training batch: right answers, and the base's own answers where they count.

    ``mean over images of fit(z, y) + distill * [image is distilled] * distillation(z, z_base)``

    Args:
        target: the class to repair, or several; ``None`` where all are trained.
        fit: "cross_entropy" or "hinge".
        margin: of :func:`hinge`; finite and >= 0.
        distill: weight of :func:`distillation`; finite and >= 0, and 0 leaves it out.
        distill_on: "replay" distils on images of other classes than ``target``, "target" on those
            of ``target``, "all" on both.
        temperature: of :func:`distillation`; finite and > 0.
        target_weight: see :func:`weighted_mean`; ``None``: each image counts alike.

    Attributes:
        needs_base: whether ``base_logits`` are needed.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        target: int | Sequence[int] | None = None,
        fit: str = "cross_entropy",
        margin: float = 1.0,
        distill: float = 0.0,
        distill_on: str = "replay",
        temperature: float = 1.0,
        target_weight: float | None = None,
    ) -> None:
        _check_choice("fit", fit, ("cross_entropy", "hinge"))
        _check_choice("distill_on", distill_on, ("replay", "target", "all"))
        _check_number("margin", margin, least=0)
        _check_number("distill", distill, least=0)
        _check_number("temperature", temperature, least=0)
        if not 0 < temperature <= _HOTTEST:
            raise ValueError(
                f"temperature={temperature}: expected a finite number > 0, at most {_HOTTEST:g}"
            )
        if target_weight is not None:
            _check_number("target_weight", target_weight, least=0, most=1)
            if target is None:
                raise ValueError(
                    f"target_weight={target_weight}: expected null, since digit=null trains on "
                    "all classes"
                )
        self.target = [target] if isinstance(target, int) else list(target or [])
        self.fit: Callable[[Tensor, Tensor], Tensor] = cross_entropy
        if fit == "hinge":
            self.fit = lambda logits, labels: hinge(logits, labels, float(margin))
        self.distill = float(distill)
        self.distill_on = distill_on
        self.temperature = float(temperature)
        self.target_weight = target_weight
        self.needs_base = distill > 0

    def __call__(self, logits: Tensor, labels: Tensor, base_logits: Tensor | None) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            logits: what the network answers, shape (N, num_classes).
            labels: int64, shape (N,).
            base_logits: what the base answers, where ``needs_base``.
        """
        losses = self.fit(logits, labels)
        if base_logits is not None:
            distilled = distillation(logits, base_logits, self.temperature)
            if self.distill_on != "all":
                distilled = distilled * (self._is_target(labels) == (self.distill_on == "target"))
            losses = losses + self.distill * distilled
        if self.target_weight is None:
            return losses.mean()
        return weighted_mean(losses, self._is_target(labels), self.target_weight)

    def _is_target(self, labels: Tensor) -> Tensor:
        return torch.isin(labels, torch.tensor(self.target, device=labels.device))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value}: expected one of {', '.join(choices)}")


def _check_number(name: str, value: float, least: float, most: float = math.inf) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # An integer may be too large to be a float.
    if not (is_number and abs(value) <= sys.float_info.max and least <= value <= most):
        limit = f">= {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise ValueError(f"{name}={value}: expected a finite number {limit}")
