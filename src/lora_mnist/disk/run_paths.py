"""Where a run's folder is, and where its results, its checkpoint and its adapter are in it."""

from datetime import datetime
from pathlib import Path

from omegaconf import DictConfig

from lora_mnist.errors import UserError

RESULTS_FILE = "results.json"
ADAPTER_FOLDER = "adapter"
#: The weights that ``stage=finetune`` leaves.
FINETUNED_FILE = "finetuned.ckpt"
#: The checkpoint from which a run goes on, and its settings.
LAST_CHECKPOINT, RUN_RECORD = "checkpoints/last.ckpt", "checkpoints/run.json"


def new_run_folder(cfg: DictConfig) -> Path:
    """A new folder, named by the time, for a run without a command line."""
    folder = Path(cfg.paths.outputs, cfg.stage, f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    folder.mkdir(parents=True)
    return folder


def resumed_folder(cfg: DictConfig) -> Path:
    """The folder of the run that ``cfg.resume`` names, a folder or latest."""
    return find_run(Path(cfg.paths.outputs, cfg.stage), cfg.resume)


def find_run(runs: Path, resume: str) -> Path:
    """The folder of a run to go on with: ``resume``, or the latest in ``runs``.

    ``UserError``, if no run has begun to train there.
    """
    record: Path | None = Path(resume) / RUN_RECORD
    if resume == "latest":
        record = latest(runs, f"*/{RUN_RECORD}")
    if record is None or not record.is_file():
        raise UserError(
            f"resume={resume}: expected the folder of a run that began to train, with {RUN_RECORD} "
            "in it, or latest"
        )
    return record.parents[1].absolute()


def latest(folder: Path, pattern: str) -> Path | None:
    """The file in ``folder`` that matches ``pattern`` and was written last, if there is one.

    That is what ``latest`` means in every command, whatever the run's folder is called.
    """
    paths = folder.glob(pattern)
    return max(paths, key=lambda path: (path.stat().st_mtime_ns, path), default=None)
