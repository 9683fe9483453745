"""How fast: this project beside the notebook, PEFT and a bare PyTorch loop, in one run.

    python scripts/benchmark.py              # every row, with spread; about a quarter of an hour
    python scripts/benchmark.py --quick      # fewer rows and rounds, no growth; about two minutes
    python scripts/benchmark.py --profile    # where a training step's time goes

The contestants of a row take turns, round after round, and are compared round by round: what slows
the machine down slows them all. The tables are printed as Markdown and stand, with every measured
value, in outputs/benchmark. Needs the extra ``bench``; that brings transformers, which torchmetrics
then imports at every start, so the rows of whole commands can be given another interpreter.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import notebook
import torch
import torch.nn.functional as F
from contestants import (
    OUTPUT,
    Contestant,
    Side,
    all_sides,
    batches_in_memory,
    configure,
    dense_net,
    fine_tune_notebook,
    fit_bare,
    fit_net,
    fit_notebook,
    fit_ours,
    lora_net,
    peak_memory,
    peft_net,
    quiet_lightning,
    run_process,
    test_bare,
    test_notebook,
    test_ours,
)
from torch import nn

from lora_mnist import MLP, add_lora
from lora_mnist.build import build_data
from lora_mnist.files import atomic_write
from lora_mnist.memory import keep_freed_memory


@dataclass
class Row:
    """One line of the table: contestants that do the same work, and what ours must reach."""

    name: str
    unit: str
    contestants: dict[str, Contestant]
    targets: dict[str, float]  # contestant -> least ratio of ours to it
    at_most: float | None = None  # largest value of ours
    less_is_better: bool = False
    rounds: int | None = None
    warm_up: bool = False  # a round that does not count
    measured: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, rounds: int) -> "Row":
        self.measured = {name: [] for name in self.contestants}
        if self.warm_up:
            for name, contestant in self.contestants.items():
                if name != "notebook":  # which never has a process that has worked before
                    contestant()
        for _ in range(self.rounds or rounds):
            for name, contestant in self.contestants.items():
                self.measured[name].append(contestant())
        return self

    def ratio(self, other: str) -> float:
        """Median over the rounds of ours to ``other``, above 1 where ours is better."""
        pairs = zip(self.measured["ours"], self.measured[other], strict=True)
        return statistics.median(b / a if self.less_is_better else a / b for a, b in pairs)

    def verdicts(self) -> list[tuple[str, bool]]:
        """Each target in words, and whether it was met."""
        found = []
        for name, least in self.targets.items():
            ratio = self.ratio(name)
            found.append((f"{ratio:.2f} x {name} (>= {least:.3g})", ratio >= least))
        if self.at_most is not None:
            median = statistics.median(self.measured["ours"])
            limit = f"{median:.2f} {self.unit} (<= {self.at_most:g})"
            found.append((limit, median <= self.at_most))
        return found

    def cells(self) -> list[str]:
        values = [f"{name} {_spread(values)}" for name, values in self.measured.items()]
        verdicts = [f"{'met' if met else '**missed**'}: {text}" for text, met in self.verdicts()]
        return [self.name, self.unit, "<br>".join(values), "<br>".join(verdicts)]


def _spread(values: list[float]) -> str:
    digits = 0 if min(values) >= 100 else 2
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f}-{most:.{digits}f})"


def training_rows(sides: dict[str, Side], quick: bool) -> list[Row]:
    steps = 120 if quick else 400
    rounds = 2 if quick else 7
    return [
        Row(
            "pretrain, Trainer",
            "steps/s",
            {
                "notebook": sides["notebook"](fit_notebook, steps // 3, None),
                "floor": sides["floor"](fit_net, MLP, steps),
                "ours": sides["ours"](fit_ours, steps, "stage=pretrain"),
            },
            {"notebook": 2.5, "floor": 0.8},
            rounds=rounds,
            warm_up=True,
        ),
        Row(
            "LoRA rank 1, Trainer",
            "steps/s",
            {
                "notebook": sides["notebook"](fit_notebook, steps // 4, notebook.DIGIT),
                "ours": sides["ours"](fit_ours, steps, "stage=lora"),
            },
            {"notebook": 5},
            rounds=rounds,
            warm_up=True,
        ),
        Row(
            "LoRA rank 1, bare loop",
            "steps/s",
            {
                "PEFT": sides["PEFT"](fit_net, peft_net, steps),
                "ours": sides["ours"](fit_net, lora_net, steps),
            },
            {"PEFT": 1.05},
            rounds=rounds,
            warm_up=True,
        ),
    ]


def test_rows(sides: dict[str, Side], quick: bool) -> list[Row]:
    images = 1000 if quick else 10_000
    return [
        Row(
            "test, adapted network",
            "images/s",
            {
                "notebook": sides["notebook"](test_notebook, dense_net, images),
                "PEFT": sides["PEFT"](test_bare, peft_net, 1000),
                "ours": sides["ours"](test_ours, True),
            },
            {"notebook": 20, "PEFT": 1},
            warm_up=True,
        ),
        Row(
            "test, base",
            "images/s",
            {
                "notebook": sides["notebook"](test_notebook, notebook.RichBoyNet, images),
                "ours": sides["ours"](test_ours, False),
            },
            {"notebook": 3},
            warm_up=True,
        ),
    ]


#: Flags of train.py that should answer at once, with what a shell sets when it asks.
AT_ONCE: dict[str, dict[str, str]] = {
    "--help": {},
    "--cfg job": {},
    "-sc query=bash": {"COMP_LINE": "python train.py stage=", "COMP_POINT": "22"},
}


def command_rows(sides: dict[str, Side], folder: str, python: str, quick: bool) -> list[Row]:
    """Whole commands, process start to exit, on bases that each side pretrained itself."""
    theirs, ours = f"{folder}/notebook.pt", f"{folder}/base.ckpt"
    torch.save(notebook.RichBoyNet().state_dict(), theirs)
    settings = [f"base_ckpt={ours}", f"paths.outputs={folder}/outputs"]

    def run(*command: str) -> float:
        return run_process(python, *command)[0]

    run("train.py", "stage=pretrain", "trainer.max_steps=100", *settings)
    lora = ["train.py", "stage=lora", "digit=9", "trainer.max_steps=100", *settings]
    imports = "import hydra, lightning.pytorch, torchvision, torch.utils.tensorboard, safetensors"
    script = f"import runpy, sys; sys.argv = {lora!r}; runpy.run_path('train.py', None, '__main__')"
    ranks = ["1,2", "1,2,3,4,5,6"]

    notebook_job = sides["notebook"](fine_tune_notebook)

    def further_job() -> float:
        few, many = (run(*lora, f"lora.rank={r}", "-m") for r in ranks)
        return (many - few) / 4

    def start(flags: str) -> Contestant:
        return lambda: run_process(python, "train.py", *flags.split(), **AT_ONCE[flags])[0]

    rows = [
        Row(
            "whole command, stage=lora, 100 steps",
            "s",
            {
                "notebook": lambda: run("scripts/notebook.py", "lora", theirs),
                "ours": lambda: run(*lora),
            },
            {"notebook": 3},
            less_is_better=True,
            rounds=1 if quick else 3,
        ),
    ]
    for flags in AT_ONCE:
        contestants = {
            "import hydra": lambda: run("-c", "import hydra"),
            "ours": start(flags),
        }
        name = f"start-up, train.py {flags}"
        rows.append(Row(name, "s", contestants, {"import hydra": 1 / 3}, less_is_better=True))
    if not quick:
        rows += [
            Row(
                "a further job of a sweep",
                "s",
                {"notebook": notebook_job, "ours": further_job},
                {"notebook": 8},
                1.5,
                less_is_better=True,
                rounds=3,
            ),
            Row(
                "peak memory, stage=lora",
                "MB beyond the imports",
                {"ours": lambda: peak_memory(python, script) - peak_memory(python, imports)},
                {},
                250,
                less_is_better=True,
                rounds=3,
            ),
        ]
        pretrain = ["train.py", "stage=pretrain", *settings]
        contestants = {
            "notebook": lambda: run("scripts/notebook.py", "pretrain", theirs),
            "ours": lambda: run(*pretrain),
        }
        name = "whole command, stage=pretrain"
        rows.append(Row(name, "s", contestants, {"notebook": 2.3}, less_is_better=True, rounds=3))
    return rows


def sweep_row(folder: str) -> Row:
    """The README's sweep in two workers and in one process, on the base of the whole commands."""
    grid = ["lora.rank=1,2,4,8", "lora.alpha=1,4,8"]
    settings = [f"base_ckpt={folder}/base.ckpt", f"paths.outputs={folder}/outputs"]

    def sweep(*launcher: str) -> Contestant:
        command = ["train.py", "-m", "stage=lora", "digit=9", *grid, *settings, *launcher]
        return lambda: run_process(sys.executable, *command)[0]  # another may have no joblib

    contestants = {
        "one process": sweep(),
        "ours": sweep("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    }
    name = "sweep of 12 jobs, joblib with two workers"
    return Row(name, "s", contestants, {"one process": 1.1}, less_is_better=True, rounds=3)


def growth() -> dict[str, list[dict[str, Any]]]:
    """How cost grows with rank, with hidden width, and per image with the test's batch size."""
    keep_freed_memory()  # for both: dense products are twice as fast with it, ours no slower
    batches, rounds = batches_in_memory(60), 3

    def milliseconds(net: nn.Module) -> float:
        return 1000 / max(fit_bare(net, batches) for _ in range(rounds))

    def dense(rank: int, net: Any) -> nn.Module:
        for layer in (net.linear1, net.linear2, net.linear3):
            weight = notebook.DenseLoRA(layer.weight, rank)
            nn.utils.parametrize.register_parametrization(layer, "weight", weight)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_("lora" in name)
        return net  # type: ignore[no-any-return]

    def images_per_second(batch_size: int) -> float:
        return statistics.median(test_bare(lora_net, batch_size) for _ in range(rounds))

    def wide(factor: int) -> MLP:
        return MLP(hidden_sizes=(1000 * factor, 2000 * factor))

    return {
        "LoRA step, ms, by rank": [
            {
                "rank": rank,
                "ours": milliseconds(add_lora(MLP(), rank)),
                "dense": milliseconds(dense(rank, MLP())),
            }
            for rank in (1, 4, 16, 64, 256)
        ],
        "LoRA step, ms, by hidden width": [
            {
                "width": f"x{factor}",
                "ours": milliseconds(add_lora(wide(factor))),
                "dense": milliseconds(dense(1, wide(factor))),
            }
            for factor in (1, 2, 4)
        ],
        "adapted network, images/s, by test batch size": [
            {"batch": size, "ours": images_per_second(size)} for size in (10, 100, 1000, 10_000)
        ],
    }


def profile(stage: str) -> list[list[str]]:
    """Milliseconds of each part of a training step: the work, and what the Trainer adds to it."""
    steps = 500
    data = build_data(configure(f"stage={stage}"))
    torch.manual_seed(0)
    net = MLP() if stage == "pretrain" else add_lora(MLP())
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], fused=True)
    spent: dict[str, float] = {}

    @contextmanager
    def part(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - started

    batches = iter(data.train_dataloader())
    for _ in range(steps):
        with part("next batch"):
            batch = next(batches)
        with part("normalise"):
            images, labels = data.on_after_batch_transfer(batch, 0)
        with part("forward"):
            loss = F.cross_entropy(net(images), labels)
        with part("backward"):
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        with part("optimizer"):
            optimizer.step()
    total = 1000 / fit_ours(steps, f"stage={stage}")
    rows = [(name, value / steps * 1000) for name, value in spent.items()]
    rows.append(("Lightning, logging, progress", total - sum(ms for _, ms in rows)))
    return [[name, f"{ms:.3f}", f"{ms / total:.0%}"] for name, ms in [*rows, ("step", total)]]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def growth_tables(tables: dict[str, list[dict[str, Any]]]) -> str:
    parts = []
    for title, rows in tables.items():
        cells = [[_number(value) for value in row.values()] for row in rows]
        parts.append(f"{title}\n\n{markdown(list(rows[0]), cells)}")
    return "\n\n".join(parts)


def _number(value: Any) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def draw(tables: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """One panel a table, both axes logarithmic."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogFormatter

    figure, panels = plt.subplots(1, len(tables), figsize=(12, 3.8), layout="constrained")
    for panel, (title, rows) in zip(panels, tables.items(), strict=True):
        by, *contestants = rows[0]
        for contestant in contestants:
            values = [row[contestant] for row in rows]
            panel.plot(range(len(rows)), values, marker="o", label=contestant)
        panel.set_xticks(range(len(rows)), [str(row[by]) for row in rows])
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        panel.set_title(title, fontsize=10)
        panel.set_xlabel(by)
        panel.grid(alpha=0.3, which="both")
        panel.legend(frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)


def machine() -> str:
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores ({platform.machine()}), torch {torch.__version__}, {date.today()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows, steps and rounds")
    parser.add_argument("--profile", action="store_true", help="the parts of a training step")
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="interpreter for the rows of whole commands, such as one with the base install alone",
    )
    arguments = parser.parse_args()
    quiet_lightning()
    print(machine(), flush=True)
    if arguments.profile:
        for stage in ("pretrain", "lora"):
            print(f"\n{stage}\n\n{markdown(['part of a step', 'ms', 'share'], profile(stage))}")
        return
    with TemporaryDirectory() as folder:
        sides = all_sides()
        rows = training_rows(sides, arguments.quick) + test_rows(sides, arguments.quick)
        rows += command_rows(sides, folder, arguments.python, arguments.quick)
        if not arguments.quick:
            rows.append(sweep_row(folder))
        print("\n" + markdown(["work", "unit", "median (range)", "target"], []))
        for row in rows:
            row.measure(rounds=2 if arguments.quick else 5)
            print(f"| {' | '.join(row.cells())} |", flush=True)
    measured = {row.name: {"unit": row.unit, "measured": row.measured} for row in rows}
    record = {"machine": machine(), "rows": measured}
    if not arguments.quick:
        tables = record["growth"] = growth()
        print("\n" + growth_tables(tables))
        draw(tables, OUTPUT / "growth.png")
    with atomic_write(OUTPUT / "benchmark.json") as path:
        path.write_text(json.dumps(record))


if __name__ == "__main__":
    main()
