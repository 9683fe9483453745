"""The folder of a run: each has its own, and nobody writes over another's."""

import errno
import os
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
            make_or_exit("hydra.run.dir", folder, config.hydra.output_subdir)


def make_or_exit(key: str, folder: Path, new_subfolder: str = "") -> None:
    """Make ``folder`` and a subfolder in it, or end the process with one line and code 2."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if new_subfolder:
            # mkdir is atomic: of two runs that start at once in one folder, one ends here.
            (folder / new_subfolder).mkdir()
        elif not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        taken = new_subfolder and (folder / new_subfolder).is_dir()
        reason = "holds another run" if taken else f"cannot be written ({error.strerror})"
        print(f"{key}={folder}: {reason}; expected a new folder", file=sys.stderr)
        raise SystemExit(2) from error
