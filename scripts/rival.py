"""A yardstick: what a sceptic would write beside a repair, on your own classifier and images.

    python scripts/rival.py --config-dir . classifier=photos

It takes what the repair took, and reads the newest adapter, or adapter=FOLDER. One number on the
class's logit, or the tau of several, needs no training. cRT trains the last nn.Linear anew.
Balanced Softmax and twenty lines (docs/worth.md) train all weights with as many steps as the
repair, or trainer.max_steps=STEPS: three and five times, and twenty lines once more for the refit.
Where the base was trained with batches.augment, these use it too, and twenty lines do once without.
What the repair decided by decides here: choose_by.
"""

import copy
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor, nn

from lora_mnist import remove_lora
from lora_mnist.cli.main import run_by_hydra
from lora_mnist.config.make import instantiate_part, load_from_config
from lora_mnist.config.run import Run, override_key
from lora_mnist.data.dataset import ImageDataset
from lora_mnist.data.images import Augment, Images, ImageSets
from lora_mnist.errors import UserError
from lora_mnist.lora.offset import build_offset
from lora_mnist.measure.class_weights import class_weights, weighted_accuracy
from lora_mnist.measure.counts import count_errors
from lora_mnist.measure.scale_curve import offsets_to_try
from lora_mnist.measure.score import compute_scores
from lora_mnist.training.trials import resolve_augment

log = logging.getLogger(__name__)

#: Twenty lines: each rate with the first weight, then each weight with the best rate.
LEARNING_RATES, CLASS_WEIGHTS = (0.001, 0.003, 0.01), (3, 10, 30)
#: Balanced softmax.
SOFTMAX_RATES = (0.0003, 0.001, 0.003)
#: How much of a change of the weights is taken.
SCALES = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass
class Case:
    """A base, its images, and what it makes of those to choose by and to test on."""

    net: nn.Module
    dataset: ImageDataset
    sets: ImageSets
    targets: list[int]  # the classes to repair
    images: dict[str, Tensor]  # of validation and of test, normalized
    labels: dict[str, Tensor]
    before: dict[str, Tensor]  # the base's logits, by split
    augment: Augment | None  # of training images, as in the base's own training
    steps: int = 400  # of each training
    choose_by: str = "mean_accuracy"

    @property
    def weights(self) -> NDArray[np.float64]:
        """The weight of each class in the measure."""
        test_prior = self.labels["test"].bincount(minlength=len(self.dataset.classes))
        return class_weights(test_prior, self.choose_by)

    def measure(self, logits: Tensor) -> float:
        """Return the measure that chooses, for logits of the validation images."""
        labels, classes = self.labels["val"], len(self.dataset.classes)
        errors = labels[logits.argmax(1) != labels].bincount(minlength=classes)
        return weighted_accuracy(errors, labels.bincount(minlength=classes), self.weights)

    def counts(self) -> Tensor:
        """Return the number of training images of each class."""
        return self.sets.train.labels.bincount(minlength=len(self.dataset.classes)).float()


class Choice(NamedTuple):
    """The hyperparameters that validation images choose for twenty lines."""

    lr: float
    weight: float
    is_augmented: bool
    scale: float  # how far to go from the base


# --- without a training of the whole network -----------------------------------------------------


def one_number(case: Case) -> tuple[Tensor, float]:
    """Return the direction and the offset that validation images choose for the base."""
    offset = build_offset(case.counts(), case.targets)
    direction = offset.direction
    logits, labels, offsets = case.before["val"], case.labels["val"], offsets_to_try(offset)
    scores = compute_scores(logits, labels, direction, offsets, case.weights)
    return direction, offsets[int(scores.argmax())]


def balanced_head(case: Case, seed: int) -> nn.Module:
    """Return a copy of the base with a retrained last layer, on images drawn evenly by class.

    This is cRT: Kang et al. 2020, arXiv:1910.09217.
    """
    net = copy.deepcopy(case.net)
    head = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    inputs: list[Tensor] = []
    hook = head.register_forward_hook(lambda _, args, __: inputs.append(args[0].flatten(1)))
    images, labels = in_memory(case.dataset, case.sets.train)
    compute_logits(net, images)
    hook.remove()
    features = torch.cat(inputs)
    torch.manual_seed(seed)
    head.reset_parameters()
    evenly = 1 / labels.bincount()[labels]

    def loss() -> Tensor:
        chosen = torch.multinomial(evenly, 100, replacement=True)
        return F.cross_entropy(head(features[chosen]), labels[chosen])

    fine_tune(head, loss, 0.003, case.steps)
    return net


