"""Several classes: repairs in a row, and independent repairs put together."""

from collections.abc import Sequence
from pathlib import Path

from jobs import Base, Results, Settings, composed, errors, run
from repair_table import Rows, shares
from safetensors.torch import save_file

from lora_mnist.classifier.metrics import compare_errors
from lora_mnist.config import build_data, build_net
from lora_mnist.disk.base import read_base
from lora_mnist.disk.files import atomic_write
from lora_mnist.lora import load_adapter, merge_lora

#: How many independent adapters are put together.
FOUR = 4


def several(bases: Sequence[Base], repair: Settings, plain: Settings) -> Rows:
    """Errors on the test images after several repairs, and after as many steps of plain training.

    Args:
        bases: what to repair.
        repair: settings of a repair.
        plain: settings of training on all classes.
    """
    rows: Rows = {}

    def add(method: str, base: Base, target: Sequence[int], outcome: Results) -> None:
        before = errors(base.results()["test"], target)
        rows.setdefault(method, []).append(shares(errors(outcome, target), before))

    for base in bases:
        classes = base.classes()
        four = classes[:FOUR]
        folders = [base.run(repair, [digit], seed=0).folder / "adapter" for digit in four]
        for weight in (1.0, 0.5, 0.25):
            method = f"{FOUR} independent repairs together, each at {weight:g}"
            add(method, base, four, together(base, folders, weight))
        repaired = in_a_row(base, repair)
        for count in (FOUR, len(classes)):
            target = classes[:count]
            add(f"{count} repairs in a row", base, target, repaired[count - 1]["test"])
            settings = {**plain, "trainer.max_steps": 100 * count}
            trained = base.run(settings, target, seed=0).results
            add(f"training on all classes, {100 * count} steps", base, target, trained["test"])
    return rows


def together(base: Base, folders: Sequence[Path], weight: float) -> Results:
    """Errors on the test images with all adapters in ``folders`` on at once, each at ``weight``."""
    cfg = composed({**base.common, "stage": "lora"})
    net, data = build_net(cfg), build_data(cfg, "test")
    read_base(base.file, net)
    for folder in folders:
        load_adapter(net, folder, scale=weight)
    batches = (data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader())
    adapted: Results = compare_errors(net.eval(), batches)["adapted"]
    return adapted


def in_a_row(base: Base, repair: Settings) -> list[Results]:
    """Repair every class, the weakest first, each on top of the last; what each repair left."""
    start, results = base.file, []
    for digit in base.classes():
        common = {**base.common, "base_ckpt": str(start), "digit": digit, "seed": base.seed}
        done = run({**common, **repair})
        start = merged(base, start, done.folder)
        results.append(done.results)
    return results


def merged(base: Base, start: Path, folder: Path) -> Path:
    """The weights ``start`` with the adapter that the run in ``folder`` left, in a file."""
    net = build_net(composed({**base.common, "stage": "lora"}))
    read_base(start, net)
    merge_lora(load_adapter(net, folder / "adapter"))
    with atomic_write(folder / "merged.safetensors") as path:
        save_file(net.state_dict(), path)
    return folder / "merged.safetensors"
