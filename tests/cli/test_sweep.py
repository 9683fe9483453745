"""Whole sweeps, of a toy command."""

import signal
import time

import pytest
from helpers.commands import only_run, read_csv
from helpers.sweeping import TOY, start, write_job

from lora_mnist.cli.sweep import close_interrupted_sweep


@pytest.mark.slow
def test_a_failing_job_takes_no_other_along_and_is_named_at_the_end(cli, tmp_path):
    done = cli(TOY, "-m", "x=0,-1,2,3", "note='a b'", "shape=glob(r*)")
    sweep = only_run(tmp_path / "outputs", "multirun")
    assert done.code == 1
    assert done.err.splitlines() == [
        f"#0 failed: x=0: expected an integer >= 1; log: {sweep}/0/toy.log",
        f"#1 failed: RuntimeError: no such thing; log: {sweep}/1/toy.log",
        f"failed: x=-1 in {sweep}/1: RuntimeError: no such thing",
        f"failed: x=0 in {sweep}/0: x=0: expected an integer >= 1",
    ]
    assert "Traceback" in (sweep / "1" / "toy.log").read_text()
    assert "#3: val.accuracy 0.2, " in done.out
    assert "train.py x=3 \"note='a b'\" shape=round paths.outputs=" in done.out
    rows = [(row["x"], row["folder"], row["error"]) for row in read_csv(sweep / "summary.csv")]
    assert rows[:2] == [("3", "3", ""), ("2", "2", "")]
    assert rows[2:] == [
        ("-1", "1", "RuntimeError: no such thing"),
        ("0", "0", "x=0: expected an integer >= 1"),
    ]
    assert (sweep / "summary.png").is_file()
    refused = cli(TOY, "-m", "x=2", f"hydra.sweep.dir={sweep}")
    assert refused.code == 2
    assert refused.err.startswith(f"hydra.sweep.dir={sweep}: has a ")


def test_a_job_without_validation_images_takes_no_other_along(cli):
    """It has no metric."""
    done = cli(TOY, "-m", "x=4,2", "sweep.metric=val.accuracy").ok()
    assert "#0: " in done.out
    assert "#1: val.accuracy" in done.out


def test_a_column_that_no_job_has_is_named_at_the_end(cli):
    columns = ("+sweep.columns.rate=val.acuracy", "+sweep.columns.right=val.accuracy")
    done = cli(TOY, "-m", "x=2", *columns).ok()
    assert done.err.startswith("sweep.columns.rate=val.acuracy: no job has it; the nearest is val.")
    assert len(done.err.splitlines()) == 1


def test_a_failed_job_is_none_of_the_finished_ones(tmp_path):
    """Though a training that led nowhere has results, too."""
    write_job(tmp_path, "0", ["x=1"], accuracy=0.5)
    write_job(tmp_path, "1", ["x=2"], accuracy=0.1)
    write_job(tmp_path, "1", ["x=2"], error="training diverged")
    assert close_interrupted_sweep(tmp_path) == f"finished jobs: 1, in {tmp_path}/summary.csv"
    assert [row["error"] for row in read_csv(tmp_path / "summary.csv")] == ["", "training diverged"]


@pytest.mark.slow
def test_an_interrupted_sweep_says_where_its_finished_jobs_are(tmp_path):
    process = start(tmp_path, "-m", "x=1,2,3", "pause=0.4")
    while len(list((tmp_path / "outputs").glob("multirun/*/*/half-done"))) < 2:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    sweep = only_run(tmp_path / "outputs", "multirun")
    assert process.returncode == 130
    assert err == f"interrupted by SIGINT\nfinished jobs: 1, in {sweep}/summary.csv\n"
    assert len(read_csv(sweep / "summary.csv")) == 1
    assert [path.parent.name for path in sweep.glob("*/results.json")] == ["0"]


def test_a_signal_between_two_jobs_ends_the_sweep(cli, tmp_path):
    """It comes while what a job has left is thrown away, where Python ignores what is raised."""
    done = cli(TOY, "-m", "x=-3,2")
    assert done.code == 130
    assert "interrupted by SIGINT\nfinished jobs: 1, in" in done.err


@pytest.mark.parametrize(
    ("arguments", "message", "folders"),
    [
        (("-m", "sweep.metric=test.loss"), "sweep.metric=test.loss: ", 0),
        (("-m", "nope=1,2"), "nope: nothing reads this key; ", 0),
        (("-m", "x=1,2", "sweep.metric=val.acuracy"), "sweep.metric=val.acuracy: expected a ", 1),
        (("-m", "x=1,2", "sweep.metric=vall.errors"), "sweep.metric=vall.errors: expected a ", 1),
        (("-m", "x=1,2", "sweep.metric=stage"), "sweep.metric=stage: expected a number", 1),
        (("-m", "x=1,2", "sweep.metric=vest.loss"), "sweep.metric=vest.loss: expected a number", 1),
    ],
)
def test_sweep_of_bad_input(cli, tmp_path, arguments, message, folders):
    """It leaves no folder, unless the first job, which is then the last, has to show it."""
    done = cli(TOY, *arguments)
    assert done.code == 2
    assert "best:" not in done.out
    assert done.err.startswith(message)
    assert "nearest is test" not in done.err  # test images never choose
    assert "nearest is stage" not in done.err  # which is no number
    assert len(done.err.splitlines()) == 1 + folders
    assert len(list(tmp_path.glob("outputs/multirun/*"))) == folders
    assert len(list(tmp_path.glob("outputs/multirun/*/*/results.json"))) == folders


def test_a_command_that_keeps_no_results_just_runs(cli, tmp_path):
    """Such as predict.py, which has no ``sweep`` in its configuration."""
    done = cli(TOY, "--config-name=plain", "-m", "x=1").ok()
    assert "best:" not in done.out
    assert len(list((tmp_path / "outputs").glob("multirun/*/*/results.json"))) == 1
