"""What a repair is worth: methods side by side on bases that no search has seen.

    python scripts/studies/repair.py test            # a table of docs/repair.md; or tasks, several
    python scripts/studies/repair.py test --quick    # one base, one class, few steps: does it work?

The methods and the bases are in repair.yaml, the networks and pictures of the tasks in tasks.py.
Bases are pretrained where they are missing. Every run has a folder of its own in
outputs/repair_study; killed or called again, the study does what is missing.
"""

import argparse
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jobs import Base, Results, cases, count_test_errors, errors, run, table
from safetensors.torch import save_file
from tasks import PICTURES, weighted_fine_tuning

from lora_mnist import load_adapter, merge_lora

PLAN: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
METHODS: dict[str, Any] = PLAN["methods"]

#: By method: the numbers of each run.
Rows = dict[str, list[dict[str, float]]]


def row(test: Results, base: Results, classes: Sequence[int]) -> dict[str, float]:
    """The numbers of a repair of ``classes``: what was counted on test images, and of the base."""
    after, before = errors(test, classes), errors(base, classes)
    numbers = {"class": 100 * after[0] / before[0], "all": 100 * after[1] / before[1]}
    numbers |= {"base class": before[0], "base all": before[1]}
    for name in ("repaired", "broken"):
        if name in test:  # weighted fine-tuning counts errors alone
            numbers[name] = test[name]
    return numbers


def compare(plan: dict[str, Any], quick: bool) -> Rows:
    """Run every method of a table."""
    if "pictures" in plan:
        PICTURES[plan["pictures"]]()
    rows: Rows = {}
    for base, digit in cases(plan, quick):
        before = base.results()["test"]
        rows.setdefault("base", []).append({**row(before, before, [digit]), "weights": 0})
        for method in plan.get("methods", METHODS):
            settings = METHODS[method]
            if isinstance(settings, int):
                after = weighted_fine_tuning(base, digit, settings)
            else:
                _, after = base.run(settings.split(), digit)
            numbers = row(after["test"], before, [digit])
            numbers["weights"] = after["parameters"]["trainable"]
            rows.setdefault(method, []).append(numbers)
    return rows


# --- several classes ------------------------------------------------------------------------------


def compare_several(quick: bool) -> Rows:
    """Repairs in a row, repairs put together, and as many steps of plain training."""
    repair = METHODS["repair, scale 1"].split()
    plain = METHODS["going on with hardness 0.5"].split()
    rows: Rows = {}
    for base, _ in cases(PLAN["several"], quick):
        classes, before = base.classes(), base.results()["test"]
        four, tests = classes[:4], {}
        adapters = [base.run(repair, digit)[0] / "adapter" for digit in four]
        for scale in (1.0, 0.5, 0.25):
            method = f"4 independent repairs together, each at {scale:g}"
            tests[method] = four, together(base, adapters, scale)
        repaired = in_a_row(base, repair)
        for count in (4, len(classes)):
            tests[f"{count} repairs in a row"] = classes[:count], repaired[count - 1]
            steps = 100 * count
            _, trained = base.run([*plain, f"trainer.max_steps={steps}"], classes[0])
            method = f"training on all classes, {steps} steps"
            tests[method] = classes[:count], trained["test"]
        for method, (target, test) in tests.items():
            rows.setdefault(method, []).append(row(test, before, target))
    return rows


def together(base: Base, adapters: Sequence[Path], scale: float) -> Results:
    """What is counted on the test images with all ``adapters`` on, each at ``scale``."""
    cfg, net = base.load()
    for adapter in adapters:
        load_adapter(net, adapter, scale=scale)
    return count_test_errors(cfg, net)


def in_a_row(base: Base, repair: Sequence[str]) -> list[Results]:
    """What is counted on the test images after each repair: of every class, the weakest first.

    Each starts from what the last one left.
    """
    start, tests = base.file, []
    for digit in base.classes():
        own = [f"base_ckpt={start}", f"digit={digit}", f"seed={base.seed}"]
        folder, results = run([*base.common, *repair, *own])
        tests.append(results["test"])
        _, net = base.load(start)
        merge_lora(load_adapter(net, folder / "adapter"))
        start = folder / "merged.safetensors"
        save_file(net.state_dict(), start)
    return tests


# --- tables ---------------------------------------------------------------------------------------


def mean(runs: Sequence[dict[str, float]], name: str) -> str:
    """The mean of a number over ``runs``; nothing where it was not counted."""
    if name not in runs[0]:
        return ""
    return f"{statistics.mean(run[name] for run in runs):,.0f}"


def spread(runs: Sequence[dict[str, float]], name: str) -> str:
    """Mean, standard deviation and worst case of a percentage."""
    values = [run[name] for run in runs]
    text = f"{statistics.mean(values):.1f}%"
    if len(set(values)) > 1:
        text += f" ± {statistics.stdev(values):.1f}, {max(values):.0f}%"
    return text


def fewer(runs: Sequence[dict[str, float]]) -> str:
    """In how many cases there are fewer errors than the base has."""
    return f"{sum(run['all'] < 100 for run in runs)} of {len(runs)}"


def test(rows: Rows) -> str:
    """The table of methods on one task, and how many errors the base has."""
    heads = ["method", "on the class: mean, worst", "of all: mean, worst"]
    heads += ["repaired", "broken", "trained weights", "fewer in all"]
    lines = []
    for method, runs in rows.items():
        shares = [spread(runs, name) for name in ("class", "all")]
        counts = [mean(runs, name) for name in ("repaired", "broken", "weights")]
        lines.append([method, *shares, *counts, fewer(runs)])
    base = rows["base"]
    few, many = mean(base, "base class"), mean(base, "base all")
    told = f"The base's errors, on average: {few} on the class, {many} in all."
    return f"{table(heads, lines)}\n\n{told}"


def several(rows: Rows) -> str:
    """The table of several repairs."""
    lines = [[method, spread(runs, "class"), spread(runs, "all")] for method, runs in rows.items()]
    return table(["method", "on the class: mean, worst", "of all: mean, worst"], lines)


def tasks(of: dict[str, Rows]) -> str:
    """The table with a column for each task: errors on the class and of all, means in percent."""
    lines = []
    for method in next(iter(of.values())):
        cells, every = [method], []
        for rows in of.values():
            runs = rows.get(method, [])
            every += runs
            kind = "base " if method == "base" else ""  # of which it is their number
            both = [mean(runs, f"{kind}{name}") for name in ("class", "all")] if runs else []
            cells.append(" / ".join(both))
        lines.append([*cells, fewer(every)])
    return table(["method", *of, "fewer in all"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("test", "tasks", "several"), help="which table")
    parser.add_argument("--quick", action="store_true", help="the least that shows that it works")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # each run says the same
    if arguments.what == "test":
        print(test(compare(PLAN["test"], arguments.quick)))
    elif arguments.what == "tasks":
        print(tasks({name: compare(plan, arguments.quick) for name, plan in PLAN["tasks"].items()}))
    else:
        print(several(compare_several(arguments.quick)))


if __name__ == "__main__":
    main()
