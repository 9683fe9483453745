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
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cases import CASES, OUTPUT, Task
from pictures import PROJECT
from rival import (
    Case,
    balanced_head,
    balanced_softmax,
    compute_logits,
    one_number,
    refitted,
    table,
    twenty_lines,
)
from torch import Tensor

from lora_mnist import load_adapter
from lora_mnist.files import atomic_write
from lora_mnist.measure.counts import count_errors

#: The methods, and the marks of the figure.
METHODS = {
    "base": "|",
    "one number or tau": "D",
    "cRT": "^",
    "balanced softmax": "v",
    "twenty lines, refitted": "s",
    "repair": "o",
}
#: Of repairs. Every other method runs once, with the first.
SEEDS = (20, 21)

# --- runs ----------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def loaded(task: Task) -> Case:
    """Load a base, its images, which take half a gigabyte, and the steps of its repair."""
    file = OUTPUT / "runs" / f"{task.title}, repair {SEEDS[0]}" / "results.json"
    results = json.loads(file.read_text())
    case = task.load(results["targets"])
    case.steps = results["steps"]
    return case


def repaired(task: Task, folder: Path) -> tuple[Tensor, str]:
    """Return a repair's logits of the test images, and its choices."""
    choices = json.loads((folder / "results.json").read_text())["choices"]
    case = loaded(task)
    net = load_adapter(copy.deepcopy(case.net), folder / "adapter")
    return compute_logits(net, case.images["test"]), json.dumps(choices)


def rivalled(case: Case, method: str, seed: int) -> tuple[Tensor, str]:
    """Another method's logits of the test images, and what it chose."""
    if method == "base":
        return case.before["test"], ""
    if method == "one number or tau":
        direction, offset = one_number(case)
        return case.before["test"] + offset * direction, str(offset)
    if method == "cRT":
        net, choice = balanced_head(case, seed), ""
    elif method == "balanced softmax":
        net, lr = balanced_softmax(case, seed)
        choice = str(lr)
    else:
        _, chosen = twenty_lines(case, seed)
        net, choice = refitted(case, chosen, seed), str(chosen)
    return compute_logits(net, case.images["test"]), choice


def load_result(task: Task, method: str, seed: int) -> dict[str, Any]:
    """Return a run's predictions on test images, from its file or from a run now."""
    file = _file(task, method, seed)
    if not file.exists():
        logging.getLogger(__name__).info("%s: %s, seed %d", task.title, method, seed)
        task.base()
        if method != "repair":
            loaded(task)  # which is no part of its minutes
        started = time.process_time()
        if method == "repair":
            folder = task.repair(seed)
            minutes = (time.process_time() - started) / 60
            logits, choice = repaired(task, folder)
        else:
            logits, choice = rivalled(loaded(task), method, seed)
            minutes = (time.process_time() - started) / 60
        case = loaded(task)
        result: dict[str, Any] = {"minutes": minutes, "choice": choice, "targets": case.targets}
        result |= {"labels": case.labels["test"].tolist(), "classes": case.dataset.classes}
        result["predicted"] = logits.argmax(1).tolist()
        with atomic_write(file) as path:
            path.write_text(json.dumps(result))
    return json.loads(file.read_text())  # type: ignore[no-any-return]


def _file(task: Task, method: str, seed: int) -> Path:
    return OUTPUT / "results" / task.title / f"{method}, seed {seed}.json"


def choose_seeds(method: str) -> tuple[int, ...]:
    """Return the seeds of a method's runs on a base."""
    return SEEDS if method == "repair" else SEEDS[:1]


def list_bases(task: Task) -> list[Task]:
    """Return the same case with each of its bases."""
    return [replace(task, seed=task.seed + n) for n in range(task.bases)]


# --- tables --------------------------------------------------------------------------------------


class Numbers(NamedTuple):
    """A run's errors on the classes to repair and in all, and what else is reported."""

    on_class: int
    in_all: int
    balanced: float  # the mean over classes of the percentage of images that is wrong
    minutes: float  # of a core


#: Of a case: by method, by base, the numbers of each run.
Runs = dict[str, list[list[Numbers]]]


def summarize(result: dict[str, Any]) -> Numbers:
    """Return a run's numbers."""
    labels, predicted = torch.tensor(result["labels"]), torch.tensor(result["predicted"])
    counts = count_errors(labels, predicted, len(result["classes"]), result["targets"])
    on_class, in_all = counts["errors_of_target"], counts["errors"]
    return Numbers(on_class, in_all, 100 - 100 * counts["balanced_accuracy"], result["minutes"])


def load_runs(task: Task) -> Runs | None:
    """Return the numbers of a case if all its runs are there, else None."""
    runs: Runs = {method: [] for method in METHODS}
    for base in list_bases(task):
        for method in METHODS:
            seeds = choose_seeds(method)
            if not all(_file(base, method, seed).exists() for seed in seeds):
                return None
            runs[method].append([summarize(load_result(base, method, seed)) for seed in seeds])
    return runs


