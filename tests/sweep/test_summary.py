"""The summary, from the files of jobs that never ran."""

import re

import pytest
from helpers.sweeping import COLUMNS, read_summary, write_job

from lora_mnist.sweep.summary import findings, summarize, table_text


@pytest.fixture(autouse=True)
def train_py(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py"])


def summary(folder, metric="val.accuracy"):
    """What a sweep prints."""
    made = summarize(folder, metric, COLUMNS)
    return "\n".join([table_text(made), *findings(made)])


#: As the README shows it, in width and words.
TABLE = """
┏━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━┳━━━━━━━━━┓
┃        ┃ lora.rank ┃ val.accuracy ┃ val errors on target ┃ test accuracy ┃ seconds ┃
┡━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━╇━━━━━━━━━┩
│      1 │         8 │       0.9334 │                    4 │        0.9248 │   1.250 │
│      2 │         4 │       0.9166 │                    4 │        0.9248 │   1.250 │
│ failed │         0 │              │                      │               │         │
├────────┼───────────┼──────────────┼──────────────────────┼───────────────┼─────────┤
│   base │           │       0.9300 │                   38 │        0.9520 │         │
└────────┴───────────┴──────────────┴──────────────────────┴───────────────┴─────────┘
best: python train.py stage=lora lora.rank=8
failed: lora.rank=0: expected an integer >= 1"""


def test_the_table(tmp_path):
    more = {
        "val_base": {"accuracy": 0.93, "errors_of_target": 38},
        "test_base": {"accuracy": 0.952},
        "test": {"accuracy": 0.92484},
    }
    for rank, accuracy in ((4, 0.9166), (8, 0.93344)):
        job = [f"lora.rank={rank}"]
        write_job(tmp_path, f"{rank}", job, accuracy=accuracy, more=more)
    write_job(tmp_path, "0", ["lora.rank=0"], error="expected an integer >= 1")
    assert summary(tmp_path) == TABLE.lstrip()
    assert [row["lora.rank"] for row in read_summary(tmp_path)] == ["8", "4", "0"]


CHANCE = "best, but beside the base it may be chance (p = 0.06 for the best of 2)"


@pytest.mark.parametrize(
    ("metric", "base", "p_value", "verdict"),
    [
        ("accuracy", 0.5, 0.03, CHANCE),
        ("errors", 0.5, 0.01, "no job is better than the base; the nearest"),
        ("loss", 0.95, 0.3, "best"),
    ],
)
def test_the_best_job_is_better_than_its_start(tmp_path, metric, base, p_value, verdict):
    """The smallest loss is the best, the largest accuracy."""
    best = "1" if metric == "accuracy" else "2"
    for rank, value in (("1", 0.8), ("2", 0.7)):
        more = {"val": {metric: value, "p_value": p_value}, "val_base": {metric: base}}
        write_job(tmp_path, rank, [f"lora.rank={rank}"], accuracy=0.0, more=more)
    text = summary(tmp_path, metric=f"val.{metric}")
    assert text.endswith(f"\n{verdict}: python train.py stage=lora lora.rank={best}")


def test_a_lucky_seed_is_not_crowned(tmp_path):
    """Jobs that differ in their seed alone are one: the mean decides."""
    accuracies = {(1, 0): 0.95, (1, 1): 0.75, (1, 2): 0.85, (2, 0): 0.9, (2, 1): 0.88}
    for (rank, seed), accuracy in accuracies.items():
        overrides = [f"seed={seed}", f"lora.rank={rank}"]
        write_job(tmp_path, f"{rank}-{seed}", overrides, accuracy=accuracy)
    write_job(tmp_path, "2-2", ["seed=2", "lora.rank=2"], error="no")
    text = summary(tmp_path)
    assert "┃ seeds ┃" in text
    assert "│      1 │         2 │     2 │ 0.8900 ± 0.01414 │" in text
    assert "│      2 │         1 │     3 │  0.8500 ± 0.1000 │" in text
    best = "best (mean of 2 seeds 0.8900 ± 0.01414): python train.py stage=lora seed=0 lora.rank=2"
    assert f"{best}\n" in text
    assert text.endswith("failed: seed=2 lora.rank=2: no")
    rows = read_summary(tmp_path)
    assert [row["lora.rank"] + row["seed"] for row in rows] == ["20", "21", "10", "11", "12", "22"]


def test_several_seeds_have_a_deviation_and_no_p_value(tmp_path):
    for seed, errors in enumerate((30, 20, 25)):
        more = {"val": {"errors": errors, "p_value": 1.0}, "val_base": {"errors": 40}}
        write_job(tmp_path, f"{seed}", [f"seed={seed}"], accuracy=0.0, more=more)
    text = summary(tmp_path, metric="val.errors")
    assert "\nbest (mean of 3 seeds 25 ± 5.000, base 40): python train.py stage=lora seed=0" in text
    assert "p = " not in text


def test_jobs_on_another_base_are_no_seeds_of_the_same_setting(tmp_path):
    for seed, base in ((0, "old"), (1, "old"), (2, "new")):
        overrides = [f"seed={seed}", "lora.rank=1"]
        accuracy, more = 0.5 + 0.1 * seed, {"base_sha256": base}
        write_job(tmp_path, f"{seed}", overrides, accuracy=accuracy, base=base, more=more)
    text = summary(tmp_path)
    assert re.findall(r"│ +\d │ +(\d) │", text) == ["1", "2"]
