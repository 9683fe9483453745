"""By which number a repair's trial, scale and offset are chosen, and how it is trained.

    python scripts/studies/points.py    # trains what is missing, and prints all tables

Each adapter of a small classifier is trained by a plain loop with the recipe's parts. Its logits of
validation and test images are kept in outputs/points_study, at each scale of the dial. Rules then
choose by validation images, and are measured on test images. Fashion-MNIST lies as :mod:`tasks`
says.
"""

import argparse
import copy
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy
import torch
import torch.nn.functional as F
from jobs import PROJECT
from rival import logits_of, table
from tasks import drawn_letters
from torch import Tensor, nn

from lora_mnist import CNN, MLP, add_lora, lora_parameters, set_lora_scale
from lora_mnist.data import MNIST
from lora_mnist.data.plan import Plan, select
from lora_mnist.files import atomic_write
from lora_mnist.lora.model import KINDS
from lora_mnist.lora.offset import offset_for, offsets_to_try
from lora_mnist.lora.pissa import PiSSAParametrization
from lora_mnist.lora.weight import layers_to_adapt, lora_adapters
from lora_mnist.measure.dial import SCALES
from lora_mnist.measure.significance import weak, weakest
from lora_mnist.training.module import Loss

OUTPUT = PROJECT / "outputs" / "points_study"
FEW_IMAGES = 400  # of a class that has two trials

# --- cases ---------------------------------------------------------------------------------------

#: A row is a base: its kind, the images, the network, the steps of its training, the training and
#: the test images of the most common class, and the classes to repair. "rare 15": the class is 15
#: times rarer; "tail 100": so is the last class beside the first; "natural 12": the test as well.
CASES = """
sure and wrong, natural 12: noisy clothes,     cnn, 3000, 1500, 1500, five weakest; weakest
sure and wrong, natural 12: noisy clothes,     mlp, 1500, 1500, 1500, five weakest; weakest
sure and wrong, natural 12: noisy ten letters, cnn, 3000,  900, 1200, five weakest; weakest
sure and wrong, natural 12: noisy digits,      mlp, 1500, 1500, 1500, five weakest; weakest
half trained, natural 12: clothes,      cnn,   60, 2200, 1500, five weakest; weakest
half trained, natural 12: clothes,      mlp,   40, 2200, 1500, five weakest; weakest
half trained, natural 12: ten letters,  cnn,  110,  900, 1200, five weakest; weakest
half trained, natural 12: noisy digits, mlp,  100, 2200, 1500, five weakest; weakest
natural 12: clothes,      cnn, 1500, 2200, 1500, weak; weakest
natural 12: clothes,      mlp, 1500, 2200, 1500, weak; weakest
natural 12: ten letters,  cnn, 1500,  900, 1200, weak; weakest
natural 12: noisy digits, mlp, 1500, 2200, 1500, weak; weakest
tail 100: clothes, cnn, 1500, 1500, 600, rarer half
tail 10:  clothes, mlp, 1500, 1500, 600, rarer half
tail 100: letters, mlp, 1500,  900, 200, rarer half
rare 100: digits,  mlp, 1500, 1500, 600, 5
rare 100: clothes, cnn, 1500, 1500, 600, 6
rare 100: clothes, mlp, 1500, 1500, 600, 4
rare 100: letters, cnn, 1500,  600, 200, 16
rare 15: digits,  mlp, 1500, 1500, 600, 5
rare 15: clothes, cnn, 1500, 1500, 600, 6
rare 15: clothes, mlp, 1500, 1500, 600, 4
rare 15: letters, cnn, 1500,  600, 200, 16
rare 2: digits,  mlp, 1500, 1500, 600, 5
rare 2: clothes, cnn, 1500, 1500, 600, 6
rare 2: clothes, mlp, 1500, 1500, 600, 4
rare 2: letters, cnn, 1500,  600, 200, 16
half trained, rare 15: noisy digits, mlp, 100, 1500, 600, 5
half trained, rare 15: clothes,      cnn, 100, 1500, 600, 6
half trained, rare 15: clothes,      mlp,  50, 1500, 600, 4
half trained, rare 15: letters,      cnn, 400,  600, 200, 16
half trained, tail 100: clothes, cnn, 100, 1500, 600, rarer half
half trained, tail 100: letters, mlp, 400,  900, 200, rarer half
"""
#: Few images of all classes.
FEW = """
few, rare 3: clothes,      cnn, 1500, 300, 600, 6
few, rare 3: clothes,      mlp, 1500, 300, 600, 4
few, rare 3: ten letters,  cnn, 1500, 140, 600, 2
few, rare 3: noisy digits, mlp, 1500, 300, 600, 5
"""
#: Hard classes with all their images.
MANY = """
many 1: clothes,       cnn, 3000, 4500, 600, 6; 2
many 1: clothes,       mlp, 3000, 4500, 600, 4
many 1: ten letters,   cnn, 1500, 1500, 600, weakest
many 1: noisy clothes, cnn, 3000, 1500, 600, weakest
"""


