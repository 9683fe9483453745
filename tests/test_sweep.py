"""Sweeps on real data with few steps: killed, resumed, ranked, refused, searched."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from sweeping import (
    FEW,
    GRID,
    job,
    only_sweep,
    read_summary,
    snapshot,
    start,
    wait_for_results,
    without_times,
)


def test_killed_and_resumed_equals_undisturbed(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    arguments = ("-m", *FEW, f"base_ckpt={base_ckpt}", *GRID)
    process = start(tmp_path, *arguments)
    wait_for_results(process, tmp_path, 2)
    time.sleep(0.3)  # into the third job
    process.kill()
    process.communicate()
    sweep = only_sweep(tmp_path)
    finished = [path.parent for path in sweep.glob("*/results.json")]
    assert 2 <= len(finished) < 6
    before = [snapshot(folder) for folder in finished]
    done = cli("train.py", *arguments, "sweep.resume=latest")
    assert done.code == 0, done.err
    assert done.out.count("finished before") == len(finished)
    assert [snapshot(folder) for folder in finished] == before
    undisturbed = tmp_path / "undisturbed"
    assert cli("train.py", *arguments, f"hydra.sweep.dir={undisturbed}").code == 0
    assert without_times(sweep) == without_times(undisturbed)
    names = [{path.name for path in folder.iterdir()} for folder in (sweep, undisturbed)]
    assert names[0] == names[1]
    left_over = list(sweep.rglob(".*.tmp")) + list(sweep.rglob(".results*"))
    assert not left_over


def test_a_metric_that_no_job_has(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    done = cli(
        "train.py", "-m", *FEW, f"base_ckpt={base_ckpt}", "seed=0,1", "sweep.metric=val.nope"
    )
    assert done.code == 2
    assert done.err == (
        "sweep.metric=val.nope: no job has it; expected one of "
        "val.accuracy, val.broken, val.errors, val.errors_on_class, val.loss, val.repaired, "
        "or null\n"
    )
    assert [row["seed"] for row in read_summary(only_sweep(tmp_path))] == ["0", "1"]


def test_one_sweep_at_a_time_in_a_folder(cli: Any, tmp_path: Path) -> None:
    sweep = tmp_path / "outputs" / "multirun" / "a"
    sweep.mkdir(parents=True)
    (sweep / "sweep.json").write_text('{"commands": []}')
    with FileLock(sweep / ".lock"):
        done = cli("train.py", "-m", "seed=0,1", f"sweep.resume={sweep}")
    assert done.code == 2
    assert done.err == (
        f"sweep.resume={sweep}: another sweep is running there; expected one at a time\n"
    )
    done = cli("train.py", "-m", "seed=0,1", f"hydra.sweep.dir={sweep}")
    assert done.code == 2
    assert done.err == (
        f"hydra.sweep.dir={sweep}: holds another sweep; "
        f"expected a new folder, or sweep.resume={sweep}\n"
    )
    assert json.loads((sweep / "sweep.json").read_text()) == {"commands": []}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "sweep.resume={tmp}"), "sweep.resume={tmp}: no sweep; expected a folder with"),
        (("-m", "sweep.resume=latest"), "sweep.resume=latest: expected a sweep in {tmp}/outputs/"),
        (("sweep.resume=latest",), "sweep.resume=latest: expected a sweep; start it with -m"),
        (("-m", "sweep.metric=test.accuracy"), "sweep.metric=test.accuracy: the test set must not"),
        (("-m", "sweep.mode=best"), "sweep.mode=best: expected max or min"),
        (("-m", "seed=range(1,1)"), "seed=range(1,1): an empty grid; expected at least one value"),
    ],
)
def test_bad_input(cli: Any, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = cli("train.py", *(argument.format(tmp=tmp_path) for argument in arguments))
    assert done.code == 2
    assert message.format(tmp=tmp_path) in done.err
    assert len(done.err.splitlines()) == 1
    assert not list(tmp_path.rglob("*"))


def test_optuna_searches_and_resumes(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    arguments = ("-m", "sweep=optuna", *FEW, f"base_ckpt={base_ckpt}", "lora.rank=range(0,3)")
    lr = "optimizer.lr=tag(log,interval(1e-4,1e-2))"

    def search(trials: int, *overrides: str) -> Any:
        return cli("train.py", *arguments, lr, f"hydra.sweeper.n_trials={trials}", *overrides)

    done = search(3)
    sweep = only_sweep(tmp_path)
    failed = "failed: lora.rank=0: expected an integer >= 1" in done.err
    assert done.code == int(failed)
    before = without_times(sweep)
    assert len(before) == 3
    done = search(5, "sweep.resume=latest")
    finished = [row for row in before if row["status"] == "finished"]
    assert done.out.count("finished before") == len(finished)
    rows = without_times(sweep)
    assert len(rows) == 5
    assert all(row in rows for row in finished)
    assert "importance: " in done.out
    undisturbed = tmp_path / "undisturbed"
    search(5, f"hydra.sweep.dir={undisturbed}")
    assert without_times(undisturbed) == rows
    import optuna

    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{sweep}/optuna.db")
    values = [trial.value for trial in study.trials if trial.value is not None]
    assert len(study.trials) == 5
    accuracies = [float(row["val.accuracy"]) for row in rows if row["status"] == "finished"]
    assert sorted(values, reverse=True) == accuracies


def test_a_search_of_which_no_trial_finishes(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    few = (*FEW, f"base_ckpt={base_ckpt}", "lora.rank=choice(0,-1)", "hydra.sweeper.n_trials=2")
    done = cli("train.py", "-m", "sweep=optuna", *few)
    assert done.code == 1
    assert "Traceback" not in done.err
    assert "failed; go on with: python train.py -m sweep=optuna" in done.err.splitlines()[-1]
    assert {row["status"] for row in read_summary(only_sweep(tmp_path))} == {"failed"}


def test_what_hydra_cannot_write_ends_the_sweep_in_one_line(
    cli: Any, base_ckpt: Path, tmp_path: Path
) -> None:
    arguments = ("-m", *FEW, f"base_ckpt={base_ckpt}", "lora.rank=1,2")
    assert cli("train.py", *arguments).code == 0
    sweep = only_sweep(tmp_path)
    unfinished = job(sweep, "lora.rank=2")
    (unfinished / "results.json").unlink()
    shutil.rmtree(unfinished / ".hydra")
    (unfinished / ".hydra").touch()
    done = cli("train.py", *arguments, "sweep.resume=latest")
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.startswith("FileExistsError: ")
    assert f"{unfinished}/.hydra" in line
    assert line.endswith(f"sweep.resume={sweep}")
    assert [row["status"] for row in read_summary(sweep)] == ["finished", "interrupted"]
