"""One study: what a repair is worth, beside what people do without it.

    pip install -e ".[studies,huggingface]"
    python scripts/studies/study.py    # the table of docs/worth.md, its claims, and docs/worth.png

A case is a base with classes to repair (cases.py), of pictures that pictures.py makes. Each method
chooses by the same validation images, by the same measure, and makes as many steps. What a run
predicts is kept in outputs/study; called again, the study does what is missing, and prints the rows
that are complete. With OMP_NUM_THREADS=1 minutes are those of one core, whatever else it does.
"""

import argparse
import copy
import json
import logging
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from cases import CASES, OUTPUT, Task
from pictures import PROJECT
from rival import (
    Case,
    balanced_head,
    balanced_softmax,
    logits_of,
    one_number,
    refitted,
    table,
    twenty_lines,
)
from torch import Tensor

from lora_mnist import load_adapter
from lora_mnist.files import atomic_write
from lora_mnist.measure.predictions import counts_of_labels

#: The methods, and the marks of the figure.
METHODS = {
    "base": "|",
    "one number or tau": "D",
    "cRT": "^",
    "balanced softmax": "v",
    "twenty lines, refitted": "s",
    "repair": "o",
}
HEADS = ["errors of the class", "in all", "balanced accuracy, %", "false calls"]
HEADS += ["negative flips, %", "minutes of a core"]
#: Of repairs. Every other method runs once, with the first.
SEEDS = (20, 21)

# --- runs ----------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def loaded(task: Task) -> Case:
    """A base and its images, which take half a gigabyte, and the steps of its repair."""
    file = OUTPUT / "runs" / f"{task.base_name}, repair {SEEDS[0]}" / "results.json"
    results = json.loads(file.read_text())
    case = task.load(results["targets"])
    case.steps = results["steps"]
    return case


def trained(task: Task, method: str, seed: int) -> tuple[Tensor, str]:
    """A method's logits of the test images, and what it chose."""
    if method == "repair":
        folder = task.repair(seed)
        choices = json.loads((folder / "results.json").read_text())["choices"]
        case = loaded(task)
        net = load_adapter(copy.deepcopy(case.net), folder / "adapter")
        return logits_of(net, case.images["test"]), json.dumps(choices)
    case = loaded(task)
    if method == "base":
        return case.before["test"], ""
    if method == "one number or tau":
        direction, offset = one_number(case)
        return case.before["test"] + offset * direction, str(offset)
    if method == "cRT":
        net, choice = balanced_head(case, seed), ""
    elif method == "balanced softmax":
        net, rate = balanced_softmax(case, seed)
        choice = str(rate)
    else:
        _, chosen = twenty_lines(case, seed)
        net, choice = refitted(case, chosen, seed), str(chosen)
    return logits_of(net, case.images["test"]), choice


def result_of(task: Task, method: str, seed: int) -> dict[str, Any]:
    """What a run predicts of the test images: as it was left, or found now."""
    file = _file(task, method, seed)
    if not file.exists():
        logging.getLogger(__name__).info("%s: %s, seed %d", task.base_name, method, seed)
        task.base()
        if method != "repair":
            loaded(task)
        started = time.process_time()
        logits, choice = trained(task, method, seed)
        minutes = (time.process_time() - started) / 60
        case = loaded(task)
        result: dict[str, Any] = {"minutes": minutes, "choice": choice, "targets": case.targets}
        result |= {"labels": case.labels["test"].tolist(), "classes": case.dataset.classes}
        result["predicted"] = logits.argmax(1).tolist()
        with atomic_write(file) as path:
            path.write_text(json.dumps(result))
    return json.loads(file.read_text())  # type: ignore[no-any-return]


def _file(task: Task, method: str, seed: int) -> Path:
    return OUTPUT / "results" / task.base_name / f"{method}, seed {seed}.json"


def seeds_of(method: str) -> tuple[int, ...]:
    """The seeds of a method's runs on a base."""
    return SEEDS if method == "repair" else SEEDS[:1]


def bases_of(task: Task) -> list[Task]:
    """The same case with each of its bases."""
    return [replace(task, seed=task.seed + n) for n in range(task.bases)]


# --- what is told of them ------------------------------------------------------------------------


def numbers_of(task: Task, result: dict[str, Any], base: dict[str, Any]) -> list[float]:
    """A run's numbers, one for each of HEADS."""
    labels, predicted, before = (
        torch.tensor(each) for each in (result["labels"], result["predicted"], base["predicted"])
    )
    if task.is_natural:
        shares, places = task.shares(result["classes"]), []
        for c, share in enumerate(shares):
            of_class = (labels == c).nonzero().flatten()
            places.append(of_class[: max(1, round(share * len(of_class)))])
        chosen = torch.cat(places)
        labels, predicted, before = labels[chosen], predicted[chosen], before[chosen]
    counts = counts_of_labels(labels, predicted, len(result["classes"]), result["targets"])
    flips = ((predicted != labels) & (before == labels)).float().mean().item()
    numbers = [counts["errors_of_target"], counts["errors"], 100 * counts["balanced_accuracy"]]
    return [*numbers, counts["false_calls_of_target"], 100 * flips, result["minutes"]]


def complete(tasks: Sequence[Task]) -> Iterator[tuple[Task, dict[str, list[list[list[float]]]]]]:
    """Each case of which all runs are there: by method, by base, the numbers of each run."""
    for task in tasks:
        runs: dict[str, list[list[list[float]]]] = {method: [] for method in METHODS}
        wanted = [
            _file(each, m, seed) for each in bases_of(task) for m in METHODS for seed in seeds_of(m)
        ]
        if not all(file.exists() for file in wanted):
            continue
        for each in bases_of(task):
            base = result_of(each, "base", SEEDS[0])
            for method in METHODS:
                results = [result_of(each, method, seed) for seed in seeds_of(method)]
                runs[method].append([numbers_of(each, result, base) for result in results])
        yield task, runs


