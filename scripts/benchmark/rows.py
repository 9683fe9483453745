"""The rows of the benchmark's table: who takes turns at which work, and what ours must reach."""

import statistics
import sys
from dataclasses import dataclass, field

import source_notebook
import torch
from contestants import (
    dense_net,
    fine_tune_notebook,
    fit_net,
    fit_notebook,
    fit_ours,
    lora_net,
    peft_net,
    test_bare,
    test_notebook,
    test_ours,
)
from processes import Contestant, Side, peak_memory, run_process
from tables import spread

from lora_mnist import MLP

NOTEBOOK = "scripts/benchmark/source_notebook.py"
#: Flags of train.py that should answer at once, with what a shell sets when it asks.
AT_ONCE: dict[str, dict[str, str]] = {
    "--help": {},
    "--cfg job": {},
    "-sc query=bash": {"COMP_LINE": "python train.py stage=", "COMP_POINT": "22"},
}


@dataclass
class Row:
    """One line of the table: contestants that do the same work.

    Attributes:
        name: of the work.
        unit: of what the contestants return.
        contestants: by name; one of them is ``ours``.
        at_least: for other contestants, the smallest ratio of ours to theirs that is good enough.
        at_most: the largest value of ours that is good enough.
        less_is_better: whether a smaller value is better.
        rounds: how often each has a turn, if not as often as in the other rows.
        warm_up: whether a first round does not count.
        measured: what each contestant returned, a value a round.
    """

    name: str
    unit: str
    contestants: dict[str, Contestant]
    at_least: dict[str, float] = field(default_factory=dict)
    at_most: float | None = None
    less_is_better: bool = False
    rounds: int | None = None
    warm_up: bool = False
    measured: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, rounds: int) -> "Row":
        """Let the contestants take turns; return the same row."""
        self.measured = {name: [] for name in self.contestants}
        if self.warm_up:
            for name, contestant in self.contestants.items():
                if name != "notebook":  # it has a new process every time: nothing stays warm
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
        """Each goal in words, and whether it was met."""
        found = []
        for name, least in self.at_least.items():
            ratio = self.ratio(name)
            found.append((f"{ratio:.2f} x {name} (>= {least:.3g})", ratio >= least))
        if self.at_most is not None:
            median = statistics.median(self.measured["ours"])
            limit = f"{median:.2f} {self.unit} (<= {self.at_most:g})"
            found.append((limit, median <= self.at_most))
        return found

    def cells(self) -> list[str]:
        """The row as it is printed."""
        values = [f"{name} {spread(values)}" for name, values in self.measured.items()]
        verdicts = [f"{'met' if met else '**missed**'}: {text}" for text, met in self.verdicts()]
        return [self.name, self.unit, "<br>".join(values), "<br>".join(verdicts)]


def training_rows(sides: dict[str, Side], quick: bool) -> list[Row]:
    """Steps of training."""
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
                "notebook": sides["notebook"](fit_notebook, steps // 4, source_notebook.DIGIT),
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
    """The test set, from raw images to the errors of each class."""
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
                "notebook": sides["notebook"](test_notebook, source_notebook.RichBoyNet, images),
                "ours": sides["ours"](test_ours, False),
            },
            {"notebook": 3},
            warm_up=True,
        ),
    ]


def command_rows(sides: dict[str, Side], folder: str, python: str, quick: bool) -> list[Row]:
    """Whole commands, process start to exit, on bases that each side pretrained itself."""
    theirs, ours = f"{folder}/notebook.pt", f"{folder}/base.ckpt"
    torch.save(source_notebook.RichBoyNet().state_dict(), theirs)
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
            {"notebook": lambda: run(NOTEBOOK, "lora", theirs), "ours": lambda: run(*lora)},
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
                at_most=250,
                less_is_better=True,
                rounds=3,
            ),
        ]
        pretrain = ["train.py", "stage=pretrain", *settings]
        contestants = {
            "notebook": lambda: run(NOTEBOOK, "pretrain", theirs),
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
        return lambda: run_process(sys.executable, *command)[0]  # --python may have no joblib

    contestants = {
        "one process": sweep(),
        "ours": sweep("launcher=joblib", "hydra.launcher.n_jobs=2"),
    }
    name = "sweep of 12 jobs, joblib with two workers"
    return Row(name, "s", contestants, {"one process": 1.1}, less_is_better=True, rounds=3)
