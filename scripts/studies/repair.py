"""A repair beside a sceptic's twenty lines, on classifiers that no search has seen.

    python scripts/studies/repair.py    # the tables of docs/worth.md

Each classifier is trained with several seeds, and each base is repaired with several seeds. The
classifiers are in tasks.py, the plain methods in plain.py. Every run of train.py is kept in
outputs/repair_study; called again, the study does what is missing.
"""

import argparse
import copy
import json
import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from pathlib import Path
from typing import Any

from jobs import OUTPUT, table
from plain import (
    Choice,
    Point,
    Shares,
    between,
    point,
    refitted,
    shifted,
    sum_of_shares,
    twenty_lines,
)
from tasks import FURTHER, TASKS, Case, Task
from torch import nn

from lora_mnist import load_adapter, set_lora_scale

#: Twenty lines: each rate with the first weight, then each weight with the best rate.
RATES, CLASS_WEIGHTS = (0.001, 0.003, 0.01), (3, 10, 30)
#: Those that are compared where half of the class's errors are left.
AT_HALF = ("one number", "twenty lines", "twenty lines, refitted", "before refit", "repair")
#: How often each method runs on a base, at most.
METHODS = {
    "one number": 1,
    "notebook": 1,
    "twenty lines": 4,
    "twenty lines, refitted": 4,
    "before refit": 2,
    "repair": 4,
}
#: Those with fewer than 1,500 training images.
SMALL = ("photos, CNN", "capitals, CNN", "clothes, CNN", "small digits, CNN", "capitals, MLP")
#: What a method leaves on the test images, and its errors in all at half.
Run = tuple[Shares, float]


@dataclass
class Study:
    """The results of one classifier: a list for each of its bases, with one entry a run."""

    name: str
    errors: list[list[int]] = field(default_factory=list)  # of each base: the class's, all
    runs: dict[str, list[list[Run]]] = field(default_factory=dict)  # by method

    def every(self, method: str, name: str) -> list[list[float]]:
        """A share of each run, by base."""
        return [[getattr(shares, name) for shares, _ in runs] for runs in self.runs[method]]

    def at_half(self, method: str) -> list[list[float]]:
        """The errors in all at half of each run, by base."""
        return [[half for _, half in runs] for runs in self.runs[method]]


def study(task: Task, bases: int, repairs: int) -> Study:
    """Every method on ``bases`` networks, ``repairs`` times each."""
    result = Study(task.name)
    for number in range(bases):
        own = replace(task, seed=task.seed + 1000 * number)
        of_base: dict[str, list[Run]] = {}
        for seed in range(repairs):
            errors, runs = every_method(own, seed)
            for method, (shares, half) in runs.items():
                of_base.setdefault(method, []).append((Shares(*shares), half))
        result.errors.append(errors)
        for method, of_method in of_base.items():
            result.runs.setdefault(method, []).append(of_method)
    return result


def every_method(task: Task, seed: int) -> tuple[list[int], dict[str, Any]]:
    """The base's errors, on the class and in all; each of :data:`METHODS` once, by its name."""
    file = OUTPUT / "studies" / f"{task.name}, base {task.seed}, seed {seed}.json"
    errors, runs = json.loads(file.read_text()) if file.exists() else ([], {})
    missing = {method for method, times in METHODS.items() if seed < times} - set(runs)
    if missing:
        case = task.load()
        wrong = case.before["test"].argmax(1) != case.labels["test"]
        errors = [int((wrong & (case.labels["test"] == case.target)).sum()), int(wrong.sum())]
    if "one number" in missing:
        points = shifted(case, list(case.before.values()))
        best = min(points, key=lambda each: sum_of_shares(each.val))
        runs["one number"] = run_of(best)
    if "notebook" in missing:
        folder, _ = task.run("stage=lora")
        runs["notebook"] = run_of_adapter(case, folder)
    if "twenty lines" in missing:
        runs |= plain_runs(case, seed)
    if missing & {"repair", "before refit"}:
        settings = f"experiment=repair seed={seed}"
        folder, results = task.run(settings)
        runs["repair"] = run_of_adapter(case, folder)
        if "before refit" in missing:
            choices = results["choices"]
            if choices["refit"]["value"]:
                dropout = choices["dropout"]["value"]
                folder, _ = task.run(f"{settings} refit=false lora.dropout={dropout}")
            runs["before refit"] = run_of_adapter(case, folder)
    if missing:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps([errors, runs]))
        unfinished.replace(file)
    return errors, runs


def run_of(where: Point) -> Run:
    """A method's run."""
    return where.test, where.at_half


def run_of_adapter(case: Case, folder: Path) -> Run:
    """An adapter as it was saved, and its errors at half at scale 1, as it was trained."""
    net = load_adapter(copy.deepcopy(case.net), folder / "adapter")
    saved = point(case, net)
    set_lora_scale(net, 1.0)
    return saved.test, point(case, net).at_half


