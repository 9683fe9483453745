"""How fast: this project beside the notebook, PEFT and a bare PyTorch loop, in one run.

    python scripts/benchmark/run.py              # every row: some ten minutes
    python scripts/benchmark/run.py --quick      # training and tests alone: under two minutes
    python scripts/benchmark/run.py --gpu        # training and tests on a GPU
    python scripts/benchmark/run.py --growth     # cost by rank, width and batch size, drawn too
    python scripts/benchmark/run.py --profile    # where a training step's time goes
    python scripts/benchmark/run.py --process    # what is gained by what process.py does

The contestants of a row take turns, round after round, and are compared round by round, so that
whatever slows the machine down slows them all. They go on until each goal is surely met or missed,
or until the row's time is up: then it is too noisy to tell. The tables are printed as Markdown;
every measured value is kept in outputs/benchmark. Needs the extra ``bench``. That brings
transformers, which torchmetrics then imports at every start: ``--python`` runs the rows of whole
commands with another interpreter.
"""

import argparse
import json
import os
import platform
import sys
from datetime import date
from tempfile import TemporaryDirectory
from typing import Any

import torch
from contestants import OUTPUT
from extras import require_extra
from growth import draw, growth, growth_tables
from processes import all_sides, quiet_lightning
from profiling import process_rows, profile
from row import Row
from rows import command_rows, gpu_rows, test_rows, training_rows
from tables import line, markdown

from lora_mnist.cli import run
from lora_mnist.disk.files import atomic_write
from lora_mnist.errors import UserError


def machine(gpu: bool = False) -> str:
    """What the numbers were measured on."""
    parts = [f"{len(os.sched_getaffinity(0))} cores ({platform.machine()})"]
    if gpu:
        parts.append(torch.cuda.get_device_name())
    return ", ".join([*parts, f"torch {torch.__version__}", str(date.today())])


def measure(rows: list[Row], seconds: float) -> dict[str, Any]:
    """Measure and print row by row, each in some ``seconds``; return every value."""
    print("\n" + markdown(["work", "unit", "median (range)", "goal"], []))
    for row in rows:
        done = row if row.measured else row.measure(seconds)
        print(line(done.cells()), flush=True)
    return {row.name: {"unit": row.unit, "measured": row.measured} for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows and steps")
    parser.add_argument("--gpu", action="store_true", help="training and tests on a GPU")
    parser.add_argument("--growth", action="store_true", help="how cost grows; draws a picture")
    parser.add_argument("--profile", action="store_true", help="the parts of a training step")
    parser.add_argument("--process", action="store_true", help="what process.py gains")
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="interpreter for the rows of whole commands, such as one with the base install alone",
    )
    arguments = parser.parse_args()
    if arguments.gpu and not torch.cuda.is_available():
        raise UserError("--gpu: expected a CUDA device, and torch finds none on this machine")
    quiet_lightning()
    print(machine(arguments.gpu), flush=True)
    if arguments.profile:
        for stage in ("pretrain", "lora"):
            print(f"\n{stage}\n\n{markdown(['part of a step', 'ms', 'share'], profile(stage))}")
        return
    if arguments.process:
        with all_sides() as sides:
            measure(process_rows(sides, rounds=5), seconds=60)
        return
    if arguments.growth:
        tables = growth()
        print("\n" + growth_tables(tables))
        draw(tables, OUTPUT / "growth.png")
        return
    require_extra("run.py", "bench", "peft")
    with TemporaryDirectory() as folder, all_sides() as sides:
        if arguments.gpu:
            rows = gpu_rows(sides, arguments.quick)
        else:
            rows = training_rows(sides, arguments.quick) + test_rows(sides, arguments.quick)
        if not (arguments.quick or arguments.gpu):
            rows += command_rows(folder, arguments.python)
        record = {
            "machine": machine(arguments.gpu),
            "rows": measure(rows, seconds=15 if arguments.quick else 45),
        }
    with atomic_write(OUTPUT / ("gpu.json" if arguments.gpu else "benchmark.json")) as path:
        path.write_text(json.dumps(record))


if __name__ == "__main__":
    run(main)
