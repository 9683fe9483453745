"""A yardstick: twenty lines of PyTorch beside a repair, on your own classifier and images.

    python scripts/rival.py --config-dir . classifier=photos target=weakest

It takes what the repair took, and reads the newest adapter that repairs a class (or
adapter=FOLDER). Twenty lines are those of docs/worth.md: five trainings of all weights with as many
steps as the repair, or trainer.max_steps=STEPS, and one more for the refit. Where the base was
trained with batches.augment, they use it too, and a sixth training does without.
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

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from lora_mnist import remove_lora
from lora_mnist.classifier.classifier import read_adapter
from lora_mnist.cli.main import run_entry
from lora_mnist.config.command import Run, classifier_of, key_of, make
from lora_mnist.data.images import Augment, ImageDataset, Images, ImageSets
from lora_mnist.errors import UserError
from lora_mnist.training.session import augment_of

log = logging.getLogger(__name__)

#: Twenty lines: each rate with the first weight, then each weight with the best rate.
RATES, CLASS_WEIGHTS = (0.001, 0.003, 0.01), (3, 10, 30)
#: How much of a change of the weights is taken.
SCALES = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass
class Case:
    """A base, its images, and what it makes of those to choose by and to test on."""

    net: nn.Module
    dataset: ImageDataset
    sets: ImageSets
    target: int  # the class to repair
    images: dict[str, Tensor]  # of validation and of test, normalised
    labels: dict[str, Tensor]
    before: dict[str, Tensor]  # the base's logits, likewise
    augment: Augment | None  # of training images, as in the base's own training
    steps: int = 400  # of each training


class Choice(NamedTuple):
    """What validation images choose for twenty lines."""

    rate: float
    weight: float
    is_augmented: bool
    scale: float  # how far to go from the base


# --- twenty lines --------------------------------------------------------------------------------


def twenty_lines(case: Case, seed: int) -> tuple[nn.Module, Choice]:
    """Weighted fine-tuning: the best rate, weight and augmentation of five or six trainings."""
    nets: dict[tuple[float, float, bool], nn.Module] = {}
    sums: dict[Choice, float] = {}

    def try_scales(rate: float, weight: float, is_augmented: bool) -> Choice:
        """Train once; the best choice of those that were tried until now."""
        net = weighted(case, ["train"], rate, weight, is_augmented, seed)
        nets[rate, weight, is_augmented] = net
        for scale in SCALES:
            logits = logits_of(between(case.net, net, scale), case.images["val"])
            sums[Choice(rate, weight, is_augmented, scale)] = sum_of_shares(case, logits)
        return min(sums, key=lambda choice: sums[choice])

    augments = case.augment is not None
    for rate in RATES:
        best = try_scales(rate, CLASS_WEIGHTS[0], augments)
    for weight in CLASS_WEIGHTS[1:]:
        best = try_scales(best.rate, weight, augments)
    if augments:
        best = try_scales(best.rate, best.weight, False)
    return between(case.net, nets[best[:3]], best.scale), best


def refitted(case: Case, choice: Choice, seed: int) -> nn.Module:
    """The same training once more, on training and validation images."""
    net = weighted(case, ["train", "val"], *choice[:3], seed)
    return between(case.net, net, choice.scale)


def weighted(
    case: Case, parts: Sequence[str], rate: float, weight: float, is_augmented: bool, seed: int
) -> nn.Module:
    """A copy of the base after a training in which the class's loss counts ``weight`` times."""
    how = " augmented" if is_augmented else ""
    log.info("fine-tuning: %d%s steps, rate %g, weight %g", case.steps, how, rate, weight)
    images: Images = getattr(case.sets, parts[0])
    for part in parts[1:]:
        images = images.followed_by(getattr(case.sets, part))
    images = replace(images, augment=case.augment if is_augmented else None)
    net = copy.deepcopy(case.net).train()
    weights = torch.ones(len(case.dataset.classes))
    weights[case.target] = weight

    def loss() -> Tensor:
        pixels, labels = images.take(torch.randint(len(images), (100,)).tolist())
        return F.cross_entropy(net(case.dataset.normalise(pixels)), labels, weight=weights)

    torch.manual_seed(seed)
    fine_tune(net, loss, rate, case.steps)
    return net


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


@torch.no_grad()
def between(base: nn.Module, tuned: nn.Module, scale: float) -> nn.Module:
    """``base + scale * (tuned - base)``: WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903."""
    net = copy.deepcopy(tuned)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():  # a count of batches is not
            tensor.copy_((1 - scale) * base.state_dict()[name] + scale * tensor)
    return net