# --- trainings of all weights --------------------------------------------------------------------


def balanced_softmax(case: Case, seed: int) -> tuple[nn.Module, float]:
    """Fine-tuning with each class's logarithm of its images added to its logit: the best rate's.

    Ren et al. 2020, arXiv:2007.10740; logit-adjusted loss with tau 1 in Menon et al. 2021.
    """
    prior = (case.counts() / case.counts().sum()).clamp(min=1e-9).log()
    nets = {}
    for lr in SOFTMAX_RATES:
        log.info("balanced softmax: %d steps, rate %g", case.steps, lr)
        nets[lr] = tuned(case, ["train"], lr, case.augment, seed, prior=prior)
    best = max(nets, key=lambda lr: case.measure(compute_logits(nets[lr], case.images["val"])))
    return nets[best], best


def twenty_lines(case: Case, seed: int) -> tuple[nn.Module, Choice]:
    """Weighted fine-tuning: the best rate, weight and augmentation of five or six trainings."""
    nets: dict[tuple[float, float, bool], nn.Module] = {}
    measures: dict[Choice, float] = {}

    def try_scales(lr: float, weight: float, is_augmented: bool) -> Choice:
        """Train once; the best choice of those that were tried until now."""
        net = weighted(case, ["train"], lr, weight, is_augmented, seed)
        nets[lr, weight, is_augmented] = net
        for scale in SCALES:
            logits = compute_logits(between(case.net, net, scale), case.images["val"])
            measures[Choice(lr, weight, is_augmented, scale)] = case.measure(logits)
        return max(measures, key=lambda choice: measures[choice])

    augments = case.augment is not None
    for lr in LEARNING_RATES:
        best = try_scales(lr, CLASS_WEIGHTS[0], augments)
    for weight in CLASS_WEIGHTS[1:]:
        best = try_scales(best.lr, weight, augments)
    if augments:
        best = try_scales(best.lr, best.weight, False)
    return between(case.net, nets[best[:3]], best.scale), best


def refitted(case: Case, choice: Choice, seed: int) -> nn.Module:
    """Repeat a training on training and validation images."""
    net = weighted(case, ["train", "val"], *choice[:3], seed)
    return between(case.net, net, choice.scale)


def weighted(
    case: Case, parts: Sequence[str], lr: float, weight: float, is_augmented: bool, seed: int
) -> nn.Module:
    """Return the base after a training in which the classes' loss counts ``weight`` times."""
    how = " augmented" if is_augmented else ""
    log.info("fine-tuning: %d%s steps, rate %g, weight %g", case.steps, how, lr, weight)
    weights = torch.ones(len(case.dataset.classes))
    weights[case.targets] = weight
    augment = case.augment if is_augmented else None
    return tuned(case, parts, lr, augment, seed, weights=weights)


def tuned(
    case: Case,
    parts: Sequence[str],
    lr: float,
    augment: Augment | None,
    seed: int,
    *,
    weights: Tensor | None = None,
    prior: Tensor | float = 0.0,
) -> nn.Module:
    """Return the base after a training of all weights on images in their natural proportions."""
    images: Images = getattr(case.sets, parts[0])
    for part in parts[1:]:
        images = images.followed_by(getattr(case.sets, part))
    images = replace(images, augment=augment)
    net = copy.deepcopy(case.net).train()

    def loss() -> Tensor:
        pixels, labels = images.take(torch.randint(len(images), (100,)).tolist())
        logits = net(case.dataset.normalize(pixels)) + prior
        return F.cross_entropy(logits, labels, weight=weights)

    torch.manual_seed(seed)
    fine_tune(net, loss, lr, case.steps)
    return net


def fine_tune(
    net: nn.Module, loss_of_a_step: Callable[[], Tensor], lr: float = 1e-3, steps: int = 400
) -> None:
    """Plain fine-tuning: Adam on all weights, the rate falls to 0."""
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of_a_step().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()


@torch.no_grad()
def between(base: nn.Module, tuned: nn.Module, scale: float) -> nn.Module:
    """Return ``base + scale * (tuned - base)``: WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903."""
    net = copy.deepcopy(tuned)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():  # a count of batches is not
            tensor.copy_((1 - scale) * base.state_dict()[name] + scale * tensor)
    return net


# --- a classifier in memory, and the table -------------------------------------------------------


def load_case(
    base: nn.Module,
    dataset: ImageDataset,
    sets: ImageSets,
    targets: list[int],
    augment: Augment | None,
) -> Case:
    """Load a base, images to choose by and to test on, and the base's logits, into memory."""
    images, labels, before = {}, {}, {}
    for part in ("val", "test"):
        images[part], labels[part] = in_memory(dataset, getattr(sets, part))
        before[part] = compute_logits(base, images[part])
    return Case(base, dataset, sets, targets, images, labels, before, augment)


