"""Whole sweeps: failing, resumed, killed, refused, searched, side by side."""

import signal
import time

import pytest
from helpers.commands import ROOT, only_run, read_results
from helpers.sweeping import TOY, read_summary, start
from omegaconf import OmegaConf

SWEEP = "the extra sweep is not installed"


def statuses(sweep):
    return [row["status"] for row in read_summary(sweep)]


def snapshot(folder):
    """Every file's bytes and time of change, but for Hydra's own."""
    files = [path for path in folder.iterdir() if path.is_file()]
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.slow
def test_a_failing_job_takes_no_other_along_and_a_resumed_sweep_runs_what_is_left(cli, tmp_path):
    failed = cli(TOY, "-m", "x=0,-1,2,3", "note='a b'")
    sweep = only_run(tmp_path / "outputs", "multirun")
    assert failed.code == 1
    refused, crashed, count, last = failed.err.splitlines()
    assert refused == "#0 x=0 failed: x=0: expected an integer >= 1"
    (log,) = sweep.glob("x=-1-*/toy.log")
    assert crashed == f"#1 x=-1 failed: RuntimeError: no such thing (traceback in {log})"
    assert "Traceback" in log.read_text()
    assert count == "2 failed"
    entry = f"python {ROOT / TOY}"
    assert last.startswith(f"go on with: {entry} -m x=0,-1,2,3 \"note='a b'\" ")
    assert last.endswith(f"sweep.resume={sweep}")
    assert "#3 x=3: val.accuracy 0.2, " in failed.out
    assert f"\nbest: {entry} x=3 \"note='a b'\" paths.outputs=" in failed.out
    assert "\nfailed: x=-1: RuntimeError: no such thing\n" in failed.out
    assert statuses(sweep) == ["finished"] * 2 + ["failed"] * 2
    files = {path.name for path in sweep.iterdir()}
    assert {"summary.csv", "summary.png", "report.html"} <= files

    cut, whole = (next(sweep.glob(f"x={x}-*")) for x in (2, 3))
    (cut / "results.json").unlink()
    before = snapshot(whole)
    done = cli(TOY, "-m", "x=2,3,4", "note='a b'", "sweep.resume=latest").ok()
    assert done.out.count("finished before") == 1
    assert snapshot(whole) == before
    # What failed is not in this grid.
    assert [(row["x"], row["status"]) for row in read_summary(sweep)] == [
        ("3", "finished"),
        ("2", "finished"),
        ("4", "finished"),
    ]
    # Other settings are other jobs, and take no folder from those.
    done = cli(TOY, "-m", "x=2,3", "note=c", "sweep.resume=latest").ok()
    assert "finished before" not in done.out
    assert snapshot(whole) == before
    assert len(list(sweep.glob("x=3-*/results.json"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_ended_and_resumed_equals_undisturbed(cli, tmp_path, number, code):
    arguments = ("-m", "x=1,2,3", "pause=0.4")
    process = start(tmp_path, *arguments)
    while len(list((tmp_path / "outputs").glob("multirun/*/*/half-done"))) < 2:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    sweep = only_run(tmp_path / "outputs", "multirun")
    if code > 0:
        why, last = err.splitlines()
        assert why == f"interrupted by {number.name}"
        assert last.startswith(f"go on with: python {TOY} -m x=1,2,3 pause=0.4 ")
        assert last.endswith(f" sweep.resume={sweep}")
    (finished,) = [path.parent for path in sweep.glob("*/results.json")]
    (interrupted,) = [path for path in sweep.glob("x=*") if path != finished]
    (interrupted / "part").mkdir()
    (interrupted / "part" / "left").touch()
    before = snapshot(finished)
    done = cli(TOY, *arguments, "sweep.resume=latest").ok()
    assert done.out.count("finished before") == 1
    assert snapshot(finished) == before
    assert not (interrupted / "part").exists()
    assert len(read_summary(sweep)) == len({row["folder"] for row in read_summary(sweep)}) == 3
    assert not list(sweep.rglob(".*.tmp*"))


def test_a_base_that_is_looked_up_may_be_another_one(cli, tmp_path):
    """As in eval.py, whose base_ckpt is null: its jobs are run again."""
    cli(TOY, "-m", "x=2,3", "+base_ckpt=null").ok()
    done = cli(TOY, "-m", "x=2,3", "+base_ckpt=null", "sweep.resume=latest").ok()
    assert "finished before" not in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "sweep.resume=latest"), "sweep.resume=latest: expected the folder of a sweep"),
        (("-m", "hydra.job.chdir=true"), "hydra.job.chdir=true: expected false"),
        (("sweep.resume=latest",), "sweep.resume=latest: expected a sweep; start it with -m"),
        (("-m", "sweep.metric=test.loss"), "sweep.metric=test.loss: expected a number of valid"),
        (("-m", "sweep=optuna", "sweep.metric=null"), "sweep.metric=null: expected a number of v"),
    ],
)
def test_bad_input(cli, tmp_path, arguments, message):
    if "sweep=optuna" in arguments:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason=SWEEP)
    done = cli(TOY, *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(message)
    assert len(done.err.splitlines()) == 1
    assert not list(tmp_path.rglob("*"))


@pytest.mark.slow
def test_an_allowed_metric_that_no_job_has(cli, tmp_path):
    options = ("x=choice(1,2)", "shape=glob(*,exclude=long)")
    done = cli(TOY, "-m", *options, "sweep.metric=val.loss")
    assert done.code == 2
    reason = "sweep.metric=val.loss: no job has it; expected a column of summary.csv, or null\n"
    assert done.err == reason
    rows = read_summary(only_run(tmp_path / "outputs", "multirun"))
    assert len(rows) == 4
    assert {row["shape"] for row in rows} == {"round", "square"}


def test_a_command_that_keeps_no_results_just_runs(cli, tmp_path):
    """Such as predict.py, which has no ``sweep`` in its configuration."""
    done = cli(TOY, "--config-name=plain", "-m", "x=1,2").ok()
    assert "best:" not in done.out
    assert len(list((tmp_path / "outputs").glob("multirun/*/*/results.json"))) == 2


@pytest.mark.slow
def test_optuna_searches_and_resumes(cli, tmp_path):
    """A resumed search draws the same trials, and goes on as if it had never ended."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason=SWEEP)
    arguments = ("-m", "sweep=optuna", "x=range(0,3)", "y=interval(1,9)")
    cli(TOY, *arguments, "hydra.sweeper.n_trials=3")
    sweep = only_run(tmp_path / "outputs", "multirun")
    before = {row["folder"] for row in read_summary(sweep) if row["status"] == "finished"}
    done = cli(TOY, *arguments, "hydra.sweeper.n_trials=5", "sweep.resume=latest")
    assert "best: python" in done.out
    assert done.out.count("finished before") == len(before) > 0
    rows = read_summary(sweep)
    assert before < {row["folder"] for row in rows}
    accuracies = [float(row["val.accuracy"]) for row in rows if row["status"] == "finished"]
    results = OmegaConf.load(sweep / "optimization_results.yaml")
    assert results.best_value == max(accuracies)


@pytest.mark.slow
def test_jobs_run_side_by_side(tmp_path, monkeypatch):
    plugin = "hydra_plugins.hydra_joblib_launcher"
    pytest.importorskip(plugin, reason=SWEEP)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    joblib = ("launcher=joblib", "hydra.launcher.n_jobs=2")
    process = start(tmp_path, "-m", "x=0,1,2", *joblib)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1, out + err
    assert "failed: x=0: x=0: expected an integer >= 1" in out
    count, last = err.splitlines()[-2:]
    assert count == "1 failed"
    assert last.startswith(f"go on with: python {TOY} -m x=0,1,2 launcher=joblib ")
    sweep = only_run(tmp_path / "outputs", "multirun")
    assert statuses(sweep) == ["finished", "finished", "failed"]
    workers = [read_results(path.parent)["worker"] for path in sweep.glob("*/results.json")]
    assert process.pid not in {worker["process"] for worker in workers}
    assert {worker["threads"] for worker in workers} == {"1"}
