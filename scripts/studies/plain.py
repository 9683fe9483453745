"""The sceptic's methods in plain PyTorch, and how methods are compared."""

import copy
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tasks import Case, logits_of
from torch import Tensor, nn

#: Twenty lines: each rate with the first weight, then each weight with the best rate.
RATES, CLASS_WEIGHTS = (0.001, 0.003, 0.01), (3, 10, 30)
#: How much of a change of the weights is taken.
SCALES = (0.2, 0.4, 0.6, 0.8, 1.0)


class Shares(NamedTuple):
    """Errors as shares of the base's, and broken images as a share of all, in percent."""

    target: float
    every: float
    others: float
    flipped: float  # the negative flip rate, Yan et al. 2021, arXiv:2011.09161


class Result(NamedTuple):
    """What a method leaves on the test images: :class:`Shares`, and one more."""

    target: float
    every: float
    others: float
    flipped: float
    at_half: float  # errors in all, with half of the class's left


def shares(logits: Tensor, before: Tensor, labels: Tensor, target: int) -> Shares:
    """Errors and broken images, in percent: ``logits`` against those of the base, ``before``."""
    wrong, was_wrong = logits.argmax(1) != labels, before.argmax(1) != labels
    on_target = labels == target
    errors = []
    for images in (on_target, labels >= 0, ~on_target):
        errors.append(100 * int((wrong & images).sum()) / max(1, int((was_wrong & images).sum())))
    flipped = 100 * float((wrong & ~was_wrong).float().mean())
    return Shares(errors[0], errors[1], errors[2], flipped)


def shifted(case: Case, part: str, logits: Tensor) -> list[Shares]:
    """A number, first 0, is added to the logit of the class: Menon et al. 2021, arXiv:2007.07314.

    ``logits`` are a network's, on the validation or the test images.
    """
    points = []
    for step in (0, *range(-24, 97)):
        moved = logits.clone()
        moved[:, case.target] += step / 8
        points.append(shares(moved, case.before[part], case.labels[part], case.target))
    return points


def errors_at_half(points: Sequence[Shares]) -> float:
    """Errors in all where half of the class's are left, interpolated, or fewer; else NaN."""
    found = [each.every for each in points if each.target <= 50]
    if not found:
        return float("nan")
    for low in points:
        for high in points:
            if low.target < 50 < high.target:
                way = (50 - low.target) / (high.target - low.target)
                found.append(low.every + way * (high.every - low.every))
    return min(found)


def one_number(case: Case) -> Result:
    """The base with the number that validation images choose."""
    val, test = (shifted(case, part, case.before[part]) for part in ("val", "test"))
    best = min(range(len(val)), key=lambda number: sum_of_shares(val[number]))
    return Result(*test[best], errors_at_half(test))


def result_of(case: Case, net: nn.Module) -> Result:
    """What a network leaves on the test images."""
    points = shifted(case, "test", logits_of(net, case.images["test"]))
    return Result(*points[0], errors_at_half(points))


def sum_of_shares(val: Shares) -> float:
    """What chooses: the validation errors on the class and in all, as shares of the base's."""
    return val.target + val.every


def fine_tune(
    net: nn.Module, loss_of_a_step: Callable[[], Tensor], rate: float = 1e-3, steps: int = 400
) -> None:
    """Plain fine-tuning: Adam on all weights, the rate falls to 0."""
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of_a_step().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()


class Choice(NamedTuple):
    """What validation images choose for twenty lines."""

    rate: float
    weight: float
    scale: float  # how far to go from the base


def twenty_lines(case: Case, seed: int) -> tuple[nn.Module, Choice]:
    """Weighted fine-tuning with the rate, then the weight, that are best: five trainings."""
    nets: dict[tuple[float, float], nn.Module] = {}
    sums: dict[Choice, float] = {}

    def try_scales(rate: float, weight: float) -> Choice:
        """Train once; the best choice of those that were tried until now."""
        net = nets[rate, weight] = weighted(case, ["train"], rate, weight, seed)
        for scale in SCALES:
            logits = logits_of(between(case.net, net, scale), case.images["val"])
            val = shares(logits, case.before["val"], case.labels["val"], case.target)
            sums[Choice(rate, weight, scale)] = sum_of_shares(val)
        return min(sums, key=lambda choice: sums[choice])

    for rate in RATES:
        best = try_scales(rate, CLASS_WEIGHTS[0])
    for weight in CLASS_WEIGHTS[1:]:
        best = try_scales(best.rate, weight)
    return between(case.net, nets[best.rate, best.weight], best.scale), best


def refitted(case: Case, choice: Choice, seed: int) -> nn.Module:
    """The same training once more, on training and validation images."""
    net = weighted(case, ["train", "val"], choice.rate, choice.weight, seed)
    return between(case.net, net, choice.scale)


def balanced_head(case: Case, parts: Sequence[str], seed: int) -> nn.Module:
    """A copy of the base whose last layer has learnt anew, with images drawn evenly by class.

    This is cRT: Kang et al. 2020, arXiv:1910.09217.
    """
    net = copy.deepcopy(case.net)
    head = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    inputs: list[Tensor] = []
    hook = head.register_forward_hook(lambda _, args, __: inputs.append(args[0].flatten(1)))
    for part in parts:
        logits_of(net, case.images[part])
    hook.remove()
    features, labels = torch.cat(inputs), torch.cat([case.labels[part] for part in parts])
    torch.manual_seed(seed)
    head.reset_parameters()
    evenly = 1 / labels.bincount()[labels]

    def loss() -> Tensor:
        chosen = torch.multinomial(evenly, 100, replacement=True)
        return F.cross_entropy(head(features[chosen]), labels[chosen])

    fine_tune(head, loss, 0.003)
    return net


def weighted(case: Case, parts: Sequence[str], rate: float, weight: float, seed: int) -> nn.Module:
    """A copy of the base after a training in which the class's loss counts ``weight`` times."""
    line = "fine-tuning: %d steps, rate %g, weight %g"
    logging.getLogger(__name__).info(line, case.steps, rate, weight)
    images = torch.cat([case.images[part] for part in parts])
    labels = torch.cat([case.labels[part] for part in parts])
    net = copy.deepcopy(case.net).train()
    weights = torch.ones(case.before["val"].shape[1])
    weights[case.target] = weight

    def loss() -> Tensor:
        chosen = torch.randint(len(labels), (100,))
        return F.cross_entropy(net(images[chosen]), labels[chosen], weight=weights)

    torch.manual_seed(seed)
    fine_tune(net, loss, rate, case.steps)
    return net


@torch.no_grad()
def between(base: nn.Module, tuned: nn.Module, scale: float) -> nn.Module:
    """``base + scale * (tuned - base)``: WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903."""
    net = copy.deepcopy(tuned)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():  # a count of batches is not
            tensor.copy_((1 - scale) * base.state_dict()[name] + scale * tensor)
    return net