class Images(NamedTuple):
    """Training, validation or test images, normalised, and their labels."""

    pixels: Tensor
    labels: Tensor


@cache
def pool(source: str) -> Images:
    """All images of a source. Classifiers of the noisy ones are sure, and often wrong."""
    if source.startswith("noisy "):
        clean = pool(source.removeprefix("noisy "))
        noise = torch.randn(clean.pixels.shape, generator=torch.Generator().manual_seed(0))
        strength = 1.0 if "letters" in source else 2.5
        return Images(clean.pixels + strength * noise, clean.labels)
    if "letters" in source:
        characters, count = "abcdefghijklmnopqrstuvwxyz", 34_000
        if source == "ten letters":
            characters, count = "abcdefghij", 30_000
        images, letters = drawn_letters(characters, count)
        images = images + 0.15 * numpy.random.default_rng(1).normal(size=images.shape)
        labels = torch.tensor([characters.index(letter) for letter in letters])
        return Images(torch.tensor(images[:, None]).float().sub(0.2).div(0.3), labels)
    data = MNIST("FashionMNIST" if source == "clothes" else "MNIST", PROJECT / "data")
    parts = [data.load(train) for train in (True, False)]
    pixels = torch.cat([part[0] for part in parts]).float().div(255).sub(0.2).div(0.33)
    return Images(pixels, torch.cat([part[1] for part in parts]))


