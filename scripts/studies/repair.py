"""A repair beside a sceptic's twenty lines, on classifiers that no search has seen.

    python scripts/studies/repair.py            # the tables of docs/worth.md
    python scripts/studies/repair.py --search   # what each part of the recipe is worth, on others

Each classifier is trained with several seeds, and each base is repaired with several seeds. The
classifiers are in tasks.py, the plain methods in plain.py. Bases are pretrained where they are
missing. Every run of train.py is kept in outputs/repair_study; called again, the study does what
is missing.
"""

import argparse
import copy
import json
import logging
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isnan
from pathlib import Path

from jobs import OUTPUT, Results, table
from plain import Point, Shares, best, mean_of, point, shifted, twenty_lines
from tasks import SEARCH, TASKS, Case, Task
from torch import nn

from lora_mnist import load_adapter, set_lora_scale

#: By method: overrides of python train.py. An adapter is counted as trained, and as dialled.
METHODS = {
    "notebook": "stage=lora",
    "repair": "experiment=repair lora.scale=1",
}
#: Far behind: one run on each base is enough.
ONCE = ("notebook",)
#: Twenty lines: each rate with the first weight, then each weight with the best rate.
RATES, CLASS_WEIGHTS = (0.001, 0.003, 0.01), (3, 10, 30)
#: Those whose fronts are compared.
FRONTS = ("one number", "twenty lines", "mean of twenty lines", "repair, scale 1")
#: Changes of experiment=repair, each alone: what the search compares.
CHANGES = (
    "",
    "lora.init=gaussian lora.init_std=0.3",
    "lora.rank=16",
    "optimizer.lr=0.001",
    "optimizer.lr=0.003",
    "callbacks.averaging=null scheduler=linear",
    "loss.target_weight=0.1",
    "loss.target_weight=0.5",
    "trainer.max_steps=200",
    "trainer.max_steps=800",
)


@dataclass
class Study:
    """The results of one classifier: a list for each of its bases, with one entry a run."""

    name: str
    errors: list[tuple[int, int]] = field(default_factory=list)  # of each base: the class's, all
    shares: dict[str, list[list[Shares]]] = field(default_factory=dict)  # by method
    fronts: dict[str, list[list[list[float]]]] = field(default_factory=dict)

    def add(self, method: str, points: Sequence[Point]) -> None:
        """The runs of a method on one base."""
        self.shares.setdefault(method, []).append([each.test for each in points])
        self.fronts.setdefault(method, []).append([each.front for each in points])

    def every(self, method: str, name: str) -> list[list[float]]:
        """A number of each run, by base."""
        return [[getattr(run, name) for run in runs] for runs in self.shares[method]]


def study(task: Task, bases: int, repairs: int) -> Study:
    """Every method on ``bases`` networks, ``repairs`` times each. A file keeps what it returns."""
    file = OUTPUT / "studies" / f"{task.name}, {bases} bases, {repairs} repairs.json"
    if file.exists():
        known = json.loads(file.read_text())
        for runs in known["shares"].values():
            runs[:] = [[Shares(*run) for run in of_base] for of_base in runs]
        return Study(**known)
    result = Study(task.name)
    for number in range(bases):
        own = replace(task, seed=task.seed + 1000 * number)
        case = own.load()
        wrong = case.before["test"].argmax(1) != case.labels["test"]
        of_class = wrong & (case.labels["test"] == case.target)
        result.errors.append((int(of_class.sum()), int(wrong.sum())))
        result.add("one number", [best(shifted(case, list(case.before.values())))])
        tuned_runs = [tuned(case, seed) for seed in range(repairs)]
        result.add("twenty lines", [each for each, _ in tuned_runs])
        nets = [net for _, net in tuned_runs]
        mean = mean_of(nets, [1 / repairs] * repairs)
        result.add("mean of twenty lines", [point(case, mean)])
        for method, settings in METHODS.items():
            seeds = range(1 if method in ONCE else repairs)
            runs = [own.run(f"{settings} seed={seed}") for seed in seeds]
            for name in ("1", "auto"):
                points = []
                for folder, results in runs:
                    scale = 1.0 if name == "1" else results["dial"]["advised"]
                    points.append(turned(case, folder / "adapter", scale))
                result.add(f"{method}, scale {name}", points)
    file.parent.mkdir(exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(asdict(result)))
    unfinished.replace(file)
    return result


