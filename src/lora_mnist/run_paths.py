"""Where a run's folder is, and where its files are in it."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from lora_mnist.errors import UserError, naming
from lora_mnist.files import made_folder, read_json
from lora_mnist.project import program, user_path

RESULTS_FILE = "results.json"
#: When a run ended, in there: a copy of its folder has later times.
ENDED = "ended"
#: Of a job of a sweep that failed.
FAILED_FILE = "failed.json"
ADAPTER_FOLDER = "adapter"
#: The checkpoint from which ckpt_path= goes on.
LAST_CHECKPOINT = "checkpoints/last.ckpt"
#: What the folder of a new run or sweep may not have, and who writes it; cli/folder.py adds to it.
RUN_FILES = (
    RESULTS_FILE,  # training/results.py
    FAILED_FILE,  # cli/sweep.py
    ADAPTER_FOLDER,  # training/artifacts.py
    "predictions.csv",  # show/predictions_file.py
    "report.html",  # show/report.py
    "checkpoints",  # Lightning, as configs/callbacks has it
    "figures",  # show/report.py
    "summary.csv",  # show/summary.py
    "summary.png",  # show/summary.py
    "multirun.yaml",  # Hydra
)


def refuse_used_folder(key: str, folder: Path, *names: str) -> None:
    """Refuse a folder that has ``names``, or in which a run would replace what is not its own."""
    for name in (*names, *RUN_FILES):
        if (folder / name).exists():
            raise UserError(f"{key}={folder}: has a {name} already; expected a new folder")


def refuse_unwritable(out: Path) -> None:
    """Refuse an ``out=`` where nothing new can be written; asked before a network is loaded."""
    with naming(f"out={out}"), made_folder(out.parent):
        out.touch(exist_ok=False)
        out.unlink()


def new_run_folder(outputs: str | Path, stage: str) -> Path:
    """A new folder, named by the time, of a run that is called from Python."""
    return user_path(outputs) / stage / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"


def latest_adapter(outputs: str | Path) -> Path:
    """What ``adapter=latest`` means: the newest of a run in ``outputs``/lora, none of a sweep."""
    folder = Path(outputs, "lora")
    configs = folder.glob(f"*/{ADAPTER_FOLDER}/adapter_config.json")
    newest = max(configs, key=lambda path: (_ended(path), path), default=None)
    if newest is None:
        raise UserError(
            f"adapter=latest: expected an adapter in {folder}; make one with: "
            f"{program('train')} experiment=repair and the same data and net"
        )
    return newest.parent


def _ended(config: Path) -> str:
    """When the run of an adapter ended; without its results, as after a kill, its file's time."""
    with suppress(ValueError):
        ended = read_json(config.parents[1] / RESULTS_FILE).get(ENDED)
        if isinstance(ended, str):
            return ended
    changed = datetime.fromtimestamp(config.stat().st_mtime, UTC)
    return changed.isoformat(timespec="microseconds")
