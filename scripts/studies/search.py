"""Candidates for experiment=repair on small sets: a plain loop with its plan, loss and start.

    python scripts/studies/search.py                   # every candidate
    python scripts/studies/search.py "mixup, 0.2"      # one, beside the recipe
    python scripts/studies/search.py --set few "refit at the dial's scale"

Six classifiers, or five with few validation images; two bases each, two repairs each. None of them
is in tasks.py: no search has seen those of docs/worth.md. Every repair is kept in outputs/search;
called again, the search does what is missing. The rate is 0.003, the recipe's for fewer than 400
images of the class.
"""

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jobs import PROJECT, table
from plain import point
from sklearn.datasets import load_digits
from tasks import Case, ResNet, drawn, logits_of
from torch import Tensor, nn

from lora_mnist import add_lora, set_lora_scale
from lora_mnist.data import load_images
from lora_mnist.data.plan import Plan, select
from lora_mnist.lora.targets import layers_to_adapt
from lora_mnist.repair.dial import dial_curve, scale_of_refit
from lora_mnist.repair.networks import CNN, MLP

OUTPUT = PROJECT / "outputs" / "search"
#: Of the recipe.
_RANK, _RATE = 64, 0.003


@dataclass(frozen=True)
class Candidate:
    """What differs from the recipe; the defaults are the recipe."""

    dropouts: Sequence[float] = (0.0, 0.05)  # trials
    refit: bool = True
    steps: int = 400
    learnt: int = 10  # images of the class in a step
    replay: int = 90
    weight: float = 0.25  # of the class in the loss
    val_weight: int = 1  # how often a validation image comes beside a training image, in refit
    train_too: bool = True  # whether refit learns training images at all
    keep: float = 0.0  # weight of the divergence from the base on replayed images it has right
    smoothing: float = 0.0  # of labels
    mixup: float = 0.0  # alpha of the beta distribution
    shift: int = 0  # pixels, at random
    refit_steps: int = 0  # 0: as many as before
    careful: bool = False  # whether refit is saved at the scale that the dial advises before it


CANDIDATES = {
    "the recipe": Candidate(),
    "no refit": Candidate(refit=False, careful=True),
    "refit at the dial's scale": Candidate(careful=True),
    "refit: validation images 3 times": Candidate(val_weight=3),
    "refit: validation images alone": Candidate(train_too=False),
    "refit: 800 steps": Candidate(refit_steps=800),
    "labels smoothed by 0.1": Candidate(smoothing=0.1),
    "mixup, 0.2": Candidate(mixup=0.2),
    "pictures moved by up to 1 pixel": Candidate(shift=1),
    "near the base where it is right": Candidate(keep=1.0),
    "5 images of the class, a weight of 0.2": Candidate(learnt=5, replay=95, weight=0.2),
    "dropout 0, 0.05 or 0.2": Candidate(dropouts=(0.0, 0.05, 0.2)),
    "800 steps": Candidate(steps=800),
}


# --- classifiers ----------------------------------------------------------------------------------


def small_digits() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(digits.images / 16)[order], torch.tensor(digits.target)[order]


def letters(characters: str, count: int) -> tuple[Tensor, Tensor]:
    """Characters with noise."""
    images, labels = drawn(characters, count)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    pixels = (torch.tensor(images) + 0.15 * noise).clamp(0, 1)
    return pixels, torch.tensor([characters.index(each) for each in labels])


def clothes(first: int, count: int) -> tuple[Tensor, Tensor]:
    images, labels = load_images("FashionMNIST", PROJECT / "data", train=True)
    return images[first : first + count, 0] / 255, labels[first : first + count]


def silhouettes() -> tuple[Tensor, Tensor]:
    """Clothes in black and white, 14 x 14."""
    images, labels = clothes(32_000, 6500)
    return (F.avg_pool2d(images[:, None], 2)[:, 0] > 0.25).float(), labels


@dataclass(frozen=True)
class Classifier:
    """How a base is made. Many images are to test on, so that two candidates can be told apart."""

    pictures: Callable[[], tuple[Tensor, Tensor]]
    net: Callable[[], nn.Module]
    train: int  # images
    val: int
    epochs: int
    target: int | None = None  # None: the weakest on validation images
    starved: float = 1.0  # the share of its training images that is there


CLASSIFIERS = {
    "small digits, CNN": Classifier(
        small_digits, lambda: CNN(1, [8, 16], 8), 800, 150, 20, target=8, starved=0.3
    ),
    "capitals, MLP, memorised": Classifier(
        partial(letters, "KLMNOPQRST", 5000),
        lambda: MLP(256, [100]),
        *(800, 150, 60),
        target=2,
        starved=0.35,
    ),
    "clothes, MLP, memorised": Classifier(
        partial(clothes, 20_000, 5500), lambda: MLP(784, [200, 100]), 1500, 250, 100
    ),
    "clothes, CNN": Classifier(
        partial(clothes, 26_000, 5000), lambda: CNN(1, [8, 16], 28), 1320, 220, 15
    ),
    "silhouettes, MLP": Classifier(
        silhouettes, lambda: MLP(196, [128, 64]), 2500, 400, 12, target=4, starved=0.4
    ),
    "letters, ResNet": Classifier(
        partial(letters, "nopqrstuvwxyz", 5500),
        lambda: ResNet(13, 6),
        *(2300, 390, 12),
        target=5,
        starved=0.4,
    ),
}


