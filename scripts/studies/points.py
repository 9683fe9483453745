"""By which number a repair's trial, scale and offset are chosen: rules on logits that were kept.

    git worktree add OLD e0c9e8e8
    PYTHONPATH=OLD/src:OLD/scripts:OLD/scripts/studies python scripts/studies/points.py --train OLD
    python scripts/studies/points.py    # prints all tables

Bases and trainings are those of ``points.py`` in e0c9e8e8, with today's trials and refits. A file
of outputs/points has the logits of a repair. Rules choose by its validation images, and are
measured on its test images, also as if these had the training's mix of classes.
"""

import argparse
import runpy
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import one_hot

FOLDER = Path(__file__).resolve().parents[2] / "outputs" / "points"

# --- trainings -----------------------------------------------------------------------------------

#: Classes with six to eight validation images, of easy ones: often all are right.
EASY = """
all right, rare 20: digits,  mlp, 1500, 1500, 600, 1; 6; 0
all right, rare 20: clothes, cnn, 1500, 1500, 600, 1; 8; 9
all right, rare 20: clothes, mlp, 1500, 1500, 600, 1; 8; 9
all right, rare 9: letters, cnn, 1500,  600, 200, 12; 14
"""


def train(old: Path) -> None:
    """Train what is missing, by the script of the commit that lies in ``old``."""
    study: Any = runpy.run_path(str(old / "scripts" / "studies" / "points.py"))
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows_of = {seed: study["CASES"] + study["FEW"].lstrip() for seed in (0, 1, 2)}
    rows_of |= dict.fromkeys((3, 4, 5), EASY)
    for seed, rows in rows_of.items():
        for case in study["cases_of"](rows, seed):
            file = FOLDER / f"{case.kind}; {case.base_name}, {case.target}.pt"
            if not file.exists():
                torch.save(logits_of_repair(study, case), file)


def logits_of_repair(study: Any, case: Any) -> dict[str, Any]:
    """The facts of a case, and its logits of validation and test images at each scale."""
    job = study["Job"](case)
    repair: dict[str, Any] = {"case": vars(case), "labels": job.labels, "trials": []}
    repair |= {"counts": job.counts, "targets": job.targets, "offsets": job.offsets}
    repair |= {"direction": job.offset.direction}
    base = torch.load(job.folder / "case.pt")
    repair["base"] = {part: base[part][1] for part in ("val", "test")}
    trials = [study["PLAIN"], study["DROPOUT"]]
    if not job.has_few:
        trials = [study["PLAIN"]._replace(steps=1200)]
    for trial in trials:
        logits = job.logits(str(trial), trial, job.share)
        if job.has_few:
            refit = trial._replace(refit=True)
            logits["refit"] = job.logits(str(refit), refit, job.share)["test"]
        repair["trials"].append(logits)
    return repair


# --- rules ---------------------------------------------------------------------------------------

POWERS, MORE, SHARES = (0.1, 0.25, 0.5, 1.0), (0.0, 0.5, 1.0, 2.0), (0.0, 0.25, 0.5)
#: Of the least cross-entropy: of the base for all points, or of each trial and scale. There classes
#: count alike, as W says, or as many images as they have.
TEMPERATURES = ("none", "base, alike", "base, images", "each, alike", "each, W", "each, images")


class Rule(NamedTuple):
    """Which point is taken: that of the largest sum over classes of W_c * part_c.

    Of n validation images of the class c the part is (sum of p^q + v u^q) / (n + v).
    """

    power: float = 0.25  # q
    more: float = 0.0  # v: images of each class, of which a network knows nothing
    temperature: str = "none"
    share: float = 0.0  # s: W_c = (1 - s) / K + s m_c, where m is the mix of the test


TODAY = Rule()


class Result(NamedTuple):
    """What is left on test images, in percent of the base's errors, and points gained."""

    target: float
    balanced: float
    every: float
    balanced_gain: float
    gain: float


class Choice(NamedTuple):
    """What a rule takes."""

    result: Result
    before: float  # errors of the classes to repair
    after: float
    is_behind: bool  # the plain measure on validation images, behind the base's
    is_clearly_behind: bool  # by two deviations


