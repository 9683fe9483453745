"""Where a run's folder is, and where its results, its checkpoint and its adapter are in it."""

from datetime import datetime
from pathlib import Path

from omegaconf import DictConfig

from lora_mnist.errors import UserError

RESULTS_FILE = "results.json"
ADAPTER_FOLDER = "adapter"
#: The checkpoint from which a run goes on, and its settings.
LAST_CHECKPOINT, RUN_RECORD = "checkpoints/last.ckpt", "checkpoints/run.json"


def run_folder(runs: str | Path, resume: str | None, now: str) -> str:
    """A new folder in ``runs``, or that of the run to go on with: ``resume``, or the latest.

    ``UserError``, if no run has begun to train there.
    """
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


def folder_without_command_line(cfg: DictConfig) -> Path:
    """The folder of a run that is called from Python: a new one, named by the time, or resume's."""
    now = f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    return Path(run_folder(Path(cfg.paths.outputs, cfg.stage), cfg.get("resume"), now))


def latest(folder: Path, pattern: str) -> Path | None:
    """The file in ``folder`` that matches ``pattern`` and was written last, if there is one.

    That is what ``latest`` means in every command, whatever the run's folder is called.
    """
    paths = folder.glob(pattern)
    return max(paths, key=lambda path: (path.stat().st_mtime_ns, path), default=None)
