"""Launchers and sweepers that are not installed, and what the installed ones need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import ROOT
from helpers.sweeping import TOY
from omegaconf import OmegaConf

from lora_mnist.errors import UserError
from lora_mnist.sweep.plugins import prepare_environment, require_plugins

#: Runs a command as if no plugin of Hydra were there.
BARE = (
    "import runpy, sys; sys.modules['hydra_plugins'] = None; sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "package", "extra"),
    [
        (("launcher=joblib", "hydra.launcher.n_jobs=2"), "hydra-joblib-launcher", "sweep"),
        (("hydra/launcher=ray",), "hydra-ray-launcher", "ray"),
        (("launcher=slurm", "hydra.launcher.nodes=2"), "hydra-submitit-launcher", "slurm"),
        (("sweep=optuna", "hydra.sweeper.sampler.x=1"), "hydra-optuna-sweeper", "sweep"),
    ],
)
def test_a_missing_extra_is_one_line(
    tmp_path: Path, overrides: tuple[str, ...], package: str, extra: str
) -> None:
    command = [sys.executable, "-c", BARE, TOY, "-m", "seed=0,1", *overrides]
    done = subprocess.run(
        [*command, f"paths.outputs={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert f": the package {package} is missing; expected the extra {extra}: " in line
    assert line.endswith(f'pip install -e ".[{extra}]"')
    assert not any(tmp_path.iterdir())


def test_what_is_missing_is_named_as_chosen() -> None:
    choices = {"hydra/launcher": "submitit_slurm", "hydra/sweeper": "basic"}
    hydra = {
        "launcher": {"missing": "hydra-submitit-launcher"},
        "sweeper": {},
        "runtime": {"choices": choices},
    }
    with pytest.raises(UserError, match=r"^hydra/launcher=submitit_slurm: the package hydra-subm"):
        require_plugins(OmegaConf.create({"hydra": hydra}))
    hydra["launcher"] = {"_target_": "x"}
    require_plugins(OmegaConf.create({"hydra": hydra}))


@pytest.mark.parametrize(
    ("workers", "jobs", "threads"), [(2, 10, 4), (3, 10, 2), (-1, 10, 1), (4, 2, 4), (16, 99, 1)]
)
def test_workers_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, workers: int, jobs: int, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config = OmegaConf.create({"hydra": {"launcher": {"n_jobs": workers}}})
    prepare_environment(config, jobs)
    assert os.environ["OMP_NUM_THREADS"] == str(threads)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    prepare_environment(config, jobs)
    assert os.environ["OMP_NUM_THREADS"] == "5"