@dataclass(frozen=True)
class Case:
    """A base and the classes to repair: a row of CASES."""

    kind: str
    mix: str  # rare, tail, natural or many
    factor: float  # how many times rarer
    source: str
    network: str
    steps: int
    most: int
    test: int
    target: str
    seed: int

    @property
    def base_name(self) -> str:
        rare = f"{self.target} " if self.mix == "rare" else ""
        mix = f"{rare}{self.mix} {self.factor:g}"
        name = f"{self.source}, {self.network}, {mix}, {self.most} images, {self.steps} steps"
        return f"{name}, seed {self.seed}"

    def images(self) -> dict[str, Images]:
        """Training, validation and test images, drawn by the seed."""
        pixels, labels = pool(self.source)
        generator = numpy.random.default_rng(self.seed)
        classes = int(labels.max()) + 1
        turns, order = generator.permutation(classes), generator.permutation(len(labels))
        places: dict[str, list[int]] = {"train": [], "val": [], "test": []}
        for c in range(classes):
            share = self.factor ** (-turns[c] / (classes - 1))
            if self.mix == "rare":
                share = 1 / self.factor if c == int(self.target) else 1.0
            test = round(self.test * share) if self.mix == "natural" else self.test
            count = round(self.most * share)
            of_class = order[labels[order].numpy() == c].tolist()
            places["test"] += of_class[:test]
            places["train"] += of_class[test : test + count]
            places["val"] += of_class[test + count :][: max(1, round(count / 9))]
        return {part: Images(pixels[some], labels[some]) for part, some in places.items()}

    def base(self, train: Images) -> nn.Module:
        """The base, trained now if it was not yet."""
        classes, side = int(train.labels.max()) + 1, train.pixels.shape[-1]
        torch.manual_seed(self.seed)
        net: nn.Module = MLP(side * side, [256], classes)
        if self.network == "cnn":
            net = CNN(1, [8, 16] if side == 28 else [12, 24], side, classes)
        file = OUTPUT / "bases" / f"{self.base_name}.pt"
        if file.exists():
            net.load_state_dict(torch.load(file))
            return net
        optimizer = torch.optim.Adam(net.parameters(), 0.001, fused=True)
        for _ in range(self.steps):
            chosen = torch.randint(len(train.labels), (50,))
            loss = F.cross_entropy(net(train.pixels[chosen]), train.labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with atomic_write(file) as path:
            torch.save(net.state_dict(), path)
        return net


def cases_of(rows: str, seed: int) -> list[Case]:
    """The cases of some rows: each target is one."""
    cases = []
    for row in rows.strip().splitlines():
        kind, _, rest = row.partition(": ")
        source, network, steps, most, test, targets = map(str.strip, rest.split(","))
        mix, factor = kind.split()[-2:]
        for target in map(str.strip, targets.split(";")):
            name = kind if mix == "rare" else f"{kind.rpartition(' ')[0]}"
            if mix == "natural":
                name += ", several" if target != "weakest" else ", one"
            numbers = int(steps), int(most), int(test)
            cases.append(Case(name, mix, float(factor), source, network, *numbers, target, seed))
    return cases


def targets_of(target: str, val: Images, logits: Tensor, counts: Tensor) -> list[int]:
    """The classes to repair."""
    if target.isdigit():
        return [int(target)]
    if target == "rarer half":
        return sorted(counts.argsort()[: len(counts) // 2].tolist())
    errors = val.labels[logits.argmax(1) != val.labels].bincount(minlength=len(counts))
    images = val.labels.bincount(minlength=len(counts))
    if target == "weakest":
        return [weakest(errors.tolist(), images.tolist())]
    found = list(weak(errors.tolist(), images.tolist()))
    if target == "weak" and len(found) > 1:
        return found
    return sorted((errors / images).argsort(descending=True, stable=True)[:5].tolist())


# --- trainings -----------------------------------------------------------------------------------


class Trial(NamedTuple):
    """How an adapter is trained."""

    rate: float = 0.001
    dropout: float = 0.0
    mask: float = 0.0  # the probability of dropping an input of lora_A for a whole batch
    rank: int = 64
    steps: int = 400
    refit: bool = False


class Mix(NamedTuple):
    """How many images of a batch of a hundred are learnt, and their share of the loss."""

    learnt: int
    weight: float


PLAIN, DROPOUT, TODAY = Trial(), Trial(0.003, 0.05), Mix(10, 0.25)


class Masked(PiSSAParametrization):
    """PiSSA of whose lora_A some inputs are dropped for a whole batch: the weight can be built."""

    mask: Tensor | float = 1.0

    def forward(self, weight: Tensor) -> Tensor:
        change = self.lora_B.flatten(1) @ (self.lora_A * self.mask).flatten(1)
        change = change - self.start_B.flatten(1) @ self.start_A.flatten(1)
        return weight + change.view_as(weight) * self.strength

    def terms(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [(x, self.lora_A * self.mask, self.lora_B), (x, self.start_A, -self.start_B)]


KINDS["masked"] = Masked


def adapted(
    base: nn.Module, trial: Trial, mix: Mix, targets: Sequence[int], train: Images, seed: int
) -> nn.Module:
    """A copy of the base with an adapter, trained as the recipe does."""
    net, ranks = copy.deepcopy(base), {}
    for name, layer in layers_to_adapt(net).items():
        ranks[f"^{name}"] = min(trial.rank, *layer.base.flatten(1).shape)
    torch.manual_seed(seed)
    init, dropout = "masked" if trial.mask else "pissa", trial.dropout
    add_lora(net, trial.rank, 8.0, "all", init, 1.0, True, dropout, ranks)
    net.train()
    masked = [adapter for adapter in lora_adapters(net) if isinstance(adapter, Masked)]
    weights = list(lora_parameters(net))
    optimizer = torch.optim.Adam(weights, trial.rate, fused=True)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=100)
    names = [str(c) for c in range(int(train.labels.max()) + 1)]
    selection = select(train.labels, names, [names[c] for c in targets])
    loss_of, replay = Loss(mix.weight), min(100 - mix.learnt, len(selection.replay_indices))
    plan = Plan(selection, train.labels, mix.learnt, replay, seed)
    average: list[Tensor] = []
    for batch in islice(plan.batches(), trial.steps):
        for adapter in masked:
            kept = torch.rand(adapter.lora_A.shape[1:]) >= trial.mask
            adapter.mask = kept / (1 - trial.mask)
        loss = loss_of(net(train.pixels[batch]), train.labels[batch], replay)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        warmup.step()
        if not average:
            average = [weight.detach().clone() for weight in weights]
        torch._foreach_lerp_(average, [weight.detach() for weight in weights], 0.01)
    with torch.no_grad():
        for weight, mean in zip(weights, average, strict=True):
            weight.copy_(mean)
    for adapter in masked:
        adapter.mask = 1.0
    return net.eval()


class Job:
    """A case, its base's predictions and its trials, which are made where they are missing."""

    def __init__(self, case: Case) -> None:
        self.case, self.folder = case, OUTPUT / f"{case.base_name}, {case.target}"
        self._grids: dict[str, dict[str, Any]] = {}
        if not (self.folder / "case.pt").exists():
            base, counts = case.base(self.images["train"]), self.images["train"].labels.bincount()
            facts: dict[str, Any] = {"counts": counts}
            for part in ("val", "test"):
                logits = logits_of(base, self.images[part].pixels)
                facts[part] = (self.images[part].labels, logits)
            facts["targets"] = targets_of(case.target, self.images["val"], facts["val"][1], counts)
            self._save("case", facts)
        facts = torch.load(self.folder / "case.pt")
        self.counts, self.targets = facts["counts"], facts["targets"]
        self.labels = {part: facts[part][0] for part in ("val", "test")}
        self.was_wrong = facts["test"][1].argmax(1) != self.labels["test"]
        self.offset = offset_for(self.counts.float(), self.targets)
        self.offsets = offsets_to_try(self.offset)
        self.has_few = int(self.counts[self.targets].min()) < FEW_IMAGES
        share = len(self.targets) / len(self.counts)
        self.share = Mix(max(10, round(100 * share)), max(0.25, share))

    @cached_property
    def images(self) -> dict[str, Images]:
        return self.case.images()

    def _save(self, name: str, value: Any) -> None:
        with atomic_write(self.folder / f"{name}.pt") as path:
            torch.save(value, path)

    def grid(self, trial: Trial, mix: Mix) -> dict[str, Any]:
        """:func:`grid_of` an adapter, and the seconds of processor time of its training."""
        name = f"{' '.join(map(str, trial))}, {mix.learnt}"
        if name not in self._grids:
            file = self.folder / "grids" / f"{name}.pt"
            if not file.exists():
                self._save(f"grids/{name}", grid_of(self, self.logits(name, trial, mix)))
            self._grids[name] = torch.load(file)
        return self._grids[name]

    def logits(self, name: str, trial: Trial, mix: Mix) -> dict[str, Any]:
        """The logits at each scale, (S, N, num_classes), of validation and test images."""
        file = self.folder / f"{name}.pt"
        if not file.exists():
            train = self.images["train"]
            base = self.case.base(train)
            if trial.refit:
                both = zip(train, self.images["val"], strict=True)
                train = Images(*(torch.cat(pair) for pair in both))
            started = time.process_time()
            net = adapted(base, trial, mix, self.targets, train, self.case.seed)
            found: dict[str, Any] = {"seconds": time.process_time() - started}
            for part in ("val", "test"):
                at_scales = []
                for scale in SCALES:
                    set_lora_scale(net, scale)
                    at_scales.append(logits_of(net, self.images[part].pixels))
                found[part] = torch.stack(at_scales)
            self._save(name, found)
            print(f"{self.folder.name}: {name}", file=sys.stderr, flush=True)
        loaded: dict[str, Any] = torch.load(file)
        return loaded


# --- rules ---------------------------------------------------------------------------------------

MEASURES = ("balanced_accuracy", "accuracy")
TEMPERATURES = (1.0, 0.7, 0.5, 0.35)
#: Of the generalised cross-entropy, (1 - p^q) / q: Zhang and Sabuncu 2018, arXiv:1805.07836.
POWERS = (0.1, 0.25, 0.5)
RULES = ["today", "cross-entropy", "tempered cross-entropy", "accuracy", "Brier"]
RULES += [f"T = {t:g}" for t in TEMPERATURES] + [f"q = {q:g}" for q in POWERS]
RULE = "q = 0.25"  # that is taken


class Result(NamedTuple):
    """What is left on test images: errors in percent of the base's; a gain in points."""

    target: float
    every: float
    gain: float  # of the balanced accuracy


def weights_of(labels: Tensor, measure: str) -> Tensor:
    """How much each image counts; all together 1."""
    if measure == "accuracy":
        return torch.full((len(labels),), 1 / len(labels))
    counts = labels.bincount()
    return 1 / (counts[labels] * (counts > 0).sum())


def grid_of(job: Job, logits: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial amounts to at each scale and offset, (S, O): a score of each rule, by measure.

    ``right`` says which validation images are right, (S, O, N); ``test`` has Results, (S, O, 3).
    """
    shifts = torch.tensor(job.offsets)[:, None, None] * job.offset.direction
    labels, columns, rights, tests = job.labels["val"], [], [], []
    for at_scale, test_at_scale in zip(logits["val"], logits["test"], strict=True):
        moved = at_scale + shifts
        label = moved.gather(2, labels.expand(len(shifts), -1)[..., None])[..., 0]
        logarithms = {t: label / t - (moved / t).logsumexp(2) for t in (1.0, *TEMPERATURES)}
        rights.append(moved.argmax(2) == labels)
        values = {"accuracy": rights[-1].float(), "cross-entropy": logarithms[1.0]}
        values |= {f"T = {t:g}": logarithms[t].exp() for t in TEMPERATURES}
        values |= {f"q = {q:g}": (q * logarithms[1.0]).exp() / q for q in POWERS}
        squares = (2 * moved.log_softmax(2)).exp().sum(2)
        values["Brier"] = 2 * logarithms[1.0].exp() - squares
        column = {}
        for measure in MEASURES:
            weights = weights_of(labels, measure)
            for rule, value in values.items():
                column[f"{measure} {rule}"] = value @ weights
            tempered = []
            for t in (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0):
                tempered.append((label / t - (moved / t).logsumexp(2)) @ weights)
            column[f"{measure} tempered cross-entropy"] = torch.stack(tempered).amax(0)
        columns.append(column)
        tests.append([result_of(job, test_at_scale + shift) for shift in shifts])
    scores = {key: torch.stack([column[key] for column in columns]) for key in columns[0]}
    grid = {"scores": scores, "right": torch.stack(rights), "test": torch.tensor(tests)}
    return grid | {"seconds": logits["seconds"]}


def result_of(job: Job, logits: Tensor) -> Result:
    """What logits of the test images leave."""
    labels, was_wrong = job.labels["test"], job.was_wrong
    wrong, of_target = logits.argmax(1) != labels, torch.isin(labels, torch.tensor(job.targets))
    gain = (was_wrong.float() - wrong.float()) @ weights_of(labels, MEASURES[0])
    before = max(1, int((was_wrong & of_target).sum()))
    target = 100 * int((wrong & of_target).sum()) / before
    return Result(target, 100 * int(wrong.sum()) / int(was_wrong.sum()), 100 * float(gain))


def chosen(job: Job, grids: Sequence[Mapping[str, Any]], rule: str, measure: str) -> list[int]:
    """The places of trial, scale and offset. Of equal ones that nearest to scale 1, then to 0."""
    zero = job.offsets.index(0.0)
    if rule != "today":
        score = torch.stack([grid["scores"][f"{measure} {rule}"] for grid in grids])
        equals = (score >= score.max() - 1e-7).nonzero().tolist()
        best: list[int] = max(equals, key=lambda p: (p[1], -abs(p[2] - zero), -p[0]))
        return best
    # The offset by cross-entropy at each scale, then the scale by accuracy, then the trial.
    measures, points = [], []
    scales, weights = torch.arange(len(SCALES)), weights_of(job.labels["val"], measure)
    for number, grid in enumerate(grids):
        places = grid["scores"][f"{measure} cross-entropy"].argmax(1)
        accuracy = grid["scores"][f"{measure} accuracy"]
        if accuracy[0, places[0]] < accuracy[0, zero]:
            places[0] = zero
        saved, right = accuracy[scales, places], grid["right"][scales, places]
        deviation = ((right != right[saved.argmax()]).float() @ weights**2).sqrt()
        scale = int((saved >= saved.max() - deviation / 2).nonzero().max())
        measures.append(float(saved[scale]))
        points.append([number, scale, int(places[scale])])
    return points[measures.index(max(measures))]


def left_by(
    job: Job,
    trials: Sequence[Trial],
    mix: Mix,
    rule: str = RULE,
    measure: str = MEASURES[0],
    refits: bool = False,
) -> Result:
    """What is left at the point that a rule chooses, perhaps of a refit of the chosen trial."""
    grids = [job.grid(trial, mix) for trial in trials]
    trial, scale, offset = chosen(job, grids, rule, measure)
    grid = grids[trial]
    if refits:
        grid = job.grid(trials[trial]._replace(refit=True), mix)
    return Result(*grid["test"][scale, offset].tolist())


# --- tables --------------------------------------------------------------------------------------


def cell(results: Sequence[Result], others: Sequence[Result]) -> str:
    """The mean of class, all and gain; how far the errors are from others, and its deviation."""
    columns, differences = torch.tensor(results), []
    target, every, gain = columns.mean(0).tolist()
    for column in (0, 1):
        each = columns[:, column] - torch.tensor(others)[:, column]
        differences.append(f"{each.mean():+.1f} ± {each.std() / len(each) ** 0.5:.1f}")
    return f"{target:.1f} / {every:.1f} / {gain:+.2f} ({' / '.join(differences)})"


def print_rules(jobs: Mapping[str, Sequence[Job]]) -> None:
    """Each rule with each mix, beside today's rule and mix."""
    print("Class / in all, % of the base's / balanced accuracy, points (beside today, ± deviation)")
    for measure in MEASURES:
        for name in ("10 + 90", "share", "share, 200 steps"):
            kinds = []
            for kind in jobs:
                has_several = len(jobs[kind][0].targets) > 1
                if (has_several or name == "10 + 90") and (
                    "natural" in kind or measure == MEASURES[0]
                ):
                    kinds.append(kind)
            rows: list[list[str]] = []
            for rule in RULES:
                every: tuple[list[Result], list[Result]] = ([], [])
                rows.append([rule])
                for kind in kinds:
                    mine, todays = [], []
                    for job in jobs[kind]:
                        steps = 200 if "200" in name else 400
                        trials = [trial._replace(steps=steps) for trial in trials_of(job)]
                        mix = TODAY if name == "10 + 90" else job.share
                        mine.append(left_by(job, trials, mix, rule, measure))
                        todays.append(left_by(job, trials_of(job), TODAY, "today", measure))
                    rows[-1].append(cell(mine, todays))
                    every[0].extend(mine)
                    every[1].extend(todays)
                rows[-1].append(cell(*every))
            heads = [f"{kind} ({len(jobs[kind])})" for kind in kinds]
            print(f"\n{name}, by {measure}\n\n{table(['rule', *heads, 'all'], rows)}", flush=True)


def trials_of(job: Job) -> list[Trial]:
    """Those of the recipe."""
    return [PLAIN, DROPOUT] if job.has_few else [PLAIN]


#: The second trial of a class of few images.
SECOND = {
    "dropout 0.05": DROPOUT,
    "no dropout": Trial(0.003),
    "a mask a step, 0.05": Trial(0.003, mask=0.05),
    "a mask a step, 0.1": Trial(0.003, mask=0.1),
    "dropout 0.05, rank 16": Trial(0.003, 0.05, rank=16),
}
#: Trainings of a class of many images, and whether the best of them is refitted.
OF_MANY: dict[str, tuple[list[Trial], bool]] = {
    "400 steps": ([PLAIN], False),
    "1,200 steps": ([PLAIN._replace(steps=1200)], False),
    "800 steps": ([PLAIN._replace(steps=800)], False),
    "400 steps at 0.003": ([Trial(0.003)], False),
    "400 and dropout": ([PLAIN, DROPOUT], False),
    "400 and 0.003": ([PLAIN, Trial(0.003)], False),
    "400, refitted": ([PLAIN], True),
    "400 and dropout, refitted": ([PLAIN, DROPOUT], True),
    "400 and 0.003, refitted": ([PLAIN, Trial(0.003)], True),
}


def print_trials(
    title: str, jobs: Mapping[str, Sequence[Job]], plans: Mapping[str, tuple[list[Trial], bool]]
) -> None:
    """Some trainings, beside the first of them."""
    rows = []
    for name, (trials, refits) in plans.items():
        rows.append([name])
        for of_kind in jobs.values():
            mine = [left_by(job, trials, job.share, refits=refits) for job in of_kind]
            first = [left_by(job, next(iter(plans.values()))[0], job.share) for job in of_kind]
            rows[-1].append(cell(mine, first))
        seconds = [
            job.grid(trials[-1], job.share)["seconds"] for each in jobs.values() for job in each
        ]
        rows[-1].append(f"{sum(seconds) / len(seconds):.1f}")
    heads = [f"{kind} ({len(of_kind)})" for kind, of_kind in jobs.items()]
    heads.append("seconds of the last training")
    print(f"\n{title}\n\n{table(['trainings', *heads], rows)}", flush=True)


def jobs_of(rows: str, seeds: Sequence[int]) -> dict[str, list[Job]]:
    """The jobs of some rows by their kinds."""
    jobs: dict[str, list[Job]] = {}
    for seed in seeds:
        for case in cases_of(rows, seed):
            jobs.setdefault(case.kind, []).append(Job(case))
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    jobs = jobs_of(CASES, seeds)
    print_rules(jobs)
    few = {}
    for kind, of_kind in jobs.items():
        if "natural" not in kind and all(job.has_few for job in of_kind):
            few[kind] = of_kind
    few |= jobs_of(FEW, seeds)
    print_trials("The second trial", few, {name: ([each], False) for name, each in SECOND.items()})
    both = {f"plain and {name}": ([PLAIN, each], False) for name, each in SECOND.items()}
    print_trials("Two trials", few, both)
    print_trials("Many images", jobs_of(MANY, seeds), OF_MANY)


if __name__ == "__main__":
    main()
