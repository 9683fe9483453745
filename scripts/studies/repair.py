"""A repair beside a sceptic's twenty lines, on classifiers that no search has seen.

    python scripts/studies/repair.py    # the tables of docs/worth.md
    python scripts/studies/repair.py --today    # those of networks of today

Each classifier is trained with several seeds, and each base is repaired with several seeds. The
classifiers are in tasks.py, the plain methods in plain.py. Every run of train.py is kept in
outputs/repair_study; called again, the study does what is missing.
"""

import argparse
import copy
import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from pathlib import Path
from typing import Any

from jobs import OUTPUT, table
from plain import Result, balanced_head, one_number, refitted, result_of, twenty_lines
from tasks import TASKS, Case, Task

from lora_mnist import load_adapter, set_lora_scale
from lora_mnist.disk.files import atomic_write

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
#: The columns of README's table, and of the first one of docs/worth.md.
IN_README = (
    "on the class: mean, worst",
    "in all: mean, worst",
    "others: worst run",
    "deviation in all",
    "in all, with half of the class's left",
)
IN_WORTH = (
    "on the class: mean, worst",
    "in all: mean, worst",
    "others: mean, worst, worst run",
    "deviation in all: mean, worst",
    "negative flips",
)
HEADS = ("balanced head", "balanced head, refitted")
#: How often each method runs on a base of a network of today: a training takes minutes.
TODAY = dict.fromkeys(("one number", *HEADS, "twenty lines", "twenty lines, refitted"), 1)
TODAY["repair"] = 2
#: Those with fewer than 1,500 training images.
SMALL = ("photos, CNN", "capitals, CNN", "clothes, CNN")


@dataclass
class Study:
    """The results of one classifier: a list for each of its bases, with one entry a run."""

    name: str
    errors: list[list[int]] = field(default_factory=list)  # of each base: the class's, all
    results: dict[str, list[list[Result]]] = field(default_factory=dict)  # by method

    def every(self, method: str, name: str) -> list[list[float]]:
        """A number of each run's :class:`Result`, by base."""
        return [[getattr(each, name) for each in runs] for runs in self.results[method]]


def study(task: Task, bases: int, repairs: int, methods: Mapping[str, int]) -> Study:
    """Each of ``methods`` on ``bases`` networks, ``repairs`` times each at most."""
    result = Study(task.name)
    for number in range(min(bases, task.bases)):
        own = replace(task, seed=task.seed + 1000 * number)
        of_base: dict[str, list[Result]] = {}
        for seed in range(min(repairs, max(methods.values()))):
            names = [method for method, times in methods.items() if seed < times]
            errors, results = every_method(own, seed, names)
            for method, numbers in results.items():
                of_base.setdefault(method, []).append(Result(*numbers))
        result.errors.append(errors)
        for method, of_method in of_base.items():
            result.results.setdefault(method, []).append(of_method)
    return result


def every_method(task: Task, seed: int, methods: Sequence[str]) -> tuple[list[int], dict[str, Any]]:
    """The base's errors, on the class and in all; each of ``methods`` once, by its name."""
    file = OUTPUT / "studies" / f"{task.name}, base {task.seed}, seed {seed}.json"
    errors, results = json.loads(file.read_text()) if file.exists() else ([], {})
    if set(methods) <= set(results):
        return errors, results
    case = task.load()
    wrong = case.before["test"].argmax(1) != case.labels["test"]
    errors = [int((wrong & (case.labels["test"] == case.target)).sum()), int(wrong.sum())]
    for method in methods:
        if method not in results:
            results |= results_of(task, case, seed, method)
            with atomic_write(file) as path:
                path.write_text(json.dumps([errors, results]))
    return errors, results


def results_of(task: Task, case: Case, seed: int, method: str) -> dict[str, Result]:
    """What a method leaves, and what others leave that the same trainings make."""
    if method == "one number":
        return {method: one_number(case)}
    if method == "notebook":
        return {method: result_of_adapter(case, task.run("stage=lora")[0])}
    if method in HEADS:
        parts = ["train"] if method == HEADS[0] else ["train", "val"]
        return {method: result_of(case, balanced_head(case, parts, seed))}
    if method.startswith("twenty lines"):
        tuned, choice = twenty_lines(case, seed)
        again = result_of(case, refitted(case, choice, seed))
        return {"twenty lines": result_of(case, tuned), "twenty lines, refitted": again}
    settings = f"experiment=repair seed={seed}"
    folder, of_run = task.run(settings)
    if method == "before refit" and of_run["choices"]["refit"]["value"]:
        dropout = of_run["choices"]["dropout"]["value"]
        folder, _ = task.run(f"{settings} refit=false lora.dropout={dropout}")
    return {method: result_of_adapter(case, folder)}


