"""The folder of a run, and the paths of the files in it."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from lora_mnist.errors import UserError, report_as
from lora_mnist.files import make_folder, read_json
from lora_mnist.project import program, user_path

RESULTS_FILE = "results.json"
#: The end time of a run, in there: a copy of its folder has later times.
ENDED = "ended"
#: Of a job of a sweep that failed.
FAILED_FILE = "failed.json"
ADAPTER_FOLDER = "adapter"
#: The checkpoint from which ckpt_path= goes on.
LAST_CHECKPOINT = "checkpoints/last.ckpt"
#: The finished trainings of a repair that is not complete: ckpt_path= takes them from its folder.
FINISHED_FOLDER = "trainings"


def finished_trainings(folder: Path) -> list[Path]:
    """Return the files of the finished trainings in a run's folder."""
    return sorted(Path(folder, FINISHED_FOLDER).glob("*.safetensors"))


def refuse_used_folder(key: str, folder: Path) -> None:
    """Raise if a folder has anything in it, which a run or a sweep might replace."""
    for path in folder.glob("*"):
        raise UserError(f"{key}={folder}: has a {path.name} already; expected a new folder")


def refuse_unwritable(out: Path) -> None:
    """Raise if no new file can be written to ``out=``; checked before a network is loaded."""
    with report_as(f"out={out}"), make_folder(out.parent):
        out.touch(exist_ok=False)
        out.unlink()


def new_run_folder(outputs: str | Path, stage: str) -> Path:
    """Return a new folder, named by the time, for a run that is called from Python."""
    return user_path(outputs) / stage / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"


def latest_adapter(outputs: str | Path) -> Path:
    """Return the folder for ``adapter=latest``: the newest in ``outputs``/lora, of no sweep."""
    folder = Path(outputs, "lora")
    configs = folder.glob(f"*/{ADAPTER_FOLDER}/adapter_config.json")
    newest = max(configs, key=lambda path: (_find_end_time(path), path), default=None)
    if newest is None:
        raise UserError(
            f"adapter=latest: expected an adapter in {folder}; make one of the same data and "
            f"net with: {program('train')} experiment=repair"
        )
    return newest.parent


def _find_end_time(config: Path) -> str:
    """Return the end time of an adapter's run; without results, as after a kill, its file's."""
    with suppress(ValueError):
        ended = read_json(config.parents[1] / RESULTS_FILE).get(ENDED)
        if isinstance(ended, str):
            return ended
    changed = datetime.fromtimestamp(config.stat().st_mtime, UTC)
    return changed.isoformat(timespec="microseconds")
