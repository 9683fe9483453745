"""The front of a sweep of repairs: errors on the classes to repair against errors elsewhere.

Each job whose ``dial`` was tried has a curve, from the base to its adapter as trained and beyond.
The advised point has the fewest validation errors in all.
"""

from typing import Any

import matplotlib
from matplotlib.figure import Figure

from lora_mnist.disk.files import atomic_write
from lora_mnist.disk.numbers import RESULTS_FILE
from lora_mnist.show.advice import command, relative
from lora_mnist.show.changes import named, others_of, targets_of
from lora_mnist.show.figures import DPI, GRAY, GREEN, STYLE
from lora_mnist.sweep.command import override
from lora_mnist.sweep.records import Job, read_json
from lora_mnist.sweep.summary import Ranked


def draw_front(ranked: Ranked) -> list[str]:
    """Draw ``front.png`` into the sweep's folder, from validation images.

    Returns:
        A sentence about the advised point and the command that takes it; nothing, and no picture,
        where no job has a dial of classes to repair.
    """
    jobs, best, best_rank = [], None, (0, 0)
    for job in ranked.jobs:
        results = read_json(ranked.folder / job.folder / RESULTS_FILE)
        dial = results.get("dial") or {}
        if job.status != "finished" or "errors_of_target" not in dial:
            continue
        jobs.append((job, dial))
        place = dial["scales"].index(dial["advised"])
        rank = dial["errors"][place], dial["errors_of_target"][place]
        if best is None or rank < best_rank:
            best, best_rank = (job, dial, results), rank
    if best is None:
        return []
    job, dial, results = best
    names = named(results["classes"], targets_of(results)), others_of(results["classes"])
    figure = _draw(jobs, job, names)
    with atomic_write(ranked.folder / "front.png") as path:
        figure.savefig(path, dpi=DPI, format="png")
    texts = []
    for name, errors in zip(names, _curve(dial), strict=True):
        first, advised = (
            errors[dial["scales"].index(0)],
            errors[dial["scales"].index(dial["advised"])],
        )
        texts.append(f"{name} {first:,} -> {advised:,}")
    text = f"advised: {_label(job)} at scale {dial['advised']:g}, {', '.join(texts)} "
    folder, overrides = ranked.folder / job.folder, []
    if dial["saved"] not in (0, dial["advised"]):
        overrides.append(f"scale={dial['advised'] / dial['saved']:g}")
    taken = command("eval", folder, override("adapter", relative(folder)), *overrides)
    return [f"{text}errors on {dial['images']:,} validation images:", taken]


@matplotlib.rc_context(STYLE)
def _draw(jobs: list[tuple[Job, Any]], advised: Job, names: tuple[str, str]) -> Figure:
    """A curve for each job, the base, and the advised point."""
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    axes = figure.subplots()
    targets, others = [], []
    for job, dial in jobs:
        of_target, elsewhere = _curve(dial)
        targets += of_target
        others += elsewhere
        axes.plot(elsewhere, of_target, marker="o", ms=4, label=_label(job))
        for scale, x, y in zip(dial["scales"], elsewhere, of_target, strict=True):
            if scale == 1:
                axes.annotate("1", (x, y), (4, 5), textcoords="offset points", fontsize=8)
            if scale == dial["advised"] and job is advised:
                label, place = f"advised: {_label(job)}, scale {scale:g}", (x, y)
    axes.plot(*place, color=GREEN, marker="o", ms=11, ls="", label=label, zorder=1)
    base_place = jobs[0][1]["scales"].index(0)
    base_target, base_others = (curve[base_place] for curve in _curve(jobs[0][1]))
    axes.plot(base_others, base_target, color="black", marker="s", ms=8, ls="", label="base")
    every = base_target + base_others
    label = "as many errors in all as the base"
    axes.plot([every, 0], [0, every], color=GRAY, ls="--", lw=1, label=label)
    room = 1 + 0.05 * (max(others) - min(others))
    axes.set_xlim(max(0, min(others) - room), max(others) + room)
    axes.set_ylim(0, 1.1 * max(targets) + 1)
    axes.set(xlabel=f"errors on {names[1]}", ylabel=f"errors on {names[0]}")
    axes.grid(alpha=0.3)
    figure.legend(ncols=2, frameon=False, loc="outside lower center")
    count = f"{jobs[0][1]['images']:,} validation images"
    axes.set_title(f"errors on {count}, each adapter turned up from 0 to {scale:g}", loc="left")
    return figure


def _curve(dial: Any) -> tuple[list[int], list[int]]:
    """The errors on the classes to repair and elsewhere, by scale."""
    return dial["errors_of_target"], dial["errors_elsewhere"]


def _label(job: Job) -> str:
    """``loss.target_weight=0.25``: what tells a job from the others."""
    return ", ".join(f"{key}={value}" for key, value in job.swept.items()) or job.folder
