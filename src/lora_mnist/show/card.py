"""``README.md`` of an adapter: the card that goes with it to whoever gets it."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lora_mnist.classifier.significance import wilson
from lora_mnist.show.report import write_page
from lora_mnist.show.verdict import change_of, named, targets_of, verdict_text


def write_card(folder: Path, results: Mapping[str, Any], command: str) -> None:
    """Write the card of the adapter in ``folder``.

    It says what the adapter repairs, the errors before and after with their 95% intervals, the
    scale, the base's SHA-256, the command and the versions; in the form of a model card of the
    Hugging Face Hub, as PEFT writes one, too.

    ``command`` is what trained it; empty where it was trained from Python.
    """
    classes, targets = results["classes"], targets_of(results)
    groups = {named(classes, [c]): [c] for c in targets} | {"all": [*range(len(classes))]}
    rows = []
    for name, numbers in groups.items():
        change = change_of(results, numbers)
        cells = [name]
        for errors in (change.before, change.after):
            low, high = wilson(errors, change.images)
            cells.append(f"{errors:,} of {change.images:,} ({low:,.0f} to {high:,.0f})")
        rows.append(cells)
    write_page(
        folder / "README.md",
        "card.md.j2",
        results=results,
        what=named(classes, targets) if targets else "all classes",
        verdict=verdict_text(results),
        rows=rows,
        command=command,
        versions={name: version(name) for name in ("lora-mnist", "torch")},
    )