def in_memory(dataset: ImageDataset, images: Images) -> tuple[Tensor, Tensor]:
    """All of ``images`` at once, normalized, and their labels."""
    pixels, labels = images.take(range(len(images)))
    return dataset.normalize(pixels), labels


@torch.no_grad()
def compute_logits(net: nn.Module, images: Tensor) -> Tensor:
    """Logits, (N, num_classes), in eval mode."""
    net.eval()
    return torch.cat([net(batch) for batch in torch.split(images, 500)])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: a column of text, then columns of numbers."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def rival(cfg: DictConfig, run: Run) -> None:
    """Print the errors that a base, its repair, and twenty lines leave on the test images."""
    classifier = load_from_config(cfg)
    adapter, net = classifier.adapter, classifier.net
    if not classifier.record.targets:
        raise UserError(f"adapter={adapter}: repairs mistakes; expected one that repairs classes")
    targets = [classifier.classes.index(name) for name in classifier.record.targets]
    augment = resolve_augment(cfg, classifier)
    augment = augment and instantiate_part("batches.augment", augment)
    # A refit was trained on the validation images, which choose for twenty lines as for its trials.
    val = replace(classifier, adapter=None).images.val
    if not len(val):
        raise UserError("data: expected validation images, which choose for each method")
    sets = replace(classifier.images, val=val)
    plain = remove_lora(copy.deepcopy(net)).requires_grad_()
    case = load_case(plain, classifier.dataset, sets, targets, augment)
    case.choose_by = classifier.record.choose_by
    file, repair = Path(str(adapter)).parent / "results.json", {}  # of the run that left it
    if file.exists():
        repair = json.loads(file.read_text())
    case.steps = repair.get("steps", case.steps)
    if "trainer.max_steps" in map(override_key, run.command_line or ()):
        case.steps = cfg.trainer.max_steps

    def row(name: str, logits: Tensor, seconds: float | None = None) -> list[str]:
        """Return errors, balanced accuracy and false positives; a method's trainings in seconds."""
        labels, count = case.labels["test"], len(classifier.classes)
        counts = count_errors(labels, logits.argmax(1), count, case.targets)
        cells = [f"{counts['errors_of_target']:,}", f"{counts['errors']:,}"]
        cells += [f"{counts['balanced_accuracy']:.1%}", f"{counts['false_positives_of_target']:,}"]
        return [name, *cells, "" if seconds is None else f"{seconds:.0f}"]

    test, before = case.images["test"], case.before["test"]
    rows = [row("base", before), row("repair", compute_logits(net, test), repair.get("seconds"))]
    direction, offset = one_number(case)
    rows.append(row(f"one number, {offset:g}", before + offset * direction, 0))
    trainings = 6 if augment is None else 7
    log.info("%d trainings of %d steps of all weights; each is logged", trainings + 3, case.steps)
    if any(isinstance(module, nn.Linear) for module in plain.modules()):
        started = time.perf_counter()
        head = balanced_head(case, cfg.seed)
        rows.append(
            row("last layer anew", compute_logits(head, test), time.perf_counter() - started)
        )
    started = time.perf_counter()
    net, lr = balanced_softmax(case, cfg.seed)
    rows.append(row("balanced softmax", compute_logits(net, test), time.perf_counter() - started))
    started = time.perf_counter()
    net, choice = twenty_lines(case, cfg.seed)
    for name in ("twenty lines", "twenty lines, refitted"):
        if "refitted" in name:
            net = refitted(case, choice, cfg.seed)
        rows.append(row(name, compute_logits(net, test), time.perf_counter() - started))
    named = ", ".join(classifier.record.targets)
    heads = [
        "method",
        f"errors on {named}",
        "in all",
        "balanced accuracy",
        "false positives",
        "seconds",
    ]
    print(table(heads, rows))
    print(f"repair: {adapter}")
    how = "augmented, " if choice.is_augmented else ""
    chosen = f"{how}rate {choice.lr:g}, weight {choice.weight:g}, scale {choice.scale:g}"
    print(f"validation images chose for twenty lines, {trainings} trainings of {case.steps} steps:")
    print(f"{chosen}; for balanced softmax, 3 trainings: rate {lr:g}")


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
    else:
        sys.argv[1:1] = ["experiment=repair", "hydra=no_folder", "+adapter=latest"]
        run_by_hydra(rival, "train")
