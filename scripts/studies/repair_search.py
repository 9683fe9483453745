"""The search for experiment=repair: what each change alone does on several classifiers.

    python scripts/studies/repair_search.py           # a table of docs/repair.md
    python scripts/studies/repair_search.py --quick   # one classifier, two rows: does it work?

The classifiers are SEARCH in tasks.py; docs/repair.md judges the recipe on others. To compare
candidates at the same share of the class's errors, a number is added to the logit of the class
after training, and errors in all are read off where 50%, 35% and 25% of the class's are left. A
change that gains less than a point stays out of the recipe.
"""

import argparse
import copy
import logging
import math
import statistics
from collections.abc import Sequence

from jobs import table
from plain import front, logits_of, shifted
from repair import TARGETS
from tasks import SEARCH, Case, Task
from torch import Tensor

from lora_mnist import load_adapter

#: Changes of experiment=repair, each alone.
CHANGES = (
    "",
    "callbacks.averaging=null scheduler=linear",
    "lora.rank=4",
    "lora.rank=16",
    "lora.init_std=0.1",
    "lora.init_std=1.0",
    "optimizer.lr=0.001",
    "optimizer.lr=0.01",
    "loss.target_weight=0.1",
    "loss.target_weight=0.5",
    "trainer.max_steps=100",
    "trainer.max_steps=200",
    "trainer.max_steps=800",
)


def errors_in_all(task: Task, case: Case, before: Sequence[Tensor], change: str) -> float:
    """The mean of the errors in all at :data:`repair.TARGETS`, in percent of the base's."""
    folder, _ = task.run(f"experiment=repair lora.scale=1 {change}")
    net = load_adapter(copy.deepcopy(case.net), folder / "adapter")
    after = [logits_of(net, case.images[part]) for part in ("val", "test")]
    points = [each.test for each in shifted(case, before, after)]
    return statistics.mean(front(points, target) for target in TARGETS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the least that shows that it works")
    quick = parser.parse_args().quick
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # each run says the same
    tasks, changes = (SEARCH[:1], CHANGES[:2]) if quick else (SEARCH, CHANGES)
    columns = []
    for task in tasks:
        case = task.load()
        before = [logits_of(case.net, case.images[part]) for part in ("val", "test")]
        columns.append([errors_in_all(task, case, before, change) for change in changes])
    lines = []
    for change, numbers in zip(changes, zip(*columns, strict=True), strict=True):
        reached = [number for number in numbers if not math.isnan(number)]
        cells = [f"{number:.1f}" for number in numbers]
        lines.append([f"`{change}`" if change else "the recipe", *cells])
        lines[-1].append(f"{statistics.mean(reached):.1f}")
    print(table(["change", *(task.name for task in tasks), "mean"], lines))


if __name__ == "__main__":
    main()