class Repair:
    """A base, its trials, and what rules take of them; a place is (trial, scale, offset)."""

    def __init__(self, kept: dict[str, Any], as_trained: bool) -> None:
        self.targets, self.trials, self.base = kept["targets"], kept["trials"], kept["base"]
        case, self.labels = kept["case"], kept["labels"]
        self.kind = case["kind"]
        of_base = {key: case[key] for key in case if key not in ("kind", "target")}
        self.base_name = f"{of_base} {case['target'] if case['mix'] == 'rare' else ''}"
        self.direction = kept["direction"].double()
        self.offsets: list[float] = sorted(kept["offsets"], key=abs)  # of equals the nearest to 0
        self.images = self.labels["test"].bincount(minlength=len(self.direction)).double()
        mix = kept["counts"].double() if as_trained else self.images
        self.mix = mix / mix.sum()
        of_class = one_hot(self.labels["val"], len(self.mix)).double()
        self.of_class, self.count = of_class, of_class.sum(0)
        self._wrong: dict[tuple[Any, ...], Tensor] = {}
        self.choices = {rule: self.choice(rule, place) for rule, place in self.places()}
        del self.trials, self.base, self._wrong  # what takes memory

    def weights(self, share: float) -> Tensor:
        """W."""
        weights: Tensor = (1 - share) / len(self.mix) + share * self.mix
        return weights

    def places(self) -> Iterator[tuple[Rule, tuple[int, ...]]]:
        for temperature, s in product(TEMPERATURES, SHARES):
            weights = self.weights(s)
            rights, unknowns = self.logarithms(temperature, weights)
            for q in POWERS:
                sums = self.of_class.T @ (q * rights).exp()  # (trials and scales, K, O)
                for v in MORE:
                    parts = (sums + v * (q * unknowns).exp()) / (self.count + v)[:, None]
                    scores = weights @ parts.nan_to_num()  # a class without images: no part
                    point, offset = divmod(int(scores.argmax()), len(self.offsets))
                    trial, scale = divmod(point, len(scores) // len(self.trials))
                    yield Rule(q, v, temperature, s), (trial, scale, offset)

    def logarithms(self, temperature: str, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Of p of each validation image, (trials and scales, N, O), and of u, (..., K, O)."""
        whose, _, how = temperature.partition(", ")
        alike = torch.ones_like(weights)
        of_class = {"alike": alike, "W": weights, "images": self.count}.get(how, alike)
        moves, labels = torch.outer(self.direction, torch.tensor(self.offsets)), self.labels["val"]
        rights, unknowns = [], []
        for logits in torch.cat([trial["val"] for trial in self.trials]).double():
            t = 1.0
            if whose != "none":
                t = self.temperature(self.base["val"] if whose == "base" else logits, of_class)
            shares, factors = (logits / t).softmax(1), (moves / t).exp()
            right = shares.gather(1, labels[:, None]) * factors[labels] / (shares @ factors)
            rights.append(right.clamp(min=1e-300).log())
            unknowns.append((moves / t).log_softmax(0))
        return torch.stack(rights), torch.stack(unknowns)

    def temperature(self, logits: Tensor, of_class: Tensor) -> float:
        """That of the least cross-entropy, from 0.2 to 8: Guo et al. 2017, arXiv:1706.04599."""
        weights = self.of_class @ (of_class / self.count.clamp(min=1))

        def loss(logarithm: float) -> float:
            logarithms = (logits.double() / 2**logarithm).log_softmax(1)
            return -float((self.of_class * logarithms).sum(1) @ weights / weights.sum())

        bounds = torch.tensor([0.2, 8.0]).log2().tolist()
        least = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 0.01})
        return float(2**least.x)

    def wrong(self, part: str, place: tuple[int, ...] = ()) -> Tensor:
        """Which images are wrong, before or at a place; of a trial with a refit the refit's."""
        if (part, *place) not in self._wrong:
            logits = self.base[part]
            if place:
                trial = self.trials[place[0]]
                at_scales = trial["refit" if part == "test" and "refit" in trial else part]
                logits = at_scales[place[1]] + self.offsets[place[2]] * self.direction
            self._wrong[part, *place] = (logits.argmax(1) != self.labels[part]).double()
        return self._wrong[part, *place]

    def choice(self, rule: Rule, place: tuple[int, ...]) -> Choice:
        of_class = one_hot(self.labels["test"], len(self.mix)).double()
        errors = torch.stack([self.wrong("test"), self.wrong("test", place)]) @ of_class
        before, after = errors[:, self.targets].sum(1).tolist()
        rates = errors / self.images
        balanced, every = rates.mean(1), rates @ self.mix
        result = Result(
            100 * after / max(1.0, before),
            100 * float(balanced[1] / balanced[0]),
            100 * float(every[1] / every[0]),
            100 * float(balanced[0] - balanced[1]),
            100 * float(every[0] - every[1]),
        )
        weights = self.weights(rule.share) * (self.count > 0)
        of_image = self.of_class @ (weights / weights.sum() / self.count.clamp(min=1))
        changes = self.wrong("val") - self.wrong("val", place)
        saved, deviation = float(changes @ of_image), float((changes.abs() @ of_image**2).sqrt())
        is_clear = saved < -2 * deviation - 1e-9
        return Choice(result, before, after, saved < -1e-9, is_clear)


# --- tables --------------------------------------------------------------------------------------


def differences(repairs: Sequence[Repair], rule: Rule, other: Rule) -> str:
    """The mean difference of each measure from another rule's, and its deviation over bases."""
    of_base: dict[str, list[Tensor]] = {}
    for repair in repairs:
        pair = (torch.tensor(repair.choices[each].result) for each in (rule, other))
        of_base.setdefault(repair.base_name, []).append(next(pair) - next(pair))
    mean = torch.cat([torch.stack(each) for each in of_base.values()]).mean(0)
    means = torch.stack([torch.stack(each).mean(0) for each in of_base.values()])
    deviation = means.std(0) / len(means) ** 0.5
    cells = [f"{m:+.1f} ± {d:.1f}" for m, d in zip(mean[:3], deviation[:3], strict=True)]
    cells += [f"{m:+.2f} ± {d:.2f}" for m, d in zip(mean[3:], deviation[3:], strict=True)]
    return " | ".join(cells)


def name_of(rule: Rule) -> str:
    return f"{rule.power:g}, {rule.more:g}, {rule.temperature}, {rule.share:g}"


def print_table(
    title: str, repairs: Sequence[Repair], rules: Sequence[Rule], other: Rule = TODAY
) -> None:
    """Each rule: what is left of each kind, and how far it is from another's."""
    kinds = sorted({repair.kind for repair in repairs})
    groups = [[repair for repair in repairs if repair.kind == kind] for kind in kinds]
    heads = [f"{kind} ({len(group)})" for kind, group in zip(kinds, groups, strict=True)]
    heads += ["errors added", "behind", "clearly", "class", "balanced", "in all"]
    heads += ["balanced accuracy, points", "accuracy, points"]
    print(f"\n## {title}: {len(repairs)} repairs, beside {name_of(other)}")
    print(f"\n| q, v, temperature, s | {' | '.join(heads)} |")
    print(f"| --- |{' ---: |' * len(heads)}")
    for rule in rules:
        choices = [repair.choices[rule] for repair in repairs]
        cells = []
        for group in groups:
            means = torch.tensor([repair.choices[rule].result for repair in group]).mean(0)
            cells.append(" / ".join(f"{mean:.0f}" for mean in means[:3]))
        added = [max(0.0, choice.result.every - 100) for choice in choices]
        cells += [f"{sum(added) / len(added):.1f}", str(sum(each.is_behind for each in choices))]
        cells.append(str(sum(each.is_clearly_behind for each in choices)))
        cells.append(differences(repairs, rule, other))
        print(f"| {name_of(rule)} | {' | '.join(cells)} |")


def print_easy(repairs: Sequence[Repair], rules: Sequence[Rule]) -> None:
    """Errors of a class whose validation images are all right, before and after."""
    print(f"\n## Six to eight validation images, all right: {len(repairs)} repairs")
    print("\n| q, v, temperature, s | before | after | more errors | the most |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for rule in rules:
        choices = [repair.choices[rule] for repair in repairs]
        more = [choice.after - choice.before for choice in choices]
        cells = [sum(choice.before for choice in choices), sum(choice.after for choice in choices)]
        cells += [sum(each > 0 for each in more), max(more)]
        print(f"| {name_of(rule)} | {' | '.join(f'{cell:.0f}' for cell in cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--train", type=Path, metavar="OLD", help="a worktree of e0c9e8e8")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.train:
        train(arguments.train)
        return
    balanced, natural, as_trained, easy = [], [], [], []
    for file in sorted(FOLDER.glob("*.pt")):
        kept = torch.load(file)
        labels, kind = kept["labels"]["val"], kept["case"]["kind"]
        if kind.startswith("all right"):
            right = kept["base"]["val"].argmax(1) == labels
            if right[labels == kept["targets"][0]].all():
                easy.append(Repair(kept, False))
        elif "natural" in kind:
            natural.append(Repair(kept, False))
        else:
            balanced.append(Repair(kept, False))
            as_trained.append(Repair(kept, True))
    grid = [Rule(q, v, t, s) for s, t, q, v in product(SHARES, TEMPERATURES, POWERS, MORE)]
    alike = [rule for rule in grid if rule.share == 0]  # with a balanced test W is always this
    print_table("Balanced tests", balanced, alike)
    tables = {"Natural mixes": natural, "Balanced tests, as if with the training's mix": as_trained}
    for title, repairs in tables.items():
        print_table(title, repairs, grid)
        few = [rule for rule in grid if rule.more == 1 and rule.share == 0.5]
        for power in (0.25, 0.5):
            print_table(title, repairs, few, Rule(power, 1.0, "each, alike", 0.5))
    print_easy(easy, alike)


if __name__ == "__main__":
    main()
