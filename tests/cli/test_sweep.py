"""Sweeps: whole ones of a toy command, and the summary by itself."""

import signal
import time

import pytest
from helpers.commands import cells_of, only_run, read_csv
from helpers.sweeping import COLUMNS, TOY, start, write_job

from lora_mnist.cli.sweep import best_line, summarize, table_text, write_summary
from lora_mnist.project import command_line

# --- whole sweeps --------------------------------------------------------------------------------


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
        (("-m", "x=1,2", "sweep.metric=stage"), "sweep.metric=stage: expected a number", 1),
    ],
)
def test_sweep_of_bad_input(cli, tmp_path, arguments, message, folders):
    """It leaves no folder, unless the first job, which is then the last, has to show it."""
    done = cli(TOY, *arguments)
    assert done.code == 2
    assert "best:" not in done.out
    assert done.err.startswith(message)
    assert len(done.err.splitlines()) == 1 + folders
    assert len(list(tmp_path.glob("outputs/multirun/*"))) == folders
    assert len(list(tmp_path.glob("outputs/multirun/*/*/results.json"))) == folders


def test_a_column_that_no_job_has_is_named_after_the_first_one(cli):
    done = cli(TOY, "-m", "x=1,2", "+sweep.columns.missed=val.erors").ok()
    (line,) = done.err.splitlines()
    assert line.startswith("sweep.columns.missed=val.erors: ")
    assert line.endswith("the nearest is val.errors")


def test_a_command_that_keeps_no_results_just_runs(cli, tmp_path):
    """Such as predict.py, which has no ``sweep`` in its configuration."""
    done = cli(TOY, "--config-name=plain", "-m", "x=1").ok()
    assert "best:" not in done.out
    assert len(list((tmp_path / "outputs").glob("multirun/*/*/results.json"))) == 1


# --- the summary, from the files of jobs that never ran ------------------------------------------


def printed(sweep, metric="val.accuracy"):
    """What the sweep prints at its end."""
    summary = summarize(sweep, metric)
    write_summary(summary)
    return "\n".join([table_text(summary, COLUMNS), best_line(summary.best, metric)])


def test_sweeps_table(tmp_path):
    more = {
        "val_base": {"accuracy": 0.93, "errors_of_target": 38},
        "test_base": {"accuracy": 0.952},
        "test": {"accuracy": 0.92484},
        "scale": 0.5,
    }
    for rank, accuracy in ((4, 0.9166), (8, 0.93344)):
        write_job(tmp_path, f"{rank}", [f"lora.rank={rank}"], accuracy=accuracy, more=more)
    write_job(tmp_path, "0", ["lora.rank=0"], error="expected an integer >= 1")
    text = printed(tmp_path)
    heads, *rows, base = cells_of(text)
    titles = ["", "lora.rank", "val.accuracy", "val errors on target"]
    assert heads == [*titles, "test accuracy", "scale", "seconds"]
    assert rows[0] == ["1", "8", "0.9334", "4", "0.9248", "0.5000", "1.250"]
    assert rows[1] == ["2", "4", "0.9166", "4", "0.9248", "0.5000", "1.250"]
    assert base == ["base", "", "0.9300", "38", "0.9520", "", ""]
    assert text.splitlines()[-1].startswith("best: ")
    assert [job.error for job in summarize(tmp_path, "").failed] == ["expected an integer >= 1"]


def test_adapters_that_are_turned_off_are_counted(tmp_path):
    for number, scale in enumerate((0.0, 0.5, 0.0)):
        more = {"scale": scale}
        write_job(tmp_path, f"{number}", [f"lora.rank={number}"], accuracy=0.9, more=more)
    assert "\n2 of 3 adapters are turned off (scale 0)\n" in printed(tmp_path)
    write_job(tmp_path, "0", ["lora.rank=0"], accuracy=0.9, more={"stage": "eval", "scale": 0.0})
    assert "1 of 2 adapters" in printed(tmp_path)


@pytest.mark.parametrize(
    ("metric", "base", "verdict", "rank"),
    [
        ("accuracy", 0.5, "best", 1),
        ("errors", 0.5, "no job is better than the base; the nearest", 2),
        ("loss", 0.95, "best", 2),
    ],
)
def test_the_best_job_is_better_than_its_start(tmp_path, metric, base, verdict, rank):
    """The smallest loss is the best, the largest accuracy."""
    for number, value in enumerate((0.8, 0.7), start=1):
        more = {"val": {metric: value}, "val_base": {metric: base}}
        write_job(tmp_path, f"{number}", [f"lora.rank={number}"], accuracy=0.0, more=more)
    text = printed(tmp_path, f"val.{metric}")
    assert "│ base │ " in text
    command = command_line("train", ["stage=lora", f"lora.rank={rank}"])
    assert text.splitlines()[-1] == f"{verdict}: {command}"


def test_best_job_is_none_of_a_lucky_seed(tmp_path):
    """Jobs that differ in their seed alone are one: the mean decides."""
    accuracies = {(1, 0): 0.95, (1, 1): 0.75, (1, 2): 0.85, (2, 0): 0.9, (2, 1): 0.88}
    for (rank, seed), accuracy in accuracies.items():
        overrides = [f"seed={seed}", f"lora.rank={rank}"]
        write_job(tmp_path, f"{rank}-{seed}", overrides, accuracy=accuracy)
    write_job(tmp_path, "2-2", ["seed=2", "lora.rank=2"], error="no")
    text = printed(tmp_path)
    assert "┃ seeds ┃" in text
    assert "│ 1 │         2 │     2 │ 0.8900 ± 0.01414 │" in text
    assert "│ 2 │         1 │     3 │  0.8500 ± 0.1000 │" in text
    command = command_line("train", ["stage=lora", "seed=0", "lora.rank=2"])
    assert text.splitlines()[-1] == f"best by the mean of 2 seeds: {command}"
    rows = read_csv(tmp_path / "summary.csv")
    assert [row["lora.rank"] + row["seed"] for row in rows] == ["20", "21", "10", "11", "12", "22"]
