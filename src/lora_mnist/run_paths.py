"""The folder of a run, and the paths of the files in it."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from lora_mnist.errors import UserError, report_as
from lora_mnist.files import make_folder, read_json
from lora_mnist.project import expand_path, format_program

RESULTS_FILE = "results.json"
#: The key of a run's end time in results.json; copying a folder changes its files' times.
ENDED = "ended"
#: The file that a failed job of a sweep writes.
FAILED_FILE = "failed.json"
ADAPTER_FOLDER = "adapter"
#: The checkpoint from which ckpt_path= goes on.
LAST_CHECKPOINT = "checkpoints/last.ckpt"
#: The finished trainings of a repair that is not complete: ckpt_path= takes them from its folder.
FINISHED_FOLDER = "trainings"


def list_finished(folder: Path) -> list[Path]:
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


def plan_run_folder(outputs: str | Path, stage: str) -> Path:
    """Return the path of a new folder, named by the time, for a run started from Python."""
    return expand_path(outputs) / stage / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"


def find_latest_adapter(outputs: str | Path) -> Path:
    """Return the folder for ``adapter=latest``: the newest in ``outputs``/lora, of no sweep."""
    folder = Path(outputs, "lora")
    configs = folder.glob(f"*/{ADAPTER_FOLDER}/adapter_config.json")
    newest = max(configs, key=lambda path: (_find_end_time(path), path), default=None)
    if newest is None:
        raise UserError(
            f"adapter=latest: expected an adapter in {folder}; make one of the same data and "
            f"net with: {format_program('train')} experiment=repair"
        )
    return newest.parent


def _find_end_time(config: Path) -> str:
    """Return the end time of an adapter's run, or its file's time if the run has no results."""
    with suppress(ValueError):
        ended = read_json(config.parents[1] / RESULTS_FILE).get(ENDED)
        if isinstance(ended, str):
            return ended
    changed = datetime.fromtimestamp(config.stat().st_mtime, UTC)
    return changed.isoformat(timespec="microseconds")