def tuned(case: Case, seed: int) -> tuple[Point, nn.Module]:
    """Twenty lines, with the rate, then the weight, that validation images choose."""
    first, *others = CLASS_WEIGHTS
    by_rate = {rate: twenty_lines(case, rate, first, seed) for rate in RATES}
    chosen = min(RATES, key=lambda rate: sum(by_rate[rate][0].val[:2]))
    runs = [by_rate[chosen]]
    runs += [twenty_lines(case, chosen, weight, seed) for weight in others]
    chosen_point = best([each for each, _ in runs])
    return next(run for run in runs if run[0] is chosen_point)


def of_results(results: Results, target: int) -> Shares:
    """What results.json says of the test images."""
    after, before = results["test"], results["test_base"]
    few, many = after["errors_per_class"][target], sum(after["errors_per_class"])
    few_before, many_before = before["errors_per_class"][target], sum(before["errors_per_class"])
    others = 100 * (many - few) / (many_before - few_before)
    flipped = 100 * after["broken"] / sum(after["images_per_class"])
    return Shares(100 * few / few_before, 100 * many / many_before, others, flipped)


def turned(case: Case, adapter: Path, scale: float = 1.0) -> Point:
    """A finished adapter at a scale."""
    net = load_adapter(copy.deepcopy(case.net), adapter)
    set_lora_scale(net, scale)
    return point(case, net)


# --- tables ---------------------------------------------------------------------------------------


def mean(by_base: Sequence[Sequence[float]]) -> float:
    """The mean over bases of the mean over repairs."""
    return statistics.mean(statistics.mean(runs) for runs in by_base)


def deviation(by_base: Sequence[Sequence[float]]) -> float:
    """The standard deviation over repairs of the same base; bases are pooled. One run has none."""
    variances = [statistics.variance(runs) for runs in by_base if len(runs) > 1]
    return statistics.mean(variances) ** 0.5 if variances else float("nan")


def spread(by_base: Sequence[Sequence[float]]) -> str:
    """Mean and standard deviation."""
    if max(map(len, by_base)) == 1:
        return f"{mean(by_base):.1f}"
    return f"{mean(by_base):.1f} ± {deviation(by_base):.1f}"


def methods_table(studies: Sequence[Study]) -> str:
    """Each method over all classifiers: the mean, and the worst classifier or run."""
    lines = []
    for method in studies[0].shares:
        cells = [method]
        for name in ("target", "every"):
            means = [mean(each.every(method, name)) for each in studies]
            cells.append(f"{statistics.mean(means):.0f}%, {max(means):.0f}%")
        means = [mean(each.every(method, "others")) for each in studies]
        worst = max(max(runs) for each in studies for runs in each.every(method, "others"))
        cells.append(f"{statistics.mean(means):.0f}%, {max(means):.0f}%, {worst:.0f}%")
        if max(map(len, studies[0].shares[method])) > 1:
            deviations = [deviation(each.every(method, "every")) for each in studies]
            cells.append(f"{statistics.mean(deviations):.1f}, {max(deviations):.1f}")
        else:
            cells.append("")
        flips = [mean(each.every(method, "flipped")) for each in studies]
        cells.append(f"{statistics.mean(flips):.2f}%")
        lines.append(cells)
    heads = ["method", "on the class: mean, worst", "in all: mean, worst"]
    heads += ["others: mean, worst, worst run", "deviation in all: mean, worst", "negative flips"]
    return table(heads, lines)