def mean(by_base: Sequence[Sequence[float]]) -> float:
    """Return the mean over bases of the mean over the runs of a base."""
    return statistics.fmean(statistics.fmean(runs) for runs in by_base)


def deviation(by_base: Sequence[Sequence[float]]) -> float:
    """Return the standard deviation of runs on the same base, pooled over bases."""
    return math.sqrt(statistics.fmean(statistics.variance(runs) for runs in by_base))


def column(by_base: Sequence[Sequence[Numbers]], name: str) -> list[list[float]]:
    """One number of each run."""
    return [[getattr(run, name) for run in runs] for runs in by_base]


def left(runs: Runs, method: str, name: str) -> list[list[float]]:
    """Errors that a method leaves, in percent of the base's: by base, of each run."""
    shares = []
    of_bases = zip(column(runs["base"], name), column(runs[method], name), strict=True)
    for (before,), after in of_bases:
        shares.append([100 * errors / before for errors in after])
    return shares


def format_row(task: Task, runs: Runs) -> list[str]:
    """Return a case's cells: errors on the class/in all/the balanced error, by method.

    The last is given where the test set has its natural class distribution.
    """
    cells = [task.name]
    for by_base in runs.values():
        texts = []
        for name in ("on_class", "in_all"):
            values = column(by_base, name)
            text = f"{mean(values):.0f}"
            if len(values[0]) > 1:
                text += f"±{deviation(values):.0f}"
            texts.append(text)
        if task.is_natural:
            texts[-1] += f"/{mean(column(by_base, 'balanced')):.1f}%"
        cells.append("/".join(texts))
    return [*cells, f"{mean(column(runs['repair'], 'minutes')):.1f}"]


#: What claims and figure compare, beside the base.
MEASURES = {"in_all": "errors in all", "balanced": "balanced error"}


def claims(cases: dict[str, Runs]) -> list[list[str]]:
    """Each method's means, the cases in which it is ahead of a repair, and in how many behind.

    Ahead means: in both measures, by more than two deviations of a repair's runs.
    """
    twice = {}
    for name in MEASURES:
        by_base = [shares for runs in cases.values() for shares in left(runs, "repair", name)]
        twice[name] = 2 * deviation(by_base)
    rows = []
    for method in [*METHODS][1:]:  # the base leaves all
        ahead, behind, every = [], 0, []
        for case, runs in cases.items():
            less = {n: mean(left(runs, "repair", n)) - mean(left(runs, method, n)) for n in twice}
            every.append([mean(left(runs, method, n)) for n in twice])
            every[-1].append(mean(column(runs[method], "minutes")))
            if all(less[n] > twice[n] for n in twice):
                ahead.append(case)
            if all(-less[n] > twice[n] for n in twice):
                behind += 1
        in_all, balanced, minutes = map(statistics.fmean, zip(*every, strict=True))
        means = [f"{in_all:.0f}%/{balanced:.0f}%", f"{minutes:.1f}"]
        rows.append([method, *means, "; ".join(ahead) or "none", f"{behind} of {len(cases)}"])
    print(f"Two deviations: {twice['in_all']:.1f}% in all, {twice['balanced']:.1f}% balanced.\n")
    return rows


def draw(cases: dict[str, Runs], file: Path) -> None:
    """Draw the figure: a row a case, a mark a method, errors left in percent of the base's."""
    from matplotlib.figure import Figure

    gray = "#808080"  # is read on white and on black
    colors = ["#808080", "#9467bd", "#17a2b8", "#bcbd22", "#e07b39", "#2c8fdb"]
    figure = Figure(figsize=(7, 1.3 + 0.3 * len(cases)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (name, title) in zip(panels, MEASURES.items(), strict=True):
        for (method, mark), color in zip(METHODS.items(), colors, strict=True):
            shares = [mean(left(runs, method, name)) for runs in cases.values()]
            size = 60 if method == "repair" else 24  # the large mark lies behind the others
            marks = {"s": size, "color": color, "marker": mark, "zorder": 100 - size}
            panel.scatter(shares, range(len(cases)), label=method, **marks)
        panel.set_title(f"{title}, % of the base's", fontsize=9, color=gray)
        panel.set_xlim(left=0)
        panel.grid(axis="both", color=gray, alpha=0.25)
        panel.tick_params(colors=gray, labelsize=8)
        panel.spines[:].set_color(gray)
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
        labelcolor=gray,
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
        for base in list_bases(task):
            for method in reversed(METHODS):  # a repair's targets and steps are the others', too
                for seed in choose_seeds(method):
                    load_result(base, method, seed)
    cases, rows = {}, []
    for task in tasks:
        runs = load_runs(task)
        if runs:
            rows.append(format_row(task, runs))
            if task.is_weak:
                cases[task.name] = runs
    print(table(["case", *METHODS, "minutes of a repair"], rows), end="\n\n")
    if not cases:
        return
    heads = ["method", "in all/balanced", "minutes", "ahead of a repair", "behind it"]
    print(table(heads, claims(cases)))
    if not options.cases:
        draw(cases, PROJECT / "docs" / "worth.png")


if __name__ == "__main__":
    main()
