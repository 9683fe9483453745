"""Where a run's folder is, where its files are in it, and what a base's file is called."""

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lora_mnist.errors import UserError

RESULTS_FILE = "results.json"
#: Of a job of a sweep that failed.
FAILED_FILE = "failed.json"
ADAPTER_FOLDER = "adapter"
#: Of several trainings, all but the last have their files there.
TRIALS_FOLDER = "trials"
#: The checkpoint from which ckpt_path= goes on.
LAST_CHECKPOINT = "checkpoints/last.ckpt"
#: Data sets that have names of their own, and lie in ``data/`` unless one says otherwise.
PUBLISHED = ("lora_mnist.data.MNIST", "lora_mnist.data.CIFAR")
#: What a run, or a sweep, writes into its folder besides these.
_ALSO_WRITTEN = """
predictions.csv report.html checkpoints figures summary.csv summary.png multirun.yaml
"""


def refuse_used_folder(key: str, folder: Path, *names: str) -> None:
    """Refuse a folder that has ``names``, or in which a run would replace what is not its own."""
    ours = (RESULTS_FILE, FAILED_FILE, ADAPTER_FOLDER, TRIALS_FOLDER, *_ALSO_WRITTEN.split())
    for name in (*names, *ours):
        if (folder / name).exists():
            raise UserError(f"{key}={folder}: has a {name} already; expected a new folder")


def new_run_folder(outputs: str | Path, stage: str) -> Path:
    """A new folder, named by the time, of a run that is called from Python."""
    return Path(outputs, stage, f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")


def latest(folder: Path, pattern: str) -> Path | None:
    """What ``latest`` means: the file in ``folder`` of this pattern that was written last."""
    paths = folder.glob(pattern)
    return max(paths, key=lambda path: (path.stat().st_mtime_ns, path), default=None)


def base_name(data: Mapping[str, Any], net: Mapping[str, Any]) -> str:
    """The name of the files of a base, for each network and set of images.

    ``mnist``, ``mnist_cnn``, ``photos-3fa2c1_my_nets.net``: a folder without a ``data.name`` gets
    six digits of its path's SHA-256, since two folders may have the same name.
    """
    name = data.get("name")
    if name is None and data.get("_target_") in (None, *PUBLISHED):
        name = str(data.get("dataset") or "mnist").lower()
    elif name is None:
        path = Path(str(data.get("data_dir") or "folder")).expanduser().resolve()
        name = f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"
    target = net.get("_target_")
    if target in (None, "lora_mnist.MLP"):
        return str(name)
    known = ("lora_mnist.", "torchvision.models.")
    kind = target.rpartition(".")[2] if target.startswith(known) else target
    kind = str(net.get("model_name") or kind)
    return f"{name}_{re.sub('[^a-z0-9.]+', '_', kind.lower())}"
