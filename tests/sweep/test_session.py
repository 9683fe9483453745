"""Whole sweeps: killed, resumed, ranked, refused, searched."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.sweeping import (
    FEW,
    GRID,
    TOY,
    job,
    only_sweep,
    read_summary,
    snapshot,
    start,
    statuses,
    wait_for_results,
    without_times,
)
from hydra.core.utils import JobReturn
from omegaconf import DictConfig

from lora_mnist.sweep.session import SweepCallback

SWEEP = ("-m", "x=1,2,4", "y=1,4")


def killed_and_resumed(cli: Any, tmp_path: Path, entry: str, *arguments: str) -> None:
    process = start(tmp_path, *arguments, entry=entry)
    wait_for_results(process, tmp_path, 2)
    time.sleep(0.2)  # into the third job
    process.kill()
    process.communicate()
    sweep = only_sweep(tmp_path)
    finished = [path.parent for path in sweep.glob("*/results.json")]
    assert 2 <= len(finished) < 6
    before = [snapshot(folder) for folder in finished]
    done = cli(entry, *arguments, "sweep.resume=latest")
    assert done.code == 0, done.err
    assert done.out.count("finished before") == len(finished)
    assert [snapshot(folder) for folder in finished] == before
    undisturbed = tmp_path / "undisturbed"
    assert cli(entry, *arguments, f"hydra.sweep.dir={undisturbed}").code == 0
    assert without_times(sweep) == without_times(undisturbed)
    names = [{path.name for path in folder.iterdir()} for folder in (sweep, undisturbed)]
    assert names[0] == names[1]
    left_over = list(sweep.rglob(".*.tmp")) + list(sweep.rglob(".results*"))
    assert not left_over


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(cli: Any, tmp_path: Path) -> None:
    killed_and_resumed(cli, tmp_path, TOY, *SWEEP, "pause=0.3")


@pytest.mark.slow
def test_a_training_killed_and_resumed_equals_undisturbed(
    cli: Any, base_ckpt: Path, tmp_path: Path
) -> None:
    killed_and_resumed(cli, tmp_path, "train.py", "-m", *FEW, f"base_ckpt={base_ckpt}", *GRID)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "sweep.resume={tmp}"), "sweep.resume={tmp}: no sweep; expected a folder with"),
        (("-m", "sweep.resume=latest"), "sweep.resume=latest: expected a sweep in {tmp}/outputs/"),
        (("sweep.resume=latest",), "sweep.resume=latest: expected a sweep; start it with -m"),
        (("-m", "sweep.metric=val.acuracy"), "sweep.metric=val.acuracy: expected one of val.acc"),
        (("-m", "seed=range(1,1)"), "seed=range(1,1): an empty grid; expected at least one value"),
    ],
)
def test_bad_input(cli: Any, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = cli(TOY, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert done.code == 2
    assert message.format(tmp=tmp_path) in done.err
    assert len(done.err.splitlines()) == 1
    assert not list(tmp_path.rglob("*"))


def test_what_hydra_does_not_understand(cli: Any, tmp_path: Path) -> None:
    def refuse(*overrides: str) -> None:
        done = cli(TOY, "-m", "nope=1,2", *overrides)
        assert (done.code, done.out) == (1, "")
        (line,) = done.err.splitlines()
        assert line.startswith("Could not override 'nope'.")

    refuse()
    assert not list(tmp_path.rglob("multirun/*"))
    assert cli(TOY, "-m", "x=1").code == 0
    sweep = only_sweep(tmp_path)
    commands = (sweep / "sweep.json").read_text()
    refuse("sweep.resume=latest")
    refuse()
    assert only_sweep(tmp_path) == sweep
    assert (sweep / "sweep.json").read_text() == commands


def test_an_allowed_metric_that_no_job_has(cli: Any, tmp_path: Path) -> None:
    done = cli(TOY, "-m", "seed=0,1", "sweep.metric=val.loss")
    assert done.code == 2
    assert done.err == (
        "sweep.metric=val.loss: no job has it; expected one of val.accuracy, val.errors, or null\n"
    )
    assert [row["seed"] for row in read_summary(only_sweep(tmp_path))] == ["0", "1"]


def test_glob_over_a_group(cli: Any, tmp_path: Path) -> None:
    done = cli(TOY, "-m", "shape=glob(*)", "x=shuffle(range(1,2))", "note='a,b'")
    assert done.code == 0, done.err
    rows = read_summary(only_sweep(tmp_path))
    assert len(rows) == 3
    assert {row["shape"] for row in rows} == {"round", "square", "long"}
    assert "note" not in rows[0]


@pytest.mark.slow
def test_the_entry_is_named_as_it_was_started(cli: Any, tmp_path: Path) -> None:
    from helpers.commands import ROOT

    done = cli(f"{ROOT}/{TOY}", "-m", "x=0,1")
    assert f"go on with: python {ROOT}/{TOY} -m x=0,1 paths.outputs=" in done.err
    assert f"best: python {ROOT}/{TOY} x=1 paths.outputs=" in done.out
    assert only_sweep(tmp_path)


@pytest.mark.slow
def test_what_hydra_cannot_write_ends_the_sweep_in_one_line(cli: Any, tmp_path: Path) -> None:
    assert cli(TOY, "-m", "x=1,2").code == 0
    sweep = only_sweep(tmp_path)
    unfinished = job(sweep, "x=2")
    (unfinished / "results.json").unlink()
    shutil.rmtree(unfinished / ".hydra")
    (unfinished / ".hydra").touch()
    done = cli(TOY, "-m", "x=1,2", "sweep.resume=latest")
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.startswith("FileExistsError: ")
    assert f"{unfinished}/.hydra" in line
    assert line.endswith(f"sweep.resume={sweep}")
    assert statuses(sweep) == ["finished", "interrupted"]


@pytest.mark.slow
def test_optuna_searches_and_resumes(cli: Any, tmp_path: Path) -> None:
    arguments = ("-m", "sweep=optuna", "x=range(0,3)", "y=interval(1,9)")

    def search(trials: int, *overrides: str) -> Any:
        return cli(TOY, *arguments, f"hydra.sweeper.n_trials={trials}", *overrides)

    done = search(4)
    sweep = only_sweep(tmp_path)
    failed = "failed: x=0: expected an integer >= 1" in done.err
    assert done.code == int(failed)
    before = without_times(sweep)
    assert len(before) == 4
    done = search(7, "sweep.resume=latest")
    finished = [row for row in before if row["status"] == "finished"]
    assert done.out.count("finished before") >= len(finished)
    rows = without_times(sweep)
    assert all(row in rows for row in finished)
    assert "importance: " in done.out
    undisturbed = tmp_path / "undisturbed"
    search(7, f"hydra.sweep.dir={undisturbed}")
    assert without_times(undisturbed) == rows
    import optuna

    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{sweep}/optuna.db")
    values = [trial.value for trial in study.trials if trial.value is not None]
    assert len(study.trials) == 7
    best = max(float(row["val.accuracy"]) for row in rows if row["status"] == "finished")
    assert max(values) == best


@pytest.mark.slow
def test_a_search_of_which_no_trial_finishes(cli: Any, tmp_path: Path) -> None:
    done = cli(TOY, "-m", "sweep=optuna", "x=choice(0,-1)", "hydra.sweeper.n_trials=2")
    assert done.code == 1
    assert "Traceback" not in done.err
    assert f"failed; go on with: python {TOY} -m sweep=optuna" in done.err.splitlines()[-1]
    assert set(statuses(only_sweep(tmp_path))) == {"failed"}


def test_a_jobs_configuration_is_not_kept() -> None:
    job_return = JobReturn(cfg=DictConfig({}), hydra_cfg=DictConfig({}))
    SweepCallback().on_job_end(DictConfig({}), job_return)
    assert job_return.cfg is job_return.hydra_cfg is None