def summary_table(studies: Sequence[Study]) -> str:
    """The table of README: means over all classifiers, and the worst one or the worst run."""
    lines = []
    for method in ("one number", "twenty lines", "mean of twenty lines", "repair, scale auto"):
        cells = [method]
        for name in ("target", "every"):
            means = [mean(each.every(method, name)) for each in studies]
            cells.append(f"{statistics.mean(means):.0f}%, {max(means):.0f}%")
        runs = [max(max(runs) for runs in each.every(method, "others")) for each in studies]
        cells.append(f"{max(runs):.0f}%")
        deviations = [deviation(each.every(method, "every")) for each in studies]
        cells.append("" if isnan(deviations[0]) else f"{statistics.mean(deviations):.1f}")
        fronts = []
        for each in studies:
            fronts.append(mean([[front[0] for front in runs] for runs in each.fronts[method]]))
        cells.append(f"{statistics.mean(fronts):.0f}%")
        lines.append(cells)
    heads = ["method", "on the class: mean, worst", "in all: mean, worst", "others: worst run"]
    heads += ["deviation in all", "in all, with half of the class's left"]
    return table(heads, lines)


def tasks_table(studies: Sequence[Study]) -> str:
    """Errors on the class / in all, in percent of the base's, for each classifier."""
    methods = ("one number", "twenty lines", "repair, scale auto")
    lines = []
    for each in studies:
        few, many = (statistics.mean(column) for column in zip(*each.errors, strict=True))
        cells = [each.name, f"{few:.0f} / {many:.0f}"]
        for method in methods:
            on_class = mean(each.every(method, "target"))
            cells.append(f"{on_class:.0f} / {spread(each.every(method, 'every'))}")
        lines.append(cells)
    return table(["classifier", "the bases' errors", *methods], lines)


def fronts_table(studies: Sequence[Study], place: int) -> str:
    """Errors in all at one of :data:`plain.TARGETS`: a row a classifier, and the mean."""
    lines = [[each.name] for each in studies] + [["mean"]]
    for method in FRONTS:
        means = []
        for each, line in zip(studies, lines, strict=False):
            numbers = [[front[place] for front in runs] for runs in each.fronts[method]]
            line.append(spread(numbers))
            means.append(mean(numbers))
        lines[-1].append(f"{statistics.mean(means):.1f}")
    return table(["classifier", *FRONTS], lines)


def seen_table(task: Task) -> str:
    """A repair whose validation images the base was trained on, and whose dial looks at others."""
    base = replace(task, knows_val=True).base()
    target = task.load().target
    cells = [task.name]
    for settings in ("", " data.val_from=test"):
        _, results = task.run(f"experiment=repair{settings}", base)
        numbers = of_results(results, target)
        scale = results["dial"]["advised"]
        cells.append(f"{scale:g}: {numbers.target:.0f} / {numbers.every:.1f}")
    heads = ["classifier", "validation images that it knows", "`data.val_from=test`"]
    return table(heads, [cells])


def search_table(tasks: Sequence[Task], changes: Sequence[str]) -> str:
    """The mean of the errors in all at :data:`plain.TARGETS`, for each change of the recipe."""
    columns = []
    for task in tasks:
        case, column = task.load(), []
        for change in changes:
            folder, _ = task.run(f"experiment=repair lora.scale=1 {change}")
            column.append(statistics.mean(turned(case, folder / "adapter").front))
        columns.append(column)
    lines = []
    for change, *numbers in zip(changes, *columns, strict=True):
        cells = [f"{number:.1f}" for number in [*numbers, statistics.mean(numbers)]]
        lines.append([f"`{change}`" if change else "the recipe", *cells])
    return table(["change", *(task.name for task in tasks), "mean"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--search", action="store_true", help="what each part is worth")
    parser.add_argument("--bases", type=int, default=3, help="bases of each classifier")
    parser.add_argument("--repairs", type=int, default=4, help="runs of each method on a base")
    names = [task.name for task in TASKS]
    parser.add_argument("--tasks", nargs="+", default=names, choices=names, metavar="CLASSIFIER")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # each run says the same
    if options.search:
        print(search_table(SEARCH, CHANGES))
        return
    chosen = [task for task in TASKS if task.name in options.tasks]
    studies = [study(task, options.bases, options.repairs) for task in chosen]
    print(summary_table(studies), methods_table(studies), tasks_table(studies), sep="\n\n")
    print(fronts_table(studies, 0), seen_table(TASKS[0]), sep="\n\n")


if __name__ == "__main__":
    main()
