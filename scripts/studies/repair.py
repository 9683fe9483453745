"""A repair beside a sceptic's twenty lines, on classifiers that no search has seen.

    python scripts/studies/repair.py    # the tables of docs/worth.md
    python scripts/studies/repair.py --today    # those of networks of today

Each base is repaired with several seeds. The classifiers are in tasks.py and today.py, twenty lines
in scripts/rival.py, other methods in plain.py. Every run of train.py is kept in
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
from typing import Any

import torch
from jobs import OUTPUT
from plain import Result, result_of, result_of_number
from rival import Case, balanced_head, refitted, table, twenty_lines
from tasks import TASKS, Task

from lora_mnist import load_adapter, set_lora_scale
from lora_mnist.files import atomic_write

#: How often each method runs on a base, at most.
METHODS = {
    "one number": 1,
    "balanced head": 1,
    "balanced head, refitted": 1,
    "twenty lines": 1,
    "twenty lines, refitted": 1,
    "repair": 2,
}


@dataclass
class Study:
    """The results of one classifier: a list for each of its bases, with one entry a run."""

    name: str
    errors: list[list[int]] = field(default_factory=list)  # of each base: the class's, all
    results: dict[str, list[list[Result]]] = field(default_factory=dict)  # by method

    def every(self, method: str, name: str) -> list[list[float]]:
        """A number of each run's :class:`Result`, by base."""
        return [[getattr(each, name) for each in runs] for runs in self.results[method]]


def study(task: Task, bases: int, runs: int, methods: Sequence[str]) -> Study:
    """Each of ``methods`` on so many ``bases``, ``runs`` times each at most."""
    result = Study(task.name)
    for number in range(bases):
        own = replace(task, seed=task.seed + 1000 * number)
        of_base: dict[str, list[Result]] = {}
        for seed in range(min(runs, task.runs)):
            names = [method for method in methods if seed < METHODS[method]]
            errors, results = every_method(own, seed, names)
            for method in names:
                of_base.setdefault(method, []).append(Result(*results[method]))
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
    on_target = torch.isin(case.labels["test"], torch.tensor(case.targets))
    errors = [int((wrong & on_target).sum()), int(wrong.sum())]
    for method in methods:
        if method not in results:
            results |= results_of(task, case, seed, method)
            with atomic_write(file) as path:
                path.write_text(json.dumps([errors, results]))
    return errors, results


def results_of(task: Task, case: Case, seed: int, method: str) -> dict[str, Result]:
    """What a method leaves, and what others leave that the same trainings make."""
    if method == "one number":
        return {method: result_of_number(case)}
    if method.startswith("balanced head"):
        parts = ["train", "val"] if method.endswith("refitted") else ["train"]
        return {method: result_of(case, balanced_head(case, parts, seed))}
    if method.startswith("twenty lines"):
        tuned, choice = twenty_lines(case, seed)
        again = result_of(case, refitted(case, choice, seed))
        return {"twenty lines": result_of(case, tuned), "twenty lines, refitted": again}
    folder, _ = task.run(f"experiment=repair seed={seed}")
    # As it was saved, and its errors at half at scale 1, as it was trained.
    net = load_adapter(copy.deepcopy(case.net), folder / "adapter")
    saved = result_of(case, net)
    set_lora_scale(net, 1.0)
    return {method: saved._replace(at_half=result_of(case, net).at_half)}


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
    for name, head in {"target": "on the class", "every": "in all"}.items():
        means = [mean(each.every(method, name)) for each in studies]
        cells[f"{head}: mean, worst"] = f"{statistics.mean(means):.0f}%, {max(means):.0f}%"
    others = [mean(each.every(method, "others")) for each in studies]
    worst = max(max(runs) for each in studies for runs in each.every(method, "others"))
    cells["others: mean, worst run"] = f"{statistics.mean(others):.0f}%, {worst:.0f}%"
    deviations = [deviation(each.every(method, "every")) for each in studies]
    deviations = [each for each in deviations if not isnan(each)]
    cells["deviation in all"] = f"{statistics.mean(deviations):.1f}" if deviations else ""
    flips = [mean(each.every(method, "flipped")) for each in studies]
    cells["negative flips"] = f"{statistics.mean(flips):.2f}%"
    at_half = [mean(each.every(method, "at_half")) for each in studies]
    cells["in all, with half of the class's left"] = f"{statistics.mean(at_half):.0f}%"
    return cells


def methods_table(studies: Sequence[Study], methods: Sequence[str]) -> str:
    """A row a method, with the columns of :func:`columns_of`."""
    of_methods = {method: columns_of(studies, method) for method in methods}
    rows = [[method, *columns.values()] for method, columns in of_methods.items()]
    return table(["method", *of_methods[methods[0]]], rows)


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
    return table(["classifier", "the base's errors", *methods], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bases", type=int, default=1, help="bases of each classifier")
    parser.add_argument("--runs", type=int, default=2, help="of each method on a base, at most")
    parser.add_argument("--tasks", nargs="+", metavar="CLASSIFIER", help="some of the classifiers")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="some of the methods")
    parser.add_argument("--today", action="store_true", help="networks of today (today.py)")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # each run says the same
    tasks: Sequence[Task] = TASKS
    if options.today:
        import today  # it needs packages that nobody else needs

        tasks = today.TODAY
    studies = []
    for task in tasks:
        if task.name in (options.tasks or task.name):
            studies.append(study(task, options.bases, options.runs, options.methods))
    print(methods_table(studies, options.methods), end="\n\n")
    print(tasks_table(studies, options.methods))


if __name__ == "__main__":
    main()
