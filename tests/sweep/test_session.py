"""Whole sweeps: failing, resumed, killed, refused, searched, side by side."""

import signal
import time

import pytest
from filelock import FileLock
from helpers.commands import ROOT, only_run, read_results
from helpers.sweeping import TOY, read_summary, start, write_sweep

SWEEP = "the extra sweep is not installed"


def statuses(sweep):
    return [row["status"] for row in read_summary(sweep)]


def snapshot(folder):
    """Every file's bytes and time of change, but for locks, which older releases touch."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def wait_for_jobs(process, tmp_path, count):
    """Wait until ``count`` of the toy's jobs are at work, or done."""
    while len(list((tmp_path / "outputs").glob("multirun/*/*/half-done"))) < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


@pytest.mark.slow
def test_a_failing_job_takes_no_other_along_and_a_resumed_sweep_runs_what_is_left(cli, tmp_path):
    """Nor does a library that ends the program."""
    failed = cli(TOY, "-m", "x=0,-1,-2,2,3", "note='a b'")
    sweep = only_run(tmp_path / "outputs", "multirun")
    assert failed.code == 1
    refused, crashed, ended, last = failed.err.splitlines()
    assert refused == "#0 x=0 failed: x=0: expected an integer >= 1"
    (log,) = sweep.glob("x=-1-*/toy.log")
    assert crashed == f"#1 x=-1 failed: RuntimeError: no such thing (traceback in {log})"
    assert "Traceback" in log.read_text()
    assert ended.startswith("#2 x=-2 failed: RuntimeError: sys.exit('a library gives up') was")
    entry = f"python {ROOT / TOY}"
    assert last.startswith(f"3 failed; go on with: {entry} -m x=0,-1,-2,2,3 \"note='a b'\" ")
    assert last.endswith(f"sweep.resume={sweep}")
    assert "#4 x=3: val.accuracy 0.2, " in failed.out
    assert f"\nbest: {entry} x=3 \"note='a b'\" paths.outputs=" in failed.out
    assert "\nfailed: x=-1: RuntimeError: no such thing\n" in failed.out
    assert statuses(sweep) == ["finished"] * 2 + ["failed"] * 3
    assert {"sweep.json", "summary.csv", "summary.png", "report.html"} <= {
        path.name for path in sweep.iterdir()
    }

    cut, whole = (next(sweep.glob(f"x={x}-*")) for x in (2, 3))
    (cut / "results.json").unlink()
    before = snapshot(whole)
    done = cli(TOY, "-m", "x=2,3,4", "note='a b'", "sweep.resume=latest").ok()
    assert done.out.count("finished before") == 1
    assert snapshot(whole) == before
    assert statuses(sweep) == ["finished"] * 3 + ["failed"] * 3


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_ended_and_resumed_equals_undisturbed(cli, tmp_path, number, code):
    arguments = ("-m", "x=1,2,3", "pause=0.4")
    process = start(tmp_path, *arguments)
    wait_for_jobs(process, tmp_path, 2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    sweep = only_run(tmp_path / "outputs", "multirun")
    if code > 0:
        assert err.splitlines()[-1].startswith(f"interrupted by {number.name}; go on with: python")
        assert sorted(statuses(sweep)) == ["finished", "interrupted"]
    (finished,) = [path.parent for path in sweep.glob("*/results.json")]
    before = snapshot(finished)
    done = cli(TOY, *arguments, "sweep.resume=latest").ok()
    assert done.out.count("finished before") == 1
    assert snapshot(finished) == before
    assert len(read_summary(sweep)) == len({row["folder"] for row in read_summary(sweep)}) == 3
    assert not list(sweep.rglob(".*.tmp*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "sweep.resume=latest"), "sweep.resume=latest: expected the folder of a sweep"),
        (("sweep.resume=latest",), "sweep.resume=latest: expected a sweep; start it with -m"),
        (("-m", "sweep.metric=test.loss"), "sweep.metric=test.loss: expected one of val.accuracy"),
        (("-m", "sweep=optuna", "sweep.metric=null"), "sweep.metric=null: a search needs one"),
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


def test_a_sweep_has_its_folder_to_itself(cli, tmp_path):
    sweep = tmp_path / "sweep"
    write_sweep(sweep)
    with FileLock(sweep / ".lock"):
        done = cli(TOY, "-m", "x=1", f"sweep.resume={sweep}")
    assert done.code == 2
    assert "another sweep is running there; expected one at a time" in done.err
    done = cli(TOY, "-m", "x=1", f"hydra.sweep.dir={sweep}")
    assert done.code == 2
    assert done.err.startswith(f"hydra.sweep.dir={sweep}: holds another sweep; expected a new")


@pytest.mark.slow
def test_an_allowed_metric_that_no_job_has(cli, tmp_path):
    options = ("x=choice(1,2)", "shape=glob(*,exclude=long)", "+sweep.columns.rate=nope")
    done = cli(TOY, "-m", *options, "sweep.metric=val.loss")
    assert done.code == 2
    metric, column = done.err.splitlines()
    assert metric.endswith("no job has it; expected val.accuracy, val.errors, or null")
    assert column == "sweep.columns.rate=nope: results.json has no such number"
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
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason=SWEEP)
    arguments = ("-m", "sweep=optuna", "x=range(0,3)", "y=interval(1,9)")
    cli(TOY, *arguments, "hydra.sweeper.n_trials=1")
    sweep = only_run(tmp_path / "outputs", "multirun")
    before = {row["folder"] for row in read_summary(sweep)}
    done = cli(TOY, *arguments, "hydra.sweeper.n_trials=3", "sweep.resume=latest")
    assert "best: python" in done.out
    rows = read_summary(sweep)
    assert before < {row["folder"] for row in rows}
    import optuna

    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{sweep}/optuna.db")
    assert len(study.trials) == 3
    best = max(float(row["val.accuracy"]) for row in rows if row["status"] == "finished")
    assert study.best_value == best


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_run_elsewhere(tmp_path, monkeypatch, launcher):
    extra = {"joblib": "sweep", "submitit_local": "slurm"}[launcher]
    plugin = f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher"
    pytest.importorskip(plugin, reason=f"the extra {extra} is not installed")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    workers = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    process = start(tmp_path, "-m", "x=0,1,2", f"launcher={launcher}", *workers)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1, out + err
    assert "failed: x=0: x=0: expected an integer >= 1" in out
    last = err.splitlines()[-1]
    assert last.startswith(f"1 failed; go on with: python {TOY} -m x=0,1,2 launcher={launcher} ")
    sweep = only_run(tmp_path / "outputs", "multirun")
    assert statuses(sweep) == ["finished", "finished", "failed"]
    workers = [read_results(path.parent)["worker"] for path in sweep.glob("*/results.json")]
    assert process.pid not in {worker["process"] for worker in workers}
    assert {worker["threads"] for worker in workers} == {"1"}


@pytest.mark.slow
def test_workers_end_after_a_sweep_that_is_killed(tmp_path):
    """Each finishes its job first; then nobody holds the sweep's pipes any more."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason=SWEEP)
    options = ("pause=1", "launcher=joblib", "hydra.launcher.n_jobs=2")
    process = start(tmp_path, "-m", "x=1,2", *options)
    wait_for_jobs(process, tmp_path, 2)
    process.kill()
    process.communicate(timeout=60)
    assert len(list(only_run(tmp_path / "outputs", "multirun").glob("*/results.json"))) == 2
