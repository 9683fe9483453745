"""Repair without forgetting: methods side by side, and the search that chose the recipes.

    python scripts/repair_study.py           # every method, 5 seeds, on outputs/base/mnist.ckpt
    python scripts/repair_study.py search    # what the recipes' weight, margin, layers rest on

Every method is a sweep over seeds (python train.py -m), kept in outputs/repair_study; called again,
the study runs what is missing. The table is printed as Markdown and stands there with the picture.
The search uses validation images alone, on a base pretrained without them. Needs the extra
``bench``.
"""

import argparse
import statistics
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from lora_mnist.files import atomic_write
from lora_mnist.summary import Row, read_rows

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "outputs" / "repair_study"
SEEDS = "seed=0,1,2,3,4"
REPAIR = ["stage=lora", "experiment=repair"]
FINETUNE = ["stage=finetune", "experiment=repair", "optimizer.lr=0.001"]

METHODS = {
    "naive (notebook)": ["stage=lora"],
    "margin": ["stage=lora", "loss=margin"],
    "private (repair_private)": ["stage=lora", "experiment=repair_private"],
    "replay": ["stage=lora", "data.replay=90"],
    "replay + distill": ["stage=lora", "data.replay=90", "loss=distill"],
    "our recipe (repair)": REPAIR,
    "recipe, rank 1": [*REPAIR, "lora.rank=1", "lora.alpha=1"],
    "recipe, rank 4": [*REPAIR, "lora.rank=4", "lora.alpha=4"],
    "recipe, rank 16": [*REPAIR, "lora.rank=16", "lora.alpha=16"],
    "full fine-tuning": [*FINETUNE],
    "last layer only": [*FINETUNE, "trainable=linear3[.].*"],
    "biases only": [*FINETUNE, "trainable=.*bias"],
}

#: The base of the search, pretrained without the validation images it chooses by.
HELD_OUT = ["base_ckpt=outputs/base/held_out.ckpt", "data.val_size=10000"]
PRETRAIN = ["stage=pretrain", "experiment=notebook", *HELD_OUT]
GRIDS = {
    "repair": [*REPAIR, "loss.target_weight=0.2,0.3,0.4,0.5"],
    "repair_private": [
        *("stage=lora", "experiment=repair_private"),
        *("loss.margin=0.5,1.0,2.0", "lora.targets=linear1,'linear[12]'"),
    ],
}


def sweep(name: str, *overrides: str) -> list[Row]:
    """The jobs of one sweep over the seeds; those of an earlier call are kept."""
    folder = OUTPUT / "".join(c if c.isalnum() else "_" for c in name)
    where = f"sweep.resume={folder}" if folder.exists() else f"hydra.sweep.dir={folder}"
    print(f"{name}: {' '.join(overrides)}", file=sys.stderr, flush=True)
    train("-m", *overrides, "digit=9", SEEDS, "logger=none", "sweep.metric=null", where)
    return read_rows(folder)


def train(*overrides: str) -> None:
    command = [sys.executable, "train.py", *overrides]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def outcome(rows: list[Row], split: str) -> dict[str, list[float]]:
    """What the table shows of some jobs on the images of ``split``, by name, a value a job."""
    results = [row.results for row in rows]
    cls = int(results[0]["digit"])

    def column(key: str) -> list[float]:
        return [float(r[key]) for r in results]

    errors = column(f"{split}.errors")
    of_class = column(f"{split}.errors_per_class.{cls}")
    return {
        "errors on the class": of_class,
        "errors elsewhere": [e - c for e, c in zip(errors, of_class, strict=True)],
        "all errors": errors,
        "repaired": column(f"{split}.repaired"),
        "broken": column(f"{split}.broken"),
        "trainable parameters": column("parameters.trainable"),
        "seconds": column("seconds.fit"),
    }


def spread(values: list[float], digits: int = 0) -> str:
    mean = f"{statistics.mean(values):,.{digits}f}"
    return mean if len(set(values)) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def markdown(table: dict[str, dict[str, list[float]]]) -> str:
    columns = list(next(iter(table.values())))
    lines = [f"| method | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for method, values in table.items():
        cells = [spread(values[c], int(c == "seconds")) for c in columns]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def base_row(row: Row, split: str) -> dict[str, list[float]]:
    results: dict[str, Any] = row.results
    errors = float(results[f"{split}_base.errors"])
    of_class = float(results[f"{split}_base.errors_per_class.{results['digit']}"])
    zeros = {key: [0.0] for key in ("repaired", "broken", "trainable parameters", "seconds")}
    three = {
        "errors on the class": [of_class],
        "errors elsewhere": [errors - of_class],
        "all errors": [errors],
    }
    return three | zeros


def draw(table: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Errors on the class against errors elsewhere, with the Pareto front of the methods."""
    import matplotlib.pyplot as plt

    points = {
        method: (
            statistics.mean(values["errors elsewhere"]),
            statistics.mean(values["errors on the class"]),
        )
        for method, values in table.items()
    }
    front = sorted(p for p in points.values() if not any(_beats(q, p) for q in points.values()))
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    axes.plot(*zip(*front, strict=True), color="tab:green", lw=1, zorder=1, label="Pareto front")
    for method, (x, y) in points.items():
        axes.scatter(x, y, color="black" if method == "base" else "tab:blue", zorder=2)
        axes.annotate(method, (x, y), (5, 4), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("errors on the other classes (test images, log scale)")
    axes.set_ylabel("errors on the class")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def study() -> None:
    rows = {name: sweep(name, *overrides) for name, overrides in METHODS.items()}
    first = next(iter(rows.values()))[0]
    table = {"base": base_row(first, "test")}
    table |= {name: outcome(found, "test") for name, found in rows.items()}
    text = markdown(table)
    with atomic_write(OUTPUT / "table.md") as path:
        path.write_text(text + "\n")
    draw(table, OUTPUT / "repair.png")
    print(f"{text}\n\n{OUTPUT / 'table.md'}\n{OUTPUT / 'repair.png'}")


def search() -> None:
    """Print every candidate's validation errors, the mean over the seeds."""
    if not (ROOT / "outputs/base/held_out.ckpt").exists():
        train(*PRETRAIN)
    for recipe, overrides in GRIDS.items():
        rows = sweep(f"search {recipe}", *HELD_OUT, *overrides)
        table = {"base": base_row(rows[0], "val")}
        rows.sort(key=_candidate)
        for candidate, jobs in groupby(rows, key=_candidate):
            table[candidate] = outcome(list(jobs), "val")
        print(f"\n{recipe}, on validation images\n\n{markdown(table)}")


def _candidate(row: Row) -> str:
    return " ".join(f"{key}={value}" for key, value in row.swept.items() if key != "seed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", default="study", choices=("study", "search"))
    {"study": study, "search": search}[parser.parse_args().what]()
