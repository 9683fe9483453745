"""Sweeps on real data with few steps: summaries, failures, interrupts, resuming, workers."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, read_results
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

FEW = ("stage=lora", "digit=9", "trainer.max_steps=5", "logger=none")


def only_sweep(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "outputs" / "multirun").iterdir()
    return folder


def read_summary(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(sweep: Path) -> list[dict[str, str]]:
    return [
        {key: value for key, value in row.items() if not key.startswith("seconds.")}
        for row in read_summary(sweep)
    ]


def job(sweep: Path, name: str) -> Path:
    (folder,) = sweep.glob(f"{name}-*")
    return folder


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's bytes and time of change."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_failing_job_takes_no_other_along(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    arguments = ("-m", *FEW[:3], f"base_ckpt={base_ckpt}", "lora.rank=0,1,2", "lora.alpha=1,4")
    done = cli("train.py", *arguments)
    sweep = only_sweep(tmp_path)
    assert done.code == 1
    reason = "lora.rank=0: expected an integer >= 1"
    told, _, last = done.err.splitlines()
    assert told == f"#0 lora.rank=0 lora.alpha=1 failed: {reason}"
    assert last.startswith("2 failed; go on with: python train.py -m stage=lora digit=9")
    assert last.endswith(f"sweep.resume={sweep}")
    assert "#2 lora.rank=1 lora.alpha=1: val.accuracy 0." in done.out
    rows = read_summary(sweep)
    assert [row["status"] for row in rows] == ["finished"] * 4 + ["failed"] * 2
    assert {row["error"] for row in rows[4:]} == {reason}
    accuracies = [float(row["val.accuracy"]) for row in rows[:4]]
    assert accuracies == sorted(accuracies, reverse=True)
    for row in rows[:4]:
        results = read_results(sweep / row["folder"])
        assert f"{row['lora.rank']},lora.alpha={row['lora.alpha']}-" in row["folder"]
        assert int(row["parameters.lora"]) == 6_794 * int(row["lora.rank"])
        assert float(row["val.accuracy"]) == results["val"]["accuracy"]
        for split in ("val", "test", "test_base"):
            errors = results[split]["errors_per_class"]
            assert [int(row[f"{split}.errors_per_class.{c}"]) for c in range(10)] == errors
            assert int(row[f"{split}.errors_on_class"]) == errors[9]
    best = rows[0]
    swept = f"lora.rank={best['lora.rank']} lora.alpha={best['lora.alpha']}"
    base = f"base_ckpt={base_ckpt}"
    assert (
        f"best: python train.py stage=lora digit=9 trainer.max_steps=5 {base} {swept}" in done.out
    )
    assert f"failed: lora.rank=0 lora.alpha=4: {reason}" in done.out
    assert (sweep / "summary.png").read_bytes().startswith(b"\x89PNG")
    hparams = {}
    for row in rows[:4]:
        plugin = EventAccumulator(str(sweep / row["folder"])).Reload()
        assert plugin.Scalars("val/accuracy")[-1].value == pytest.approx(float(row["val.accuracy"]))
        content = plugin.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        start = HParamsPluginData.FromString(content).session_start_info
        hparams[row["folder"]] = {key: v.number_value for key, v in start.hparams.items()}
    assert hparams == {
        row["folder"]: {key: float(row[key]) for key in ("lora.rank", "lora.alpha")}
        for row in rows[:4]
    }


def test_a_job_repeats_as_a_single_run(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    """What ran before in the same process leaves no trace in a job's numbers."""
    arguments = (*FEW, f"base_ckpt={base_ckpt}")
    assert cli("train.py", "-m", *arguments, "lora.rank=2,1").code == 0
    assert cli("train.py", *arguments, "lora.rank=1", f"hydra.run.dir={tmp_path}/run").code == 0
    swept, single = (
        read_results(folder)
        for folder in (job(only_sweep(tmp_path), "lora.rank=1"), tmp_path / "run")
    )
    assert {**swept, "seconds": None} == {**single, "seconds": None}


