"""What TensorBoard's HParams tab shows of a sweep."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lora_mnist.sweep.folder import key_of, varied_overrides


class SweptHParams(Callback):
    """Hydra callback: tells TensorBoard what was swept; the metrics it finds by itself."""

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        """Write the swept values of a job of a sweep into its folder, once it has a result."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        if "TensorBoard" not in (OmegaConf.select(config, "logger._target_") or ""):
            return
        folder = Path(config.hydra.runtime.output_dir)
        if any(folder.glob("events.out.tfevents.*")) and not any(folder.glob("*.hparams")):
            swept = swept_values(config)
            _write(swept, folder)


def swept_values(config: DictConfig) -> dict[str, bool | int | float | str]:
    """The values of the keys in which this job differs from the others of its command."""
    swept: dict[str, bool | int | float | str] = {}
    for override in varied_overrides(config.hydra):
        key = key_of(override)
        value = OmegaConf.select(config, key)
        # A group, such as loss=margin, is known by the name that was chosen.
        plain = isinstance(value, bool | int | float | str)
        swept[key] = value if plain else override.split("=", 1)[-1]
    return swept


def _write(swept: dict[str, bool | int | float | str], folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter  # late: --help needs no torch
    from torch.utils.tensorboard.summary import hparams

    _, session_start, _ = hparams(swept, {})  # type: ignore[no-untyped-call]
    with SummaryWriter(folder, filename_suffix=".hparams") as writer:
        writer.file_writer.add_summary(session_start)