def left(runs: dict[str, list[list[list[float]]]], method: str, column: int) -> list[list[float]]:
    """Errors that a method leaves, in percent of the base's: by base, of each run."""
    shares = []
    for base, of_base in zip(runs["base"], runs[method], strict=True):
        shares.append([100 * run[column] / max(1, base[0][column]) for run in of_base])
    return shares


def deviation(by_base: Sequence[Sequence[float]]) -> float:
    """The standard deviation of runs on the same base, pooled over bases."""
    return math.sqrt(statistics.fmean(statistics.variance(runs) for runs in by_base))


def mean(by_base: Sequence[Sequence[float]]) -> float:
    return statistics.fmean(statistics.fmean(runs) for runs in by_base)


def rows_of(task: Task, runs: dict[str, list[list[list[float]]]]) -> list[list[str]]:
    """The rows of a case; a repair's have the deviation of its runs."""
    rows = []
    for method, by_base in runs.items():
        cells = []
        for column, digits in enumerate((0, 0, 1, 0, 1, 1)):
            values = [[run[column] for run in of_base] for of_base in by_base]
            cell = f"{mean(values):,.{digits}f}"
            if len(values[0]) > 1:
                cell += f" ± {deviation(values):,.{digits}f}"
            cells.append(cell)
        rows.append([f"{task.name}: {method}", *cells])
    return rows


def claims(cases: dict[str, dict[str, list[list[list[float]]]]]) -> list[list[str]]:
    """Each method beside a repair: its means, and in which cases one has fewer errors.

    Fewer means: of the class and in all, by more than two deviations of a repair's runs.
    """
    twice = []
    for column in (0, 1):
        by_base = [runs for case in cases.values() for runs in left(case, "repair", column)]
        twice.append(2 * deviation(by_base))
    print(f"two deviations: {twice[0]:.1f}% of the class, {twice[1]:.1f}% in all\n")
    rows = []
    for method in METHODS:
        ahead, behind, means = [], [], []
        for name, case in cases.items():
            shares = [mean(left(case, method, column)) for column in (0, 1)]
            repairs = [mean(left(case, "repair", column)) for column in (0, 1)]
            means.append(shares)
            if all(s < r - two for s, r, two in zip(shares, repairs, twice, strict=True)):
                ahead.append(name)
            if all(s > r + two for s, r, two in zip(shares, repairs, twice, strict=True)):
                behind.append(name)
        both = [f"{statistics.fmean(column):.0f}%" for column in zip(*means, strict=True)]
        rows.append([method, *both, "; ".join(ahead) or "none", str(len(behind))])
    return rows


def draw(cases: dict[str, dict[str, list[list[list[float]]]]], file: Path) -> None:
    """The figure: a row a case, a mark a method, errors left in percent of the base's."""
    from matplotlib.figure import Figure

    grey = "#808080"  # is read on white and on black
    colours = ["#808080", "#9467bd", "#17a2b8", "#bcbd22", "#e07b39", "#2c8fdb"]
    figure = Figure(figsize=(7, 1.3 + 0.3 * len(cases)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, column, title in zip(panels, (1, 0), ("in all", "on the class"), strict=True):
        for (method, mark), colour in zip(METHODS.items(), colours, strict=True):
            shares = [mean(left(case, method, column)) for case in cases.values()]
            size = 60 if method == "repair" else 24  # the large mark lies behind the others
            marks = {"s": size, "color": colour, "marker": mark, "zorder": 100 - size}
            panel.scatter(shares, range(len(cases)), label=method, **marks)
        panel.set_title(f"errors left {title}, % of the base's", fontsize=9, color=grey)
        panel.set_xlim(left=0)
        panel.grid(axis="both", color=grey, alpha=0.25)
        panel.tick_params(colors=grey, labelsize=8)
        panel.spines[:].set_color(grey)
        panel.patch.set_alpha(0)
    panels[0].set_yticks(range(len(cases)), cases)
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=6,
        fontsize=8,
        labelcolor=grey,
        frameon=False,
        columnspacing=1,
        handletextpad=0.1,
    )
    with atomic_write(file) as path:
        figure.savefig(path, dpi=200, transparent=True, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=[task.name for task in CASES], metavar="NAME")
    parser.add_argument("--print", action="store_true", help="what is complete, and run nothing")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("lightning.pytorch", "lora_mnist"):  # each run says the same
        logging.getLogger(name).setLevel(logging.WARNING)
    tasks = [task for task in CASES if not options.cases or task.name in options.cases]
    for task in () if options.print else tasks:
        for base in bases_of(task):
            for method in reversed(METHODS):  # a repair's targets and steps are the others', too
                for seed in seeds_of(method):
                    result_of(base, method, seed)
    cases, rows = {}, []
    for task, runs in complete(tasks):
        if task.is_weak:
            cases[task.name] = runs
        rows += rows_of(task, runs)
    print(table(["case: method", *HEADS], rows), end="\n\n")
    if not cases:
        return
    heads = ["method", "on the class", "in all", "fewer errors than a repair", "more, of cases"]
    print(table(heads, claims(cases)))
    if not options.cases:
        draw(cases, PROJECT / "docs" / "worth.png")


if __name__ == "__main__":
    main()
