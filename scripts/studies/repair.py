"""What a repair is worth beside what anybody would do, on classifiers that no search has seen.

    python scripts/studies/repair.py            # the tables of docs/repair.md
    python scripts/studies/repair.py --search   # what each part of the recipe is worth, on others

The classifiers are in tasks.py, the plain methods in plain.py. Bases are pretrained where they are
missing. Every run is kept in outputs/repair_study; called again, the study does what is missing.
"""

import argparse
import copy
import logging
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs import Results, table
from plain import Point, Shares, best, point, shifted, twenty_lines
from tasks import SEARCH, TASKS, Case, Task

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
#: Twenty lines: each rate with the first weight, then each weight with the best rate.
RATES, CLASS_WEIGHTS = (0.001, 0.003, 0.01), (3, 10, 30)
#: Those whose fronts are compared.
FRONTS = ("one number", "twenty lines", "repair, scale 1")
#: Changes of experiment=repair, each alone: what the search compares.
CHANGES = (
    "",
    "callbacks.averaging=null scheduler=linear",
    "lora.rank=16",
    "lora.init_std=0.1",
    "lora.init_std=1.0",
    "optimizer.lr=0.001",
    "optimizer.lr=0.01",
    "loss.target_weight=0.1",
    "loss.target_weight=0.5",
    "trainer.max_steps=200",
    "trainer.max_steps=800",
)

#: By method: its shares on the test images.
Row = dict[str, Shares]


def study(task: Task) -> tuple[Row, dict[str, list[float]], str]:
    """Every method on one classifier: its shares of test images; some fronts; the base's errors."""
    case = task.load()
    points = {"one number": best(shifted(case, list(case.before.values())))}
    points["twenty lines"] = tuned(case)
    rows = {method: each.test for method, each in points.items()}
    for method, settings in METHODS.items():
        folder, results = task.run(settings)
        if "dial" not in results:
            rows[method] = of_results(results, case.target)
            continue
        for name, scale in (("1", 1.0), ("auto", results["dial"]["advised"])):
            each = turned(case, folder / "adapter", scale)
            points[f"{method}, scale {name}"] = each
            rows[f"{method}, scale {name}"] = each.test
    wrong = case.before["test"].argmax(1) != case.labels["test"]
    errors = f"{int((wrong & (case.labels['test'] == case.target)).sum())} / {int(wrong.sum())}"
    return rows, {method: points[method].front for method in FRONTS}, errors


def tuned(case: Case) -> Point:
    """Twenty lines, with the rate, then the weight, that validation images choose."""
    first, *others = CLASS_WEIGHTS
    by_rate = {rate: twenty_lines(case, rate, first) for rate in RATES}
    chosen = min(RATES, key=lambda rate: sum(by_rate[rate].val[:2]))
    return best([by_rate[chosen], *(twenty_lines(case, chosen, weight) for weight in others)])


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


def tasks_table(tasks: Sequence[Task], rows: Sequence[Row], errors: Sequence[str]) -> str:
    """Errors on the class / in all, in percent of the base's, for each classifier."""
    methods = ("one number", "twenty lines", "full fine-tuning, our loss", "repair, scale auto")
    lines = []
    for task, row, of_base in zip(tasks, rows, errors, strict=True):
        cells = [f"{row[each].target:.0f} / {row[each].every:.1f}" for each in methods]
        lines.append([task.name, of_base, *cells])
    return table(["classifier", "the base's errors", *methods], lines)


def fronts_table(tasks: Sequence[Task], fronts: Sequence[dict[str, list[float]]]) -> str:
    """Errors in all at :data:`plain.TARGETS`: a row a classifier, and the mean."""
    lines = [[task.name] for task in tasks] + [["mean"]]
    for method in FRONTS:
        rows = [each[method] for each in fronts]
        rows.append([statistics.mean(column) for column in zip(*rows, strict=True)])
        for line, numbers in zip(lines, rows, strict=True):
            line.append(" / ".join(f"{number:.1f}" for number in numbers))
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
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # each run says the same
    if options.search:
        print(search_table(SEARCH, CHANGES))
        return
    rows, fronts, errors = zip(*(study(task) for task in TASKS), strict=True)
    print(methods_table(rows), tasks_table(TASKS, rows, errors), sep="\n\n")
    print(fronts_table(TASKS, fronts), seen_table(TASKS[0]), sep="\n\n")


if __name__ == "__main__":
    main()
