"""The folder of a run: each has its own, and nobody writes over another's."""

import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class RunFolder(Callback):
    """Hydra callback: gives each run a folder of its own before anything is written.

    Hydra itself would end in a traceback where the folder cannot be made, and would write a second
    run over the first where ``hydra.run.dir`` names the folder of a run.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim ``hydra.run.dir``; a process of a distributed run joins its parent's folder."""
        HydraConfig.instance().set_config(config)  # Hydra does so next; ${hydra:...} needs it here
        if config.hydra.output_subdir is not None:
            folder = Path(config.hydra.run.dir)
            _make_or_exit("hydra.run.dir", folder)
            _make_or_exit("hydra.run.dir", folder / config.hydra.output_subdir, must_be_new=True)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make ``hydra.sweep.dir``."""
        HydraConfig.instance().set_config(config)
        _make_or_exit("hydra.sweep.dir", Path(config.hydra.sweep.dir))


def _make_or_exit(key: str, folder: Path, must_be_new: bool = False) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=not must_be_new)
    except OSError as error:
        # mkdir is atomic: of two runs that start at once in one folder, one ends here.
        reason = "holds another run" if must_be_new else f"cannot be made ({error.strerror})"
        print(f"{key}={folder}: {reason}; expected a new folder, writable", file=sys.stderr)
        raise SystemExit(2) from error