def plain_runs(case: Case, seed: int) -> dict[str, Run]:
    """Twenty lines with the rate, then the weight, that validation images choose; and refitted."""
    sums: dict[Choice, float] = {}
    nets: dict[tuple[float, float], nn.Module] = {}
    for rate in RATES:
        of_rate, nets[rate, CLASS_WEIGHTS[0]] = twenty_lines(case, rate, CLASS_WEIGHTS[0], seed)
        sums |= of_rate
    rate = min(sums, key=lambda choice: sums[choice]).rate
    sums = {choice: number for choice, number in sums.items() if choice.rate == rate}
    for weight in CLASS_WEIGHTS[1:]:
        of_weight, nets[rate, weight] = twenty_lines(case, rate, weight, seed)
        sums |= of_weight
    choice = min(sums, key=lambda choice: sums[choice])
    chosen = between(case.net, nets[choice.rate, choice.weight], choice.scale)
    return {
        "twenty lines": run_of(point(case, chosen)),
        "twenty lines, refitted": run_of(point(case, refitted(case, choice, seed))),
    }


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


def mean_and_worst(studies: Sequence[Study], method: str, name: str) -> str:
    """The mean of a share over all classifiers, and that of the worst one."""
    means = [mean(each.every(method, name)) for each in studies]
    return f"{statistics.mean(means):.0f}%, {max(means):.0f}%"


def worst_on_others(studies: Sequence[Study], method: str) -> float:
    """The errors on the other classes of the worst run."""
    return max(max(runs) for each in studies for runs in each.every(method, "others"))


def methods_table(studies: Sequence[Study]) -> str:
    """Each method over all classifiers: the mean, and the worst classifier or run."""
    lines = []
    for method in METHODS:
        cells = [method]
        for name in ("target", "every", "others"):
            cells.append(mean_and_worst(studies, method, name))
        cells[-1] += f", {worst_on_others(studies, method):.0f}%"
        if max(map(len, studies[0].runs[method])) > 1:
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
    for method in ("one number", "twenty lines", "twenty lines, refitted", "repair"):
        cells = [method]
        for name in ("target", "every"):
            cells.append(mean_and_worst(studies, method, name))
        cells.append(f"{worst_on_others(studies, method):.0f}%")
        deviations = [deviation(each.every(method, "every")) for each in studies]
        cells.append("" if isnan(deviations[0]) else f"{statistics.mean(deviations):.1f}")
        at_half = [mean(each.at_half(method)) for each in studies]
        cells.append(f"{statistics.mean(at_half):.0f}%")
        lines.append(cells)
    heads = ["method", "on the class: mean, worst", "in all: mean, worst", "others: worst run"]
    heads += ["deviation in all", "in all, with half of the class's left"]
    return table(heads, lines)


def tasks_table(studies: Sequence[Study]) -> str:
    """Errors on the class / in all, in percent of the base's, for each classifier."""
    methods = ("twenty lines", "twenty lines, refitted", "before refit", "repair")
    lines = []
    for each in studies:
        few, many = (statistics.mean(column) for column in zip(*each.errors, strict=True))
        cells = [each.name, f"{few:.0f} / {many:.0f}"]
        for method in methods:
            on_class = mean(each.every(method, "target"))
            cells.append(f"{on_class:.0f} / {spread(each.every(method, 'every'))}")
        lines.append(cells)
    return table(["classifier", "the bases' errors", *methods], lines)


def fronts_table(studies: Sequence[Study]) -> str:
    """Errors in all with half of the class's left: a row a classifier, and means."""
    lines = []
    means: dict[str, list[list[float]]] = {"small sets": [], "large sets": [], "all": []}
    for each in studies:
        cells, of_methods = [each.name], []
        for method in AT_HALF:
            cells.append(spread(each.at_half(method)))
            of_methods.append(mean(each.at_half(method)))
        lines.append(cells)
        means["small sets" if each.name in SMALL else "large sets"].append(of_methods)
        means["all"].append(of_methods)
    for name, rows in means.items():
        if rows:
            numbers_of_means = [statistics.mean(column) for column in zip(*rows, strict=True)]
            lines.append([f"mean, {name}", *(f"{number:.1f}" for number in numbers_of_means)])
    return table(["classifier", *AT_HALF], lines)


def seen_table(task: Task) -> str:
    """A repair whose validation images the base was trained on, and whose dial looks at others."""
    base = replace(task, knows_val=True).base()
    target = task.load().target
    cells = [task.name]
    for settings in ("", " data.val_from=test"):
        _, results = task.run(f"experiment=repair{settings}", base)
        after, before = results["test"], results["test_base"]
        of_class = after["errors_per_class"][target] / before["errors_per_class"][target]
        in_all = after["errors"] / before["errors"]
        cells.append(f"{results['scale']:g}: {100 * of_class:.0f} / {100 * in_all:.1f}")
    heads = ["classifier", "validation images that it knows", "`data.val_from=test`"]
    return table(heads, [cells])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bases", type=int, default=3, help="bases of each classifier")
    parser.add_argument("--repairs", type=int, default=4, help="runs of each method on a base")
    every = {task.name: task for task in (*TASKS, *FURTHER)}
    names = [task.name for task in TASKS]
    parser.add_argument("--tasks", nargs="+", default=names, choices=every, metavar="CLASSIFIER")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # each run says the same
    studies = [study(every[name], options.bases, options.repairs) for name in options.tasks]
    print(summary_table(studies), methods_table(studies), tasks_table(studies), sep="\n\n")
    print(fronts_table(studies), seen_table(TASKS[0]), sep="\n\n")


if __name__ == "__main__":
    main()
