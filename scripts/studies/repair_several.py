"""Several classes: repairs in a row, and independent repairs put together."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate
from jobs import OUTPUT, PROJECT, Base, Results, Settings, composed, errors, overrides, run
from repair_table import Rows, shares
from safetensors.torch import save_file

from lora_mnist import load_adapter, merge_lora
from lora_mnist.disk.base import read_base
from lora_mnist.disk.files import atomic_write

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
        folders = [base.run(repair, [digit], seed=0)[0] / "adapter" for digit in four]
        for scale in (1.0, 0.5, 0.25):
            method = f"{FOUR} independent repairs together, each at {scale:g}"
            add(method, base, four, together(base, folders, scale))
        repaired = in_a_row(base, repair)
        for count in (FOUR, len(classes)):
            target = classes[:count]
            add(f"{count} repairs in a row", base, target, repaired[count - 1]["test"])
            _, trained = base.run({**plain, "trainer.max_steps": 100 * count}, target, seed=0)
            add(f"training on all classes, {100 * count} steps", base, target, trained["test"])
    return rows


def together(base: Base, folders: Sequence[Path], scale: float) -> Results:
    """Errors on the test images with all adapters in ``folders`` on at once, each at ``scale``."""
    adapters = ",".join(f"{{path: '{folder}', scale: {scale}}}" for folder in folders)
    command = [f"adapter=[{adapters}]", f"base_ckpt={base.file}", *overrides(base.common)]
    name = hashlib.sha256(" ".join(command).encode()).hexdigest()[:16]
    place = OUTPUT / "together" / name
    if not (place / "results.json").exists():
        command += [f"hydra.run.dir={place}", "figures=false"]
        subprocess.run([sys.executable, "eval.py", *command], cwd=PROJECT, check=True)
    outcome: Results = json.loads((place / "results.json").read_text())["test"]
    return outcome


def in_a_row(base: Base, repair: Settings) -> list[Results]:
    """Repair every class, the weakest first, each on top of the last; what each repair left."""
    start, results = base.file, []
    for digit in base.classes():
        common = {**base.common, "base_ckpt": str(start), "digit": digit, "seed": base.seed}
        folder, found = run({**common, **repair})
        results.append(found)
        net = instantiate(composed({**base.common, "stage": "lora"}).net)
        read_base(start, net)
        merge_lora(load_adapter(net, folder / "adapter"))
        start = folder / "merged.safetensors"
        with atomic_write(start) as path:
            save_file(net.state_dict(), path)
    return results