def test_a_changed_grid_adds_and_touches_nothing(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    arguments = ("-m", *FEW, f"base_ckpt={base_ckpt}")
    assert cli("train.py", *arguments, "lora.rank=1").code == 0
    sweep = only_sweep(tmp_path)
    (first,) = [path for path in sweep.iterdir() if path.is_dir()]
    before = snapshot(first)
    done = cli("train.py", *arguments, "lora.rank=1,2", "sweep.resume=latest")
    assert done.code == 0, done.err
    assert "#0 lora.rank=1: finished before" in done.out
    assert done.out.count("finished before") == 1
    done = cli("train.py", *arguments, "lora.rank=2", "seed=0,1", f"sweep.resume={sweep}")
    assert "#0 seed=0: finished before" in done.out
    assert done.out.count("finished before") == 1
    assert snapshot(first) == before
    assert only_sweep(tmp_path) == sweep
    # The default of a key that only the last command sweeps stands in the first one's row too.
    swept = {(row["lora.rank"], row["seed"]) for row in read_summary(sweep)}
    assert swept == {("1", "0"), ("2", "0"), ("2", "1")}


def start(tmp_path: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    """A sweep in a process of its own."""
    command = [sys.executable, "train.py", *overrides, f"paths.outputs={tmp_path}/outputs"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_results(process: subprocess.Popen[str], tmp_path: Path, count: int) -> None:
    while len(list((tmp_path / "outputs").glob("multirun/*/*/results.json"))) < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


GRID = ("lora.rank=1,2,4", "lora.alpha=1,4")


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_is_summarised(
    cli: Any, base_ckpt: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(tmp_path, "-m", *FEW, f"base_ckpt={base_ckpt}", *GRID)
    wait_for_results(process, tmp_path, 1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    sweep = only_sweep(tmp_path)
    assert err.splitlines() == [
        f"interrupted by {number.name}; go on with: python train.py -m {' '.join(FEW)} "
        f"base_ckpt={base_ckpt} {' '.join(GRID)} paths.outputs={tmp_path}/outputs "
        f"sweep.resume={sweep}"
    ]
    assert "best: python train.py" in out
    statuses = [row["status"] for row in read_summary(sweep)]
    assert 1 <= statuses.count("finished") < 6
    assert set(statuses) <= {"finished", "interrupted"}


def test_fail_fast_stops_at_the_first(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    arguments = (*FEW, f"base_ckpt={base_ckpt}", "lora.rank=0,1", "sweep.fail_fast=true")
    done = cli("train.py", "-m", *arguments)
    assert done.code == 1
    assert len(done.err.splitlines()) == 2
    sweep = only_sweep(tmp_path)
    assert [row["status"] for row in read_summary(sweep)] == ["failed"]
    # What stopped it does not stop the next attempt.
    done = cli("train.py", "-m", *arguments, "lora.rank=1,2", f"sweep.resume={sweep}")
    assert done.code == 0, done.err
    assert [row["status"] for row in read_summary(sweep)] == ["finished", "finished", "failed"]


def test_a_full_disk_stops_and_loses_nothing(
    cli: Any, base_ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lora_mnist.run

    save, saved = lora_mnist.run.save_adapter, []

    def save_one(*arguments: Any, **metadata: Any) -> None:
        if saved:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(save(*arguments, **metadata))

    monkeypatch.setattr(lora_mnist.run, "save_adapter", save_one)
    arguments = ("-m", *FEW, f"base_ckpt={base_ckpt}", "lora.rank=1,2,4")
    done = cli("train.py", *arguments)
    assert done.code == 1
    assert "#1 lora.rank=2 failed: OSError: [Errno 28] No space left on device" in done.err
    assert len(done.err.splitlines()) == 2
    sweep = only_sweep(tmp_path)
    assert [row["status"] for row in read_summary(sweep)] == ["finished", "failed"]
    monkeypatch.undo()
    done = cli("train.py", *arguments, "sweep.resume=latest")
    assert done.code == 0, done.err
    assert [row["status"] for row in read_summary(sweep)] == ["finished"] * 3


def test_another_base_is_another_configuration(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.ckpt"
    arguments = ("-m", *FEW, f"base_ckpt={base}", "lora.rank=1,2")
    done = cli("train.py", *arguments)
    assert done.code == 1
    assert "base.ckpt: no such file" in done.err
    base.write_bytes(base_ckpt.read_bytes())
    done = cli("train.py", *arguments, "sweep.resume=latest")
    assert done.code == 0, done.err
    # The failures for want of a base were made good, and are listed no more.
    assert [row["status"] for row in read_summary(only_sweep(tmp_path))] == ["finished"] * 2


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


def test_skipping_needs_no_torch(base_ckpt: Path, tmp_path: Path) -> None:
    """Whoever resumes a finished sweep of thousands waits for no import, job after job."""
    arguments = ("-m", *FEW, f"base_ckpt={base_ckpt}", "lora.rank=1,2")
    process = start(tmp_path, *arguments)
    assert process.wait(60) == 0
    command = [sys.executable, "-X", "importtime", "train.py", *arguments]
    done = subprocess.run(
        [*command, f"sweep.resume={only_sweep(tmp_path)}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.count("finished before") == 2
    assert not any(line.split("|")[-1].strip() == "torch" for line in done.stderr.splitlines())


def test_joblib_shares_the_cores_and_survives_failures(base_ckpt: Path, tmp_path: Path) -> None:
    threads = tmp_path / "threads"
    threads.mkdir()
    process = start(
        tmp_path,
        *("-m", *FEW, f"base_ckpt={base_ckpt}", "lora.rank=0,1,2", "hydra/launcher=joblib"),
        *("hydra.launcher.n_jobs=2", f"+callbacks.threads.folder={threads}"),
        "+callbacks.threads._target_=recorder.ThreadRecorder",
        PYTHONPATH=str(ROOT / "tests"),
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    told, last = err.splitlines()
    assert told == "#0 lora.rank=0 failed: lora.rank=0: expected an integer >= 1"
    assert last.startswith("1 failed; go on with: python train.py -m")
    assert "hydra/launcher=joblib hydra.launcher.n_jobs=2 sweep.resume=" in last
    statuses = [row["status"] for row in read_summary(only_sweep(tmp_path))]
    assert statuses == ["finished", "finished", "failed"]
    cores = len(os.sched_getaffinity(0))
    assert [path.name for path in threads.iterdir()] == [str(max(1, cores // 2))]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_joblib_can_be_interrupted(base_ckpt: Path, tmp_path: Path, number: signal.Signals) -> None:
    arguments = (*FEW, f"base_ckpt={base_ckpt}", *GRID, "hydra/launcher=joblib")
    process = start(tmp_path, "-m", *arguments, "hydra.launcher.n_jobs=2")
    wait_for_results(process, tmp_path, 1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert len(err.splitlines()) == 1
    assert any(row["status"] == "finished" for row in read_summary(only_sweep(tmp_path)))


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


def test_submitit_brings_results_and_failures_back(base_ckpt: Path, tmp_path: Path) -> None:
    """launcher=slurm with processes of this machine for Slurm's nodes."""
    arguments = (*FEW, f"base_ckpt={base_ckpt}", "lora.rank=0,1", "launcher=submitit_local")
    process = start(tmp_path, "-m", *arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "failed: lora.rank=0: lora.rank=0: expected an integer >= 1" in out
    assert err.startswith("1 failed; go on with: python train.py -m")
    rows = read_summary(only_sweep(tmp_path))
    assert [row["status"] for row in rows] == ["finished", "failed"]