#: With about a hundred validation images, which say little: what scale is a refit saved at?
FEW = {
    "K to T, MLP": Classifier(
        partial(letters, "KLMNOPQRST", 4000),
        lambda: MLP(256, [100]),
        *(800, 100, 60),
        target=2,
        starved=0.35,
    ),
    "U to d, MLP": Classifier(
        partial(letters, "UVWXYZabcd", 4000),
        lambda: MLP(256, [100]),
        *(800, 100, 60),
        target=3,
        starved=0.35,
    ),
    "e to n, CNN": Classifier(
        partial(letters, "efghijklmn", 4000),
        lambda: CNN(1, [8, 16], 16),
        *(700, 100, 25),
        target=4,
        starved=0.35,
    ),
    "clothes, MLP": Classifier(
        partial(clothes, 38_000, 4500), lambda: MLP(784, [100]), 1000, 120, 60
    ),
    "clothes, CNN": Classifier(
        partial(clothes, 43_000, 4500),
        lambda: CNN(1, [8, 16], 28),
        *(1000, 120, 15),
        target=0,
        starved=0.4,
    ),
}


SETS = {"all": CLASSIFIERS, "few": FEW}


def case_of(classifier: Classifier, base: int) -> Case:
    """One base of a classifier, and its images, normalised."""
    pixels, all_labels = classifier.pictures()
    ends = (0, classifier.train, classifier.train + classifier.val, len(pixels))
    where = {}
    for part, (first, end) in zip(("train", "val", "test"), pairwise(ends), strict=True):
        where[part] = torch.arange(first, end)
    target, share = classifier.target, classifier.starved
    if target is not None:
        train = where["train"]
        is_target = torch.eq(all_labels[train], target)
        kept = is_target & (is_target.cumsum(0) <= share * is_target.sum())
        where["train"] = train[kept | ~is_target]
    mean, std = pixels[where["train"]].mean(), pixels[where["train"]].std()
    pixels = ((pixels - mean) / std)[:, None].float()
    images = {part: pixels[indices] for part, indices in where.items()}
    labels = {part: all_labels[indices].long() for part, indices in where.items()}
    torch.manual_seed(1000 + base)
    net = classifier.net().train()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
    for _ in range(classifier.epochs):
        for batch in torch.split(torch.randperm(len(labels["train"])), 50):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images["train"][batch]), labels["train"][batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    before = {part: logits_of(net, images[part]) for part in ("val", "test")}
    if target is None:
        wrong = before["val"].argmax(1) != labels["val"]
        counts = torch.bincount(labels["val"]), torch.bincount(labels["val"][wrong], minlength=10)
        target = int((counts[1] / counts[0]).argmax())
    return Case(net, images, labels, before, target)


# --- a repair -------------------------------------------------------------------------------------


class Trial(NamedTuple):
    """A training that has not seen the validation images, and what these say of it."""

    dropout: float
    errors: int
    scale: float
    net: nn.Module


def best_trial(case: Case, candidate: Candidate, seed: int) -> Trial:
    """The trial with the fewest validation errors."""
    trials = []
    for dropout in candidate.dropouts:
        net = trained(case, candidate, dropout, seed, refit=False)
        batches = [(case.images["val"], case.labels["val"])]
        curve = dial_curve(net, batches, [case.target])
        scale = curve["advised"] if candidate.careful else scale_of_refit(curve)
        set_lora_scale(net, scale)
        wrong = logits_of(net, case.images["val"]).argmax(1) != case.labels["val"]
        trials.append(Trial(dropout, int(wrong.sum()), scale, net))
    return min(trials, key=lambda trial: trial.errors)


def repair(case: Case, candidate: Candidate, seed: int, trial: Trial) -> dict[str, Any]:
    """What a repair leaves on the test images: as it is saved, and in all at half."""
    net = trial.net
    if candidate.refit:
        net = trained(case, candidate, trial.dropout, seed, refit=True)
    set_lora_scale(net, trial.scale)
    saved = point(case, net).test._asdict()
    set_lora_scale(net, 1.0)
    half = point(case, net).front[0]
    return {"dropout": trial.dropout, "scale": trial.scale, "saved": saved, "at half": half}


def trained(case: Case, candidate: Candidate, dropout: float, seed: int, refit: bool) -> nn.Module:
    """A copy of the base with a finished adapter."""
    net = copy.deepcopy(case.net)
    images, labels = case.images["train"], case.labels["train"]
    if refit:
        times = candidate.val_weight
        images = torch.cat([images] * candidate.train_too + [case.images["val"]] * times)
        labels = torch.cat([labels] * candidate.train_too + [case.labels["val"]] * times)
    ranks = {}
    for name, weight in layers_to_adapt(net, "all").items():
        ranks[f"^{name}"] = min(_RANK, *weight.base.flatten(1).shape)
    add_lora(
        net,
        _RANK,
        8.0,
        "all",
        "pissa",
        use_rslora=True,
        dropout=dropout,
        rank_pattern=ranks,
    )
    classes = [str(number) for number in range(case.before["val"].shape[1])]
    selection = select(labels, classes, case.target)
    replay = min(candidate.replay, len(selection.replay_indices))
    plan = Plan(selection, labels, candidate.learnt, replay, seed)
    torch.manual_seed(seed)
    parameters = [each for each in net.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=_RATE, fused=True)
    average = [each.detach().clone() for each in parameters]
    steps = candidate.refit_steps if refit and candidate.refit_steps else candidate.steps
    for step, indices in enumerate(islice(plan.batches(), steps)):
        net.train()
        optimizer.zero_grad()
        value = loss_of(case, net, candidate, images[indices], labels[indices], replay)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for mean, parameter in zip(average, parameters, strict=True):
            mean.lerp_(parameter.detach(), 0.01 if step else 1.0)
    with torch.no_grad():
        for mean, parameter in zip(average, parameters, strict=True):
            parameter.copy_(mean)
    return net.eval()


def loss_of(
    case: Case, net: nn.Module, candidate: Candidate, images: Tensor, labels: Tensor, replay: int
) -> Tensor:
    """The loss of a batch, with what the candidate adds to it."""
    if candidate.shift:
        images = shifted_pictures(images, candidate.shift)
    weights = torch.full((len(labels),), (1 - candidate.weight) / replay)
    weights[: len(labels) - replay] = candidate.weight / (len(labels) - replay)
    smoothing = candidate.smoothing
    if candidate.mixup:
        way = float(torch.distributions.Beta(candidate.mixup, candidate.mixup).sample())
        way = max(way, 1 - way)
        other = torch.randperm(len(labels))
        logits = net(way * images + (1 - way) * images[other])
        losses = way * F.cross_entropy(logits, labels, reduction="none")
        losses = losses + (1 - way) * F.cross_entropy(logits, labels[other], reduction="none")
    else:
        logits = net(images)
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    value = (weights * losses).sum()
    if candidate.keep:
        base = logits_of(case.net, images)
        right = (base.argmax(1) == labels)[-replay:]
        away = F.kl_div(
            logits[-replay:].log_softmax(1), base[-replay:].softmax(1), reduction="none"
        ).sum(1)
        value = value + candidate.keep * (away * right).mean()
    return value


def shifted_pictures(images: Tensor, most: int) -> Tensor:
    """Each batch moved by up to ``most`` pixels; what is left free repeats the edge."""
    size = images.shape[-1]
    padded = F.pad(images, (most,) * 4, mode="replicate")
    places = torch.randint(2 * most + 1, (len(images), 2)).tolist()
    return torch.stack(
        [padded[i, :, y : y + size, x : x + size] for i, (y, x) in enumerate(places)]
    )


def results_of(
    names: Sequence[str], set_name: str, classifier: str, base: int, seed: int
) -> dict[str, dict[str, Any]]:
    """The results of candidates in one place: as they were left, or found now."""
    case, trials, results = None, {}, {}
    folder = OUTPUT / set_name
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        candidate = CANDIDATES[name]
        file = folder / f"{classifier}, base {base}, seed {seed}, {name}.json"
        if not file.exists():
            case = case or case_of(SETS[set_name][classifier], base)
            # What concerns the refit alone begins with the same trials.
            own = replace(candidate, refit=True, val_weight=1, train_too=True, refit_steps=0)
            if own not in trials:
                trials[own] = best_trial(case, own, seed)
            result = repair(case, candidate, seed, trials[own])
            unfinished = file.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(result))
            unfinished.replace(file)
        results[name] = json.loads(file.read_text())
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("candidates", nargs="*", metavar="CANDIDATE")
    parser.add_argument("--set", default="all", choices=SETS, help="which classifiers")
    parser.add_argument("--bases", type=int, default=2)
    parser.add_argument("--repairs", type=int, default=2)
    options = parser.parse_args()
    chosen = ["the recipe", *options.candidates] if options.candidates else list(CANDIDATES)
    classifiers = SETS[options.set]
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}  # by candidate and classifier
    for base in range(options.bases):
        for classifier in classifiers:
            for seed in range(options.repairs):
                results = results_of(chosen, options.set, classifier, base, seed)
                for name, result in results.items():
                    runs.setdefault((name, classifier), []).append(result)
    rows = []
    for name in chosen:
        halves, saved = [], []
        for classifier in classifiers:
            own = runs[name, classifier]
            halves.append(statistics.mean(run["at half"] for run in own))
            means = []
            for kind in ("target", "every", "flipped"):
                means.append(statistics.mean(run["saved"][kind] for run in own))
            saved.append(means)
        cells = [*halves, statistics.mean(halves), *map(statistics.mean, zip(*saved, strict=True))]
        rows.append([name, *(f"{number:.1f}" for number in cells)])
    heads = ["candidate", *classifiers, "mean", "as saved: the class", "in all", "flips"]
    print(table(heads, rows))


if __name__ == "__main__":
    main()
