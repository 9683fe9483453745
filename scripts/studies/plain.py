"""What needs no training of the whole network, and how methods are compared."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rival import Case, fine_tune, in_memory, logits_of, sum_of_shares
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
    results = results_at(case, logits_of(net, case.images["test"]))
    return results[0]._replace(at_half=errors_at_half(results))


def one_number(case: Case) -> Result:
    """The base with the number that validation images choose."""
    moved = moved_logits(case, case.before["val"])
    best = min(range(len(moved)), key=lambda number: sum_of_shares(case, moved[number]))
    results = results_at(case, case.before["test"])
    return results[best]._replace(at_half=errors_at_half(results))


def results_at(case: Case, logits: Tensor) -> list[Result]:
    """A result for each of :func:`moved_logits`, of the test images; ``at_half`` is missing."""
    labels = case.labels["test"]
    was_wrong, on_target = case.before["test"].argmax(1) != labels, labels == case.target
    results = []
    for moved in moved_logits(case, logits):
        wrong, errors = moved.argmax(1) != labels, []
        for images in (on_target, labels >= 0, ~on_target):
            before = max(1, int((was_wrong & images).sum()))
            errors.append(100 * int((wrong & images).sum()) / before)
        flipped = 100 * float((wrong & ~was_wrong).float().mean())
        results.append(Result(errors[0], errors[1], errors[2], flipped, float("nan")))
    return results


def moved_logits(case: Case, logits: Tensor) -> list[Tensor]:
    """A number, first 0, is added to the class's logit: Menon et al. 2021, arXiv:2007.07314."""
    of_numbers = []
    for step in (0, *range(-24, 97)):
        moved = logits.clone()
        moved[:, case.target] += step / 8
        of_numbers.append(moved)
    return of_numbers


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


def balanced_head(case: Case, parts: Sequence[str], seed: int) -> nn.Module:
    """A copy of the base whose last layer has learnt anew, with images drawn evenly by class.

    This is cRT: Kang et al. 2020, arXiv:1910.09217.
    """
    net = copy.deepcopy(case.net)
    head = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    inputs: list[Tensor] = []
    hook = head.register_forward_hook(lambda _, args, __: inputs.append(args[0].flatten(1)))
    of_parts = []
    for part in parts:
        images, of_part = in_memory(case.dataset, getattr(case.sets, part))
        logits_of(net, images)
        of_parts.append(of_part)
    hook.remove()
    features, labels = torch.cat(inputs), torch.cat(of_parts)
    torch.manual_seed(seed)
    head.reset_parameters()
    evenly = 1 / labels.bincount()[labels]

    def loss() -> Tensor:
        chosen = torch.multinomial(evenly, 100, replacement=True)
        return F.cross_entropy(head(features[chosen]), labels[chosen])

    fine_tune(head, loss, 0.003)
    return net