def sum_of_shares(case: Case, logits: Tensor) -> float:
    """What chooses: the validation errors on the class and in all, as shares of the base's."""
    labels = case.labels["val"]
    wrong, was_wrong = logits.argmax(1) != labels, case.before["val"].argmax(1) != labels
    total = 0.0
    for images in (labels == case.target, labels >= 0):
        total += int((wrong & images).sum()) / max(1, int((was_wrong & images).sum()))
    return total


# --- a classifier in memory, and the table -------------------------------------------------------


def load_case(
    base: nn.Module, dataset: ImageDataset, sets: ImageSets, target: int, augment: Augment | None
) -> Case:
    """A base, with images to choose by and to test on, and its logits, in memory."""
    images, labels, before = {}, {}, {}
    for part in ("val", "test"):
        images[part], labels[part] = in_memory(dataset, getattr(sets, part))
        before[part] = logits_of(base, images[part])
    return Case(base, dataset, sets, target, images, labels, before, augment)


def in_memory(dataset: ImageDataset, images: Images) -> tuple[Tensor, Tensor]:
    """All of ``images`` at once, normalised, and their labels."""
    pixels, labels = images.take(range(len(images)))
    return dataset.normalise(pixels), labels


@torch.no_grad()
def logits_of(net: nn.Module, images: Tensor) -> Tensor:
    """Logits, (N, num_classes), in eval mode."""
    net.eval()
    return torch.cat([net(batch) for batch in torch.split(images, 500)])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: a column of text, then columns of numbers."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def newest_repair(outputs: Path) -> Path | None:
    """The newest adapter that repairs one class; that of a hotfix repairs none."""
    files = [*outputs.glob("lora/*/adapter/adapter_config.json")]
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        folder, record = read_adapter(file.parent)
        if len(record.get("targets", [])) == 1:
            return folder
    return None


def rival(cfg: DictConfig, run: Run) -> None:
    """Print the errors that a base, its repair, and twenty lines leave on the test images."""
    if cfg.adapter == "latest":
        cfg.adapter = str(newest_repair(Path(cfg.paths.outputs)) or "latest")
    classifier = classifier_of(cfg)
    adapter, net = classifier.adapter, classifier.net
    if len(classifier.targets) != 1:
        repaired = ", ".join(classifier.targets) or "mistakes"
        raise UserError(f"adapter={adapter}: repairs {repaired}; expected one that repairs a class")
    (target,) = classifier.targets
    augment = augment_of(cfg, classifier)
    augment = augment and make("batches.augment", augment)
    # A refit has learnt the validation images, which choose for twenty lines as for its trials.
    val = replace(classifier, adapter=None).images.val
    if not len(val):
        raise UserError("data: expected validation images, which choose the rate of twenty lines")
    sets = replace(classifier.images, val=val)
    plain = remove_lora(copy.deepcopy(net)).requires_grad_()
    case = load_case(plain, classifier.dataset, sets, classifier.classes.index(target), augment)
    file, repair = Path(str(adapter)).parent / "results.json", {}  # of the run that left it
    if file.exists():
        repair = json.loads(file.read_text())
    case.steps = repair.get("steps", case.steps)
    if "trainer.max_steps" in map(key_of, run.typed or ()):
        case.steps = cfg.trainer.max_steps

    def row(name: str, logits: Tensor, seconds: float | None = None) -> list[str]:
        """Errors and false calls; a method's trainings in seconds."""
        called, right = logits.argmax(1), case.labels["test"]
        wrong, is_target = called != right, right == case.target
        counts = [wrong & is_target, wrong, wrong & (called == case.target)]
        cells = [f"{int(each.sum()):,}" for each in counts]
        return [name, *cells, "" if seconds is None else f"{seconds:.0f}"]

    after = logits_of(net, case.images["test"])
    rows = [row("base", case.before["test"]), row("repair", after, repair.get("seconds"))]
    trainings = f"{6 if augment is None else 7} trainings of {case.steps} steps of all weights"
    log.info("twenty lines: %s; each is told", trainings)
    started = time.perf_counter()
    net, choice = twenty_lines(case, cfg.seed)
    for name in ("twenty lines", "twenty lines, refitted"):
        if "refitted" in name:
            net = refitted(case, choice, cfg.seed)
        taken = time.perf_counter() - started
        rows.append(row(name, logits_of(net, case.images["test"]), taken))
    print(table(["method", f"errors on {target}", "in all", "false calls", "seconds"], rows))
    how = "augmented, " if choice.is_augmented else ""
    chosen = f"{how}rate {choice.rate:g}, weight {choice.weight:g}, scale {choice.scale:g}"
    print(f"twenty lines: {trainings}; validation images chose {chosen}")


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
    else:
        sys.argv[1:1] = ["experiment=repair", "hydra=no_folder", "+adapter=latest"]
        run_entry(rival, "train")
