"""What a repair is worth beside what anybody would do, on classifiers that no search has seen.

    python scripts/studies/repair.py           # the tables of docs/repair.md
    python scripts/studies/repair.py --quick   # one classifier: does it work?

The classifiers are in tasks.py, the plain methods in plain.py. Bases are pretrained where they are
missing. Every run is kept in outputs/repair_study; called again, the study does what is missing.
"""

import argparse
import copy
import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs import Results, kept, table
from plain import SCALES, Point, Shares, best, front, logits_of, point, shifted, twenty_lines
from tasks import TASKS, Case, Task
from torch import Tensor

from lora_mnist import load_adapter, set_lora_scale

#: By method: overrides of python train.py. An adapter is counted as trained, and as dialled.
METHODS = {
    "notebook": "stage=lora",
    "repair_private": "experiment=repair_private lora.scale=1",
    "going on": (
        "stage=finetune digit=null target=null data.batch_size=100 trainer.max_steps=400 "
        "scheduler=linear"
    ),
    "full fine-tuning, our loss": (
        "stage=finetune data.replay=90 loss.target_weight=0.25 trainer.max_steps=400 "
        "scheduler=linear"
    ),
    "repair": "experiment=repair lora.scale=1",
}
#: More weights of the class in the loss, for the front.
MORE_WEIGHTS = (0.5, 0.8)
#: Twenty lines: each rate with the first weight, then each weight with the best rate.
RATES, CLASS_WEIGHTS = (0.001, 0.003, 0.01), (3, 10, 30)
#: Errors left on the class, in percent, at which errors in all are compared.
TARGETS = (50, 35, 25)

#: By method: its shares on the test images.
Row = dict[str, Shares]


def study(task: Task) -> tuple[Row, dict[str, list[Shares]], list[int]]:
    """Every method on one classifier; the points of those that have a front; the base's errors."""
    case = task.load()
    labels = case.labels["test"]
    before = [logits_of(case.net, case.images[part]) for part in ("val", "test")]
    wrong = before[1].argmax(1) != labels
    base = [int((wrong & (labels == case.target)).sum()), int(wrong.sum())]
    numbers, tuned = shifted(case, before, before), tune(task, case, before)
    rows = {"one number": best(numbers).test, "twenty lines": best(tuned).test}
    repaired = []
    for method, settings in METHODS.items():
        folder, results = task.run(settings)
        if "dial" not in results:
            rows[method] = of_results(results, case.target)
            continue
        rows[f"{method}, scale 1"] = of_results(results, case.target)
        advised = results["dial"]["advised"]
        points = turned(case, before, folder / "adapter", (advised, *SCALES))
        rows[f"{method}, scale auto"] = points[0].test
        if method == "repair":
            repaired += points[1:]
    for weight in MORE_WEIGHTS:
        folder, _ = task.run(f"{METHODS['repair']} loss.target_weight={weight}")
        repaired += turned(case, before, folder / "adapter", SCALES)
    fronts = {
        "one number": [each.test for each in numbers],
        "twenty lines": [each.test for each in tuned],
        "repair": [each.test for each in repaired],
    }
    return rows, fronts, base


def tune(task: Task, case: Case, before: Sequence[Tensor]) -> list[Point]:
    """Twenty lines: the points of each weight, with the rate that validation images choose."""

    def tried(rate: float, weight: int) -> list[Point]:
        def compute() -> dict[str, list[Point]]:
            return {"points": twenty_lines(case, before, rate, weight)}

        points = kept(f"{task}, twenty lines, {rate}, {weight}", compute)["points"]
        return [Point(Shares(*val), Shares(*test)) for val, test in points]

    first, *others = CLASS_WEIGHTS
    by_rate = {rate: tried(rate, first) for rate in RATES}
    chosen = min(RATES, key=lambda rate: sum(best(by_rate[rate]).val[:2]))
    points = by_rate[chosen]
    for weight in others:
        points = points + tried(chosen, weight)
    return points


