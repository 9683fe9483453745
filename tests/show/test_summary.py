"""The summary of a sweep, from the files of jobs that never ran."""

import pytest
from helpers.commands import read_csv, split_cells
from helpers.sweeping import COLUMNS, write_job

from lora_mnist.measure.class_weights import MEASURES
from lora_mnist.project import format_command
from lora_mnist.show.summary import (
    choose_direction,
    format_best_job,
    format_sweep_table,
    summarize,
    write_summary,
)


def printed(sweep, metric="val.accuracy"):
    """What the sweep prints at its end."""
    summary = summarize(sweep, metric)
    write_summary(summary)
    return "\n".join([format_sweep_table(summary, COLUMNS), format_best_job(summary.best, metric)])


def test_sweeps_table(tmp_path):
    more = {
        "val_base": {"accuracy": 0.93, "errors_of_target": 38},
        "test_base": {"accuracy": 0.952},
        "test": {"accuracy": 0.92484},
        "point": {"scale": 0.5, "offset": 0},
    }
    for rank, accuracy in ((4, 0.9166), (8, 0.93344)):
        write_job(tmp_path, f"{rank}", [f"lora.rank={rank}"], accuracy=accuracy, more=more)
    write_job(tmp_path, "0", ["lora.rank=0"], error="expected an integer >= 1")
    text = printed(tmp_path)
    heads, *rows, base = split_cells(text)
    titles = ["", "lora.rank", "val.accuracy", "val errors on target"]
    assert heads == [*titles, "test accuracy", "scale", "seconds"]
    assert rows[0] == ["1", "8", "0.9334", "4", "0.9248", "0.5000", "1.250"]
    assert rows[1] == ["2", "4", "0.9166", "4", "0.9248", "0.5000", "1.250"]
    assert base == ["base", "", "0.9300", "38", "0.9520", "", ""]
    assert text.splitlines()[-1].startswith("best: ")
    assert [job.error for job in summarize(tmp_path, "").failed] == ["expected an integer >= 1"]


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
    command = format_command("train", ["stage=lora", f"lora.rank={rank}"])
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
    command = format_command("train", ["stage=lora", "seed=0", "lora.rank=2"])
    assert text.splitlines()[-1] == f"best by the mean of 2 seeds: {command}"
    rows = read_csv(tmp_path / "summary.csv")
    assert [row["lora.rank"] + row["seed"] for row in rows] == ["20", "21", "10", "11", "12", "22"]


@pytest.mark.parametrize("measure", MEASURES)
def test_a_larger_p_value_is_no_better(measure):
    assert choose_direction(f"val.{measure}") == choose_direction("test.repaired") == "max"
    assert (
        choose_direction("scale_curve.base.weighted_accuracy")
        == choose_direction("scale_curve.base.score")
        == "max"
    )
    assert choose_direction(f"val.p_value_{measure}") == choose_direction("val.errors") == "min"
