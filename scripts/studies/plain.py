"""How methods are compared: what each leaves, in percent of the base's errors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from rival import Case, logits_of, one_number
from torch import Tensor, nn


class Result(NamedTuple):
    """What a method leaves on the test images, in percent."""

    target: float  # errors on the class, as a share of the base's
    every: float  # in all, likewise
    others: float  # on the other classes
    flipped: float  # broken images as a share of all: Yan et al. 2021, arXiv:2011.09161
    at_half: float  # errors in all, with half of the class's left


def result_of(case: Case, net: nn.Module) -> Result:
    """What a network leaves on the test images."""
    return result_of_logits(case, logits_of(net, case.images["test"]))


def result_of_number(case: Case) -> Result:
    """What the base leaves with the number, or the tau, that validation images choose."""
    direction, offset = one_number(case)
    at_half = result_of_logits(case, case.before["test"]).at_half
    moved = case.before["test"] + offset * direction
    return result_of_logits(case, moved)._replace(at_half=at_half)


def result_of_logits(case: Case, logits: Tensor) -> Result:
    """What logits of the test images leave."""
    labels = case.labels["test"]
    was_wrong = case.before["test"].argmax(1) != labels
    on_target = torch.isin(labels, torch.tensor(case.targets))
    results = []
    for step in (0, *range(-24, 97)):  # a number on the logits of the classes
        moved = logits.clone()
        moved[:, case.targets] += step / 8
        wrong, errors = moved.argmax(1) != labels, []
        for images in (on_target, labels >= 0, ~on_target):
            before = max(1, int((was_wrong & images).sum()))
            errors.append(100 * int((wrong & images).sum()) / before)
        flipped = 100 * float((wrong & ~was_wrong).float().mean())
        results.append(Result(errors[0], errors[1], errors[2], flipped, float("nan")))
    return results[0]._replace(at_half=errors_at_half(results))


def errors_at_half(results: Sequence[Result]) -> float:
    """Errors in all where half of the class's are left, interpolated, or fewer; else NaN."""
    found = [each.every for each in results if each.target <= 50]
    if not found:
        return float("nan")
    for low in results:
        for high in results:
            if low.target < 50 < high.target:
                way = (50 - low.target) / (high.target - low.target)
                found.append(low.every + way * (high.every - low.every))
    return min(found)