def of_results(results: Results, target: int) -> Shares:
    """What results.json says of the test images."""
    after, before = results["test"], results["test_base"]
    few, many = after["errors_per_class"][target], sum(after["errors_per_class"])
    few_before, many_before = before["errors_per_class"][target], sum(before["errors_per_class"])
    others = 100 * (many - few) / (many_before - few_before)
    flipped = 100 * after["broken"] / sum(after["images_per_class"])
    return Shares(100 * few / few_before, 100 * many / many_before, others, flipped)


def turned(
    case: Case, before: Sequence[Tensor], adapter: Path, scales: Sequence[float]
) -> list[Point]:
    """A finished adapter at several scales."""
    net = load_adapter(copy.deepcopy(case.net), adapter)
    points = []
    for scale in scales:
        set_lora_scale(net, scale)
        after = [logits_of(net, case.images[part]) for part in ("val", "test")]
        points.append(point(case, before, after))
    return points


# --- tables ---------------------------------------------------------------------------------------


def methods_table(rows: Sequence[Row]) -> str:
    """The mean and the worst of each method over all classifiers."""
    lines = []
    for method in rows[0]:
        each = [row[method] for row in rows]
        cells = [method]
        for name in ("target", "every", "others"):
            values = [getattr(one, name) for one in each]
            cells.append(f"{statistics.mean(values):.0f}%, {max(values):.0f}%")
        cells.append(f"{statistics.mean(one.flipped for one in each):.2f}%")
        cells.append(f"{sum(one.every < 100 for one in each)} of {len(each)}")
        lines.append(cells)
    heads = ["method", "on the class: mean, worst", "in all: mean, worst"]
    heads += ["others: mean, worst", "negative flips", "fewer in all"]
    return table(heads, lines)


def tasks_table(tasks: Sequence[Task], rows: Sequence[Row], bases: Sequence[list[int]]) -> str:
    """Errors on the class / in all, in percent of the base's, for each classifier."""
    methods = ("one number", "twenty lines", "full fine-tuning, our loss", "repair, scale auto")
    lines = []
    for task, row, base in zip(tasks, rows, bases, strict=True):
        cells = [f"{row[each].target:.0f} / {row[each].every:.1f}" for each in methods]
        lines.append([task.name, f"{base[0]} / {base[1]}", *cells])
    return table(["classifier", "the base's errors", *methods], lines)


def fronts_table(tasks: Sequence[Task], fronts: Sequence[dict[str, list[Shares]]]) -> str:
    """Errors in all at the same errors on the class: a row a classifier, and the mean.

    The mean is over the classifiers on which every method comes so far.
    """
    heads, columns = ["classifier"], [[*(task.name for task in tasks), "mean"]]
    for target in TARGETS:
        reached = []
        for points in fronts:
            numbers = [front(points[method], target) for method in points]
            if not any(math.isnan(number) for number in numbers):
                reached.append(numbers)
        for place, method in enumerate(fronts[0]):
            heads.append(f"{target}%: {method}")
            values = [front(points[method], target) for points in fronts]
            cells = ["" if math.isnan(value) else f"{value:.1f}" for value in values]
            mean = statistics.mean(row[place] for row in reached) if reached else None
            columns.append([*cells, "" if mean is None else f"{mean:.1f}"])
    return table(heads, list(zip(*columns, strict=True)))


def seen_table(tasks: Sequence[Task]) -> str:
    """A repair whose validation images the base was trained on, and whose dial looks at others."""
    lines = []
    for task in tasks:
        known = replace(task, knows_val=True)
        target = known.load().target
        cells = [task.name]
        for settings in ("", " data.val_from=test"):
            _, results = known.run(f"experiment=repair{settings}")
            numbers = of_results(results, target)
            scale = results["dial"]["advised"]
            cells.append(f"{scale:g}: {numbers.target:.0f} / {numbers.every:.1f}")
        lines.append(cells)
    return table(["classifier", "validation images that it knows", "`data.val_from=test`"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the least that shows that it works")
    quick = parser.parse_args().quick
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # each run says the same
    tasks = TASKS[:1] if quick else TASKS
    studies = [study(task) for task in tasks]
    rows, fronts, bases = zip(*studies, strict=True)
    print(methods_table(rows), tasks_table(tasks, rows, bases), sep="\n\n")
    print(fronts_table(tasks, fronts), seen_table(tasks[:1]), sep="\n\n")


if __name__ == "__main__":
    main()
