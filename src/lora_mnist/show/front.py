"""The front of a sweep of repairs: errors on the classes to repair against errors elsewhere."""

from lora_mnist.disk.files import atomic_write
from lora_mnist.disk.numbers import RESULTS_FILE
from lora_mnist.show.advice import dial_text, scaled_command
from lora_mnist.show.changes import named, others_of, targets_of
from lora_mnist.show.figures import DPI, draw_front
from lora_mnist.sweep.records import read_json
from lora_mnist.sweep.summary import Ranked


def front_of(ranked: Ranked) -> list[str]:
    """Draw ``front.png`` of the jobs whose ``dial`` was tried, into the sweep's folder.

    Returns:
        A sentence about the advised point, that with the fewest validation errors in all, and the
        command that takes it. Without a job that has a dial of classes to repair it is empty, and
        there is no picture.
    """
    dials, best, fewest = {}, None, (0, 0)
    for job in ranked.jobs:
        folder = ranked.folder / job.folder
        results = read_json(folder / RESULTS_FILE)
        dial = results.get("dial") or {}
        if job.status != "finished" or "errors_of_target" not in dial:
            continue
        label = ", ".join(f"{key}={value}" for key, value in job.swept.items()) or job.folder
        dials[label] = dial
        place = dial["scales"].index(dial["advised"])
        errors = dial["errors"][place], dial["errors_of_target"][place]
        if best is None or errors < fewest:
            best, fewest = (label, folder, results), errors
    if best is None:
        return []
    label, folder, results = best
    dial, classes = dials[label], results["classes"]
    target, others = named(classes, targets_of(results)), others_of(classes)
    figure = draw_front(dials, label, target, others)
    with atomic_write(ranked.folder / "front.png") as path:
        figure.savefig(path, dpi=DPI, format="png")
    text = f"advised: {label} at scale {dial['advised']:g}, {dial_text(results)}"
    text += f" errors on {dial['images']:,} validation images:"
    return [text, scaled_command(results, folder)]