def result_of_adapter(case: Case, folder: Path) -> Result:
    """An adapter as it was saved, and its errors at half at scale 1, as it was trained."""
    net = load_adapter(copy.deepcopy(case.net), folder / "adapter")
    saved = result_of(case, net)
    set_lora_scale(net, 1.0)
    return saved._replace(at_half=result_of(case, net).at_half)


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


def columns_of(studies: Sequence[Study], method: str) -> dict[str, str]:
    """A method over all classifiers: the mean, and the worst classifier or run, by column."""
    cells = {}
    names = {"target": "on the class", "every": "in all", "others": "others"}
    for name, head in names.items():
        means = [mean(each.every(method, name)) for each in studies]
        cells[f"{head}: mean, worst"] = f"{statistics.mean(means):.0f}%, {max(means):.0f}%"
    worst = max(max(runs) for each in studies for runs in each.every(method, "others"))
    cells["others: worst run"] = f"{worst:.0f}%"
    cells["others: mean, worst, worst run"] = f"{cells['others: mean, worst']}, {worst:.0f}%"
    cells["deviation in all"] = cells["deviation in all: mean, worst"] = ""
    deviations = [deviation(each.every(method, "every")) for each in studies]
    deviations = [each for each in deviations if not isnan(each)]
    if deviations:
        cells["deviation in all"] = f"{statistics.mean(deviations):.1f}"
        both = f"{cells['deviation in all']}, {max(deviations):.1f}"
        cells["deviation in all: mean, worst"] = both
    flips = [mean(each.every(method, "flipped")) for each in studies]
    cells["negative flips"] = f"{statistics.mean(flips):.2f}%"
    at_half = [mean(each.every(method, "at_half")) for each in studies]
    cells["in all, with half of the class's left"] = f"{statistics.mean(at_half):.0f}%"
    return cells


def methods_table(studies: Sequence[Study], methods: Sequence[str], heads: Sequence[str]) -> str:
    """A row a method, with these columns of :func:`columns_of`."""
    rows = []
    for method in methods:
        columns = columns_of(studies, method)
        rows.append([method, *(columns[head] for head in heads)])
    return table(["method", *heads], rows)


def tasks_table(studies: Sequence[Study], methods: Sequence[str]) -> str:
    """Errors on the class / in all, in percent of the base's, for each classifier."""
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
            at_half = each.every(method, "at_half")
            cells.append(spread(at_half))
            of_methods.append(mean(at_half))
        lines.append(cells)
        means["small sets" if each.name in SMALL else "large sets"].append(of_methods)
        means["all"].append(of_methods)
    for name, rows in means.items():
        if rows:
            numbers_of_means = [statistics.mean(column) for column in zip(*rows, strict=True)]
            lines.append([f"mean, {name}", *(f"{number:.1f}" for number in numbers_of_means)])
    return table(["classifier", *AT_HALF], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bases", type=int, default=3, help="bases of each classifier")
    parser.add_argument("--repairs", type=int, default=4, help="runs of each method on a base")
    parser.add_argument("--tasks", nargs="+", metavar="CLASSIFIER", help="some of the classifiers")
    parser.add_argument("--today", action="store_true", help="networks of today (today.py)")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # each run says the same
    tasks: Sequence[Task] = TASKS
    methods = METHODS
    if options.today:
        import today  # it needs packages that nobody else needs

        tasks, methods = today.TODAY, TODAY
    studies = []
    for task in tasks:
        if task.name in (options.tasks or task.name):
            studies.append(study(task, options.bases, options.repairs, methods))
    if options.today:
        print(tasks_table(studies, list(TODAY)), end="\n\n")
        print(methods_table(studies, list(TODAY), IN_WORTH))
        return
    in_readme = ("one number", "twenty lines", "twenty lines, refitted", "repair")
    print(methods_table(studies, in_readme, IN_README), end="\n\n")
    print(methods_table(studies, list(METHODS), IN_WORTH), end="\n\n")
    print(tasks_table(studies, AT_HALF[1:]), fronts_table(studies), sep="\n\n")


if __name__ == "__main__":
    main()
