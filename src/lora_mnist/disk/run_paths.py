"""Where a run's folder is, where its files are in it, and what a base's file is called."""

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lora_mnist.errors import UserError

RESULTS_FILE = "results.json"
ADAPTER_FOLDER = "adapter"
#: The checkpoint from which a run goes on, and its settings.
LAST_CHECKPOINT, RUN_RECORD = "checkpoints/last.ckpt", "checkpoints/run.json"


#: Files and folders that a run or a sweep writes into its folder.
_WRITTEN = (
    *("results.json", "predictions.csv", "report.html", "adapter", "checkpoints", "figures"),
    "trials",
    *("summary.csv", "summary.png", "multirun.yaml"),
)


def refuse_used_folder(key: str, folder: Path) -> None:
    """Refuse a folder, named by ``key``, in which a run would replace what is not its own."""
    for name in _WRITTEN:
        if (folder / name).exists():
            raise UserError(f"{key}={folder}: has a {name} already; expected a new folder")


def run_folder(runs: str | Path, resume: str | None, now: str) -> str:
    """A new folder in ``runs``, or that of the run to go on with: ``resume``, or the latest."""
    if resume is None:
        return str(Path(runs, now))
    record: Path | None = Path(resume) / RUN_RECORD
    if resume == "latest":
        record = latest(Path(runs), f"*/{RUN_RECORD}")
    if record is None or not record.is_file():
        raise UserError(
            f"resume={resume}: expected the folder of a run that began to train, with {RUN_RECORD} "
            "in it, or latest"
        )
    return str(record.parents[1].absolute())


def new_run_folder(outputs: str | Path, stage: str, resume: str | None = None) -> Path:
    """The folder of a run that is called from Python: a new one, named by the time, or resume's."""
    now = f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    return Path(run_folder(Path(outputs, stage), resume, now))


def latest(folder: Path, pattern: str) -> Path | None:
    """What ``latest`` means: the file in ``folder`` of this pattern that was written last."""
    paths = folder.glob(pattern)
    return max(paths, key=lambda path: (path.stat().st_mtime_ns, path), default=None)


def base_name(data: Mapping[str, Any], net: Mapping[str, Any]) -> str:
    """The name of the files of a base, for each network and set of images.

    ``mnist``, ``mnist_cnn``, ``photos-3fa2c1_resnet18``: a folder without a ``data.name`` gets six
    digits of its path's SHA-256, since two folders may have the same name.
    """
    name = data.get("name")
    if name is None and data.get("_target_") in (None, "lora_mnist.data.MNIST"):
        name = str(data.get("dataset") or "mnist").lower()
    elif name is None:
        path = Path(str(data.get("data_dir") or "folder")).expanduser().resolve()
        name = f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"
    target = net.get("_target_")
    if target in (None, "lora_mnist.MLP"):
        return str(name)
    kind = str(net.get("model_name") or target.rpartition(".")[2])
    return f"{name}_{re.sub('[^a-z0-9.]+', '_', kind.lower())}"
