"""Claims the folder of a run or a sweep before Hydra writes into it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from lora_mnist.cli.exits import PastHydra
from lora_mnist.cli.explain import explain_missing_stage
from lora_mnist.cli.sweep import close_sweep, open_sweep
from lora_mnist.errors import UserError
from lora_mnist.project import expand_path
from lora_mnist.run_paths import refuse_used_folder


class ClaimOutputFolder(Callback):
    """A Hydra callback that claims the folder of a run, and opens and closes a sweep.

    Its ``config`` is our configuration with Hydra's own as ``hydra``.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim ``hydra.run.dir``."""
        with _prepare_claim(config):
            folder, subfolder = Path(config.hydra.run.dir), config.hydra.output_subdir
            if subfolder is not None:  # so in processes that Lightning starts
                refuse_used_folder("hydra.run.dir", folder)
                # If two runs start at once, the second fails here.
                (folder / subfolder).mkdir(parents=True)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the sweep; for a command without results, Hydra only runs the jobs."""
        with _prepare_claim(config):
            if "sweep" in config:
                open_sweep(config, config.hydra)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """End the sweep with its summary."""
        try:
            if "sweep" in config:
                close_sweep(config, config.hydra)
        except Exception as error:
            raise PastHydra(error) from None


@contextmanager
def _prepare_claim(cfg: DictConfig) -> Iterator[None]:
    """Set Hydra's configuration for the ``with`` block; after an error no folder is touched."""
    try:
        HydraConfig.instance().set_config(cfg)  # as Hydra does next, for ${hydra:...}
        _refuse_start(cfg)
        yield
    except BaseException as error:
        HydraConfig.instance().cfg = None  # so exit_for finds no folder
        raise PastHydra(error) from None


def _refuse_start(cfg: DictConfig) -> None:
    """Refuse a command without a stage, and a file in place of a folder."""
    overrides: Any = OmegaConf.to_container(cfg.hydra.overrides.task, resolve=False)
    swept = {*(OmegaConf.select(cfg, "hydra.sweeper.params") or {})}
    for each in OverridesParser.create().parse_overrides(overrides):
        if each.is_sweep_override():
            swept.add(each.key_or_group)
    if OmegaConf.is_missing(cfg, "stage") and not swept & {"stage", "experiment"}:
        raise UserError(explain_missing_stage())
    for key in ("outputs", "bases"):
        if expand_path(cfg.paths[key]).is_file():
            raise UserError(f"paths.{key}={cfg.paths[key]}: expected a folder, not a file")
