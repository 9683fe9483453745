"""Going on with a run that was cut short: in its folder, to the end that it would have had."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.data import ImageDataModule
from lora_mnist.disk.checkpoint import LAST, PREVIOUS, read_checkpoint
from lora_mnist.errors import UserError, one_line
from lora_mnist.runs import CHECKPOINTS, RunRecord, find_run, flat, read_run, write_run
from lora_mnist.weights_file import Limits, limits

log = logging.getLogger(__name__)

#: Settings in which a run may differ from the one that it goes on with: none changes a number.
_FREE = (
    "resume",
    "figures",
    "paths.",
    "sweep.",
    "callbacks.checkpoint.",
    "callbacks.progress_bar.",
)
#: How far to train: as far as before, or farther.
_LIMITS = ("trainer.max_steps", "trainer.max_epochs")


class Start(NamedTuple):
    """Where training begins.

    Attributes:
        checkpoint: the file to go on from; ``None``: the beginning.
        step: steps that are done; ``None`` in a new run.
        claim: says on disk that training has begun; ``None`` where nothing says so.
    """

    checkpoint: Path | None = None
    step: int | None = None
    claim: Callable[[], None] | None = None


def run_to_resume(cfg: DictConfig) -> Path | None:
    """The folder of the run that ``cfg.resume`` names, if it names one.

    Raises:
        UserError: if there is no such run, or a job of a sweep names one.
    """
    if cfg.resume is None:
        return None
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise UserError(
            f"resume={cfg.resume}: expected a single run; a sweep goes on with sweep.resume"
        )
    return find_run(cfg.resume, Path(cfg.paths.outputs, cfg.stage))


@contextmanager
def claimed_run(cfg: DictConfig, folder: Path, module: ClassifierModule) -> Iterator[Start]:
    """Around a run from its first step to its last file; yields where training begins.

    The run's folder belongs to this process meanwhile. When the block ends well the run has
    finished; else it can be gone on with, and an interrupt says how. A run without the callback
    ``checkpoint`` leaves nothing to go on from.

    Args:
        cfg: the run's configuration.
        folder: the run's folder.
        module: what is trained; its hyperparameters decide the run's numbers.

    Raises:
        UserError: if ``cfg.resume`` names a run that has finished, is still going, or has other
            settings.
    """
    if not OmegaConf.select(cfg, "callbacks.checkpoint") or cfg.trainer.get("fast_dev_run"):
        if cfg.resume is not None:
            raise UserError(f"resume={cfg.resume}: expected callbacks.checkpoint to be kept")
        yield Start()
        return
    files = Path(cfg.callbacks.checkpoint.dirpath or folder / CHECKPOINTS)
    most = limits(module.state_dict())
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        # The process that conducts the others has checked and prepared all.
        yield _start(files, cfg, most) if cfg.resume is not None else Start()
        return
    record = RunRecord(flat(module.hparams), finished=False)

    def claim() -> None:
        if start.checkpoint is None:  # what is there belongs to another run, or is damaged
            for name in (LAST, PREVIOUS):
                (files / name).unlink(missing_ok=True)
        write_run(folder, record)

    with _only_process(cfg, folder):
        start = Start()
        if cfg.resume is not None:
            _require_same_run(cfg, _read_record(cfg, folder), record.settings)
            start = _start(files, cfg, most)
        yield start._replace(claim=claim)
        write_run(folder, record._replace(finished=True))
        (files / PREVIOUS).unlink(missing_ok=True)


def fit(trainer: Trainer, module: ClassifierModule, data: ImageDataModule, start: Start) -> None:
    """Train from ``start``; a first interrupt waits until the step under way is done and kept.

    Raises:
        UserError: if training cannot go on from the checkpoint, whatever that is full of.
    """
    if start.claim is not None:
        start.claim()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=start.checkpoint, weights_only=True)
    except Exception as error:
        first = start.checkpoint is not None and trainer.global_step <= (start.step or 0) + 1
        if not first or isinstance(error, UserError):
            raise
        raise UserError(
            f"{start.checkpoint}: training cannot go on from it ({type(error).__name__}: "
            f"{one_line(error)}); without this file it goes on from an earlier place"
        ) from error


@contextmanager
def _only_process(cfg: DictConfig, folder: Path) -> Iterator[None]:
    checkpoints = folder / CHECKPOINTS
    checkpoints.mkdir(parents=True, exist_ok=True)
    lock = FileLock(checkpoints / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        key = "hydra.run.dir" if cfg.resume is None else "resume"
        raise UserError(
            f"{key}={folder}: a run is still going there; expected one at a time"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            if [path.name for path in checkpoints.iterdir()] == [".lock"]:  # it came to no training
                (checkpoints / ".lock").unlink()  # still locked: nobody else can hold it
                checkpoints.rmdir()
        lock.release()


def _read_record(cfg: DictConfig, folder: Path) -> RunRecord:
    try:
        return read_run(folder)
    except (ValueError, OSError) as error:
        raise UserError(f"resume={cfg.resume}: {one_line(error)}") from error


def _require_same_run(cfg: DictConfig, earlier: RunRecord, settings: Mapping[str, Any]) -> None:
    """Refuse settings other than those of the run, and a run with nothing left to do."""
    free = (*_FREE, *(() if cfg.stage == "pretrain" else ("base_ckpt",)))  # known by its SHA-256
    before = earlier.settings
    goes_farther = False
    # The outer keys first: others follow from them, as data.seed from seed.
    for key in sorted(dict.fromkeys([*before, *settings]), key=lambda key: key.count(".")):
        old, new = before.get(key), settings.get(key)
        if old == new or key.startswith(free):
            continue
        if key not in _LIMITS:
            raise UserError(_differs(cfg, key, before, settings))
        if _limit(new) < _limit(old):
            raise UserError(f"{key}={new}: expected {old} or more, as in resume={cfg.resume}")
        goes_farther = True
    if earlier.finished and not goes_farther:
        raise UserError(
            f"resume={cfg.resume}: this run has finished; expected a larger trainer.max_steps or "
            "trainer.max_epochs to train it farther"
        )


def _differs(
    cfg: DictConfig, key: str, before: Mapping[str, Any], settings: Mapping[str, Any]
) -> str:
    old, new = before.get(key), settings.get(key)
    if {} in (old, new):  # a group without keys, such as scheduler=constant
        target = f"{key}._target_"
        return (
            f"{key}: expected {before.get(target, 'none')} instead of "
            f"{settings.get(target, 'none')}, as in resume={cfg.resume}"
        )
    steps = settings.get("trainer.max_steps")
    if key.startswith("scheduler.") and new == steps:
        return f"trainer.max_steps={steps}: expected {old}, since {key} counts them"
    return f"{key}={_told(new)}: expected {_told(old)}, as in resume={cfg.resume}"


def _told(value: object) -> object:
    return "null" if value is None else value


def _limit(value: object) -> float:
    """A number of steps or epochs, where -1 and null mean no end."""
    return value if isinstance(value, int | float) and value >= 0 else float("inf")


def _start(files: Path, cfg: DictConfig, most: Limits) -> Start:
    """The newest good checkpoint before the end of training becomes the last one."""
    last = files / LAST
    for path in (last, files / PREVIOUS):
        if path.is_dir():
            raise UserError(f"resume={cfg.resume}: {path} is a folder; expected a checkpoint")
        try:
            checkpoint = read_checkpoint(path, most)
        except FileNotFoundError:
            continue
        except ValueError as error:
            log.warning("%s", one_line(error))
            continue
        step, epoch = checkpoint["global_step"], checkpoint["going_on"]["epoch"]
        if step < _limit(cfg.trainer.max_steps) and epoch < _limit(cfg.trainer.max_epochs):
            if path != last and not rank_zero_only.rank:  # type: ignore[attr-defined]
                path.replace(last)
            log.info("going on after step %d", step)
            return Start(last, step)
    log.info("no checkpoint to go on from: going on from the beginning")
    return Start(None, 0)
