"""Hydra's launchers and sweepers: what to install where one is missing, and what they need.

Hydra composes the configuration before any of our code runs, and would end with ``Could not find
'hydra/launcher/joblib'``. So :func:`register_stand_ins` gives Hydra's config store an empty entry
for each plugin that is not installed, and :func:`require_plugins` refuses the entry by name.
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from lora_mnist.errors import missing_extra

#: What they take from the environment alone.
_ENGINES = {
    # About the SQLAlchemy that the sweeper's optuna needs; nothing a user could act on.
    "SQLALCHEMY_SILENCE_UBER_WARNING": "1",
    # Ray would take the lines of different jobs for repetitions, and report its use to its makers.
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}

_SWEEPER, _SAMPLER, _LAUNCHER = "hydra/sweeper", "hydra/sweeper/sampler", "hydra/launcher"


@dataclass(frozen=True)
class _Plugin:
    """A plugin of Hydra: its package, the extra that brings it, and the options that it offers."""

    package: str
    extra: str
    group: str
    names: tuple[str, ...]

    @property
    def is_installed(self) -> bool:
        try:
            return find_spec(f"hydra_plugins.{self.package.replace('-', '_')}") is not None
        except ModuleNotFoundError:  # no plugin at all
            return False


_PLUGINS = (
    _Plugin("hydra-joblib-launcher", "sweep", _LAUNCHER, ("joblib",)),
    _Plugin("hydra-ray-launcher", "ray", _LAUNCHER, ("ray", "ray_aws")),
    _Plugin("hydra-submitit-launcher", "slurm", _LAUNCHER, ("submitit_local", "submitit_slurm")),
    _Plugin("hydra-optuna-sweeper", "sweep", _SWEEPER, ("optuna",)),
)
_OPTUNA_SAMPLERS = ("tpe", "random", "cmaes", "nsgaii", "motpe", "grid")


def register_stand_ins() -> None:
    """Let Hydra compose configurations that choose a plugin which is not installed."""
    store = ConfigStore.instance()
    for plugin in _PLUGINS:
        if plugin.is_installed:
            continue
        stand_in = OmegaConf.create({"missing": plugin.package})
        if plugin.group == _SWEEPER:
            for name in _OPTUNA_SAMPLERS:
                store.store(name, _open({}), group=_SAMPLER, provider="lora_mnist")
            stand_in["defaults"] = [{"sampler": "tpe"}]
        for name in plugin.names:
            store.store(name, _open(stand_in), group=plugin.group, provider="lora_mnist")


def _open(content: object) -> DictConfig:
    """A node in which any key may be set: a command may set what only the plugin defines."""
    node = OmegaConf.create(content)  # type: ignore[call-overload]
    OmegaConf.set_struct(node, False)
    assert isinstance(node, DictConfig)
    return node


def require_plugins(config: DictConfig) -> None:
    """Refuse a launcher or sweeper that is not installed.

    Raises:
        UserError: with the command that installs the plugin.
    """
    for group in (_LAUNCHER, _SWEEPER):
        missing = OmegaConf.select(config, f"{group.replace('/', '.')}.missing", default=None)
        for plugin in _PLUGINS:
            if plugin.package == missing:
                choice = f"{group}={config.hydra.runtime.choices[group]}"
                error = ModuleNotFoundError(name=plugin.package)
                raise missing_extra(choice, plugin.extra, error)


def prepare_environment(config: DictConfig, jobs: int) -> None:
    """Set what launchers and their workers read from the environment, where it is not set.

    Each of N joblib workers gets an equal share of the C cores, C / N threads; torch would take
    every core in every worker.

    Args:
        config: of the sweep.
        jobs: how many jobs there are.
    """
    for name, value in _ENGINES.items():
        os.environ.setdefault(name, value)
    workers = OmegaConf.select(config, "hydra.launcher.n_jobs", default=None)
    if workers is None:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    workers = workers if workers > 0 else max(1, cores + 1 + workers)  # joblib: -1 is all cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // min(workers, jobs))))


register_stand_ins()
