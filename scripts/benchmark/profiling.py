"""Where a training step's time goes, and what is gained by what a run does to its process."""

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from contestants import configure, fit_ours, lora_net, test_ours
from processes import Contestant, Side
from row import Row

from lora_mnist import MLP
from lora_mnist.config import build_data
from lora_mnist.project import PROJECT


def profile(stage: str) -> list[list[str]]:
    """Milliseconds of each part of a training step: the work, and what the Trainer adds to it."""
    steps = 500
    cfg = configure(f"stage={stage}")
    data = build_data(cfg, "fit", cfg.digit)
    torch.manual_seed(0)
    net = MLP() if stage == "pretrain" else lora_net()
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


#: Imports what a run imports; prints the seconds that the core computed for it, how many objects
#: the garbage collector searches from then on, and the seconds that the process has computed.
_IMPORTS = """
import gc, time
from contextlib import nullcontext
from lora_mnist.process import lasting_imports
started = time.process_time()
with {around}():
    import lora_mnist.train
print(time.process_time() - started, len(gc.get_objects()), time.process_time())
"""


def process_rows(sides: dict[str, Side], rounds: int) -> list[Row]:
    """What :mod:`lora_mnist.process` claims: each of its functions beside a process without it."""
    plain, ours = sides["as Python starts"], sides["ours"]

    def tests(adapted: bool) -> dict[str, Contestant]:
        return {"plain": plain(test_ours, adapted), "ours": ours(test_ours, adapted)}

    name, least = "keep_freed_memory: test,", {"plain": 1.05}
    return [
        *_import_rows(rounds),
        Row(f"{name} adapted network", "images/s", tests(True), least, warm_up=True),
        Row(f"{name} base", "images/s", tests(False), least, warm_up=True),
    ]


def _import_rows(rounds: int) -> list[Row]:
    """One process tells several values, so these are measured at once."""
    found: dict[str, list[tuple[float, float, float]]] = {"plain": [], "ours": []}
    for _ in range(rounds):
        for side, around in {"plain": "nullcontext", "ours": "lasting_imports"}.items():
            found[side].append(_measure_imports(around))
    rows = []
    for number, (name, unit, least) in enumerate(
        [
            ("imports", "s of a core", {"plain": 1.05}),
            ("exit", "s of a core", {"plain": 1.05}),
            ("searched for garbage", "objects", {}),
        ]
    ):
        row = Row(f"lasting_imports: {name}", unit, {}, least, less_is_better=True)
        row.measured = {side: [each[number] for each in of] for side, of in found.items()}
        rows.append(row)
    return rows


def _measure_imports(around: str) -> tuple[float, float, float]:
    """Seconds of the imports and of the exit, and how many objects are searched for garbage."""
    command = [sys.executable, "-c", _IMPORTS.format(around=around)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    imports, objects, until_exit = map(float, done.stdout.split())
    whole = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return imports, whole - until_exit, objects
