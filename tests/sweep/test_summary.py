"""The summary from the files of jobs that never ran."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.sweeping import read_summary, write_job
from omegaconf import OmegaConf

from lora_mnist.sweep.command import Column, Start
from lora_mnist.sweep.summary import Summary, summarize

ROOT = Path(__file__).parents[2]
METRIC = "val.accuracy"
DEFAULT = OmegaConf.load(ROOT / "configs" / "sweep" / "default.yaml")
COLUMNS = [Column(**column) for column in DEFAULT.columns]


def summary(folder: Path, metric: str | None = METRIC, mode: str = "max") -> Summary:
    metrics = list(DEFAULT.metrics)
    return summarize(folder, metric, mode, COLUMNS, "train.py", metrics, Start(**DEFAULT.start))


@pytest.mark.parametrize(("mode", "order"), [("max", "bca"), ("min", "acb")])
def test_best_first(tmp_path: Path, mode: str, order: str) -> None:
    for name, accuracy in (("a", 0.1), ("b", 0.9), ("c", 0.5)):
        write_job(tmp_path, name, [f"loss={name}"], accuracy=accuracy)
    found = summary(tmp_path, mode=mode)
    assert "".join(row.folder for row in found.rows) == order
    assert f"best: python train.py stage=lora loss={order[0]}\n" in found.text
    assert found.complaint is None
    assert (tmp_path / "summary.png").read_bytes().startswith(b"\x89PNG")


#: As the README shows it, in width and words.
TABLE = """
┏━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━┳━━━━━━━━━┓
┃      ┃ lora.rank ┃ val.accuracy ┃ val errors on 9 ┃ test.accuracy ┃ test errors on 9 ┃ seconds ┃
┡━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━╇━━━━━━━━━┩
│    1 │         8 │       0.9334 │               4 │        0.9248 │               13 │     1.2 │
│    2 │         4 │       0.9166 │               4 │        0.9248 │               13 │     1.2 │
│      │         0 │       failed │                 │               │                  │         │
├──────┼───────────┼──────────────┼─────────────────┼───────────────┼──────────────────┼─────────┤
│ base │           │       0.9300 │              38 │        0.9520 │               70 │         │
└──────┴───────────┴──────────────┴─────────────────┴───────────────┴──────────────────┴─────────┘
best: python train.py stage=lora lora.rank=8
failed: lora.rank=0: expected an integer >= 1
sweep: """


def write_table(folder: Path) -> None:
    more = {
        "val_base": {"accuracy": 0.93, "errors_of_target": 38},
        "test_base": {"accuracy": 0.952, "errors_of_target": 70},
        "test": {"accuracy": 0.92484, "errors_of_target": 13},
    }
    for rank, accuracy in ((4, 0.9166), (8, 0.93344)):
        overrides = [f"lora.rank={rank}"]
        write_job(folder, f"{rank}", overrides, accuracy=accuracy, digit=9, more=more)
    write_job(folder, "0", ["lora.rank=0"], error="expected an integer >= 1")


def test_the_table(tmp_path: Path) -> None:
    write_table(tmp_path)
    assert summary(tmp_path).text == f"{TABLE.lstrip()}{tmp_path}"


def test_a_terminal_gets_what_fits_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(tmp_path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for width in ("60", "80", "300"):
        monkeypatch.setenv("COLUMNS", width)
        text = summary(tmp_path).text
        assert "\x1b[1m" in text  # the best job stands out
        lines = re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()
        assert max(len(line) for line in lines if line[0] in "┃│") <= int(width)
        assert ("val.accuracy" in text) == (width == "300")


@pytest.mark.parametrize(
    ("mode", "base", "verdict"),
    [
        ("max", 0.8, "best"),
        ("max", 0.9, "no job is better than the base; the nearest"),
        ("max", None, "best"),
        ("min", 0.8, "no job is better than the base; the nearest"),
        ("min", 0.95, "best"),
    ],
)
def test_the_best_job_is_better_than_the_base(
    tmp_path: Path, mode: str, base: float | None, verdict: str
) -> None:
    more: Any = {} if base is None else {"val_base": {"accuracy": base}}
    write_job(tmp_path, "a", ["lora.rank=1"], accuracy=0.9, more=more)
    text = summary(tmp_path, mode=mode).text
    assert f"\n{verdict}: python train.py stage=lora lora.rank=1\n" in text
    assert ("│ base │" in text) == (base is not None)


def test_what_differs_from_base_to_base_stands_beside_each_job(tmp_path: Path) -> None:
    for rank, accuracy in ((1, 0.8), (2, 0.85)):
        more = {
            "test": {"accuracy": 0.9, "errors_of_target": 1},
            "test_base": {"accuracy": accuracy, "errors_of_target": 5},
        }
        write_job(tmp_path, f"{rank}", [f"lora.rank={rank}"], accuracy=0.9, more=more)
    text = summary(tmp_path).text
    assert "0.8500 -> 0.9000 │                1 │" in text
    assert re.search(r"│ base │ {11}│ {14}│ {17}│ {18}│ {16}5 │", text)


def test_equals_go_by_what_was_swept_and_numbers_by_value(tmp_path: Path) -> None:
    for rank in (10, 9, 1):
        write_job(tmp_path, f"{rank}-0", [f"lora.rank={rank}"], accuracy=0.5)
    assert [row.swept["lora.rank"] for row in summary(tmp_path).rows] == ["1", "9", "10"]


@pytest.mark.parametrize(
    ("digits", "title"),
    [
        ((9, 9), "val errors on 9"),
        ((9, 4), "val errors on target"),
        (([3, 5], [3, 5]), "val errors on 3,5"),
        (([3, 5], 3), "val errors on target"),
        ((None, None), "val errors on target"),
    ],
)
def test_a_title_names_what_all_jobs_share(
    tmp_path: Path, digits: tuple[object, object], title: str
) -> None:
    for seed, digit in enumerate(digits):
        write_job(tmp_path, str(seed), [f"seed={seed}"], accuracy=0.5, digit=digit)
    write_job(tmp_path, "failed", ["seed=2"], error="no")
    assert f"┃ {title} ┃" in summary(tmp_path).text


def test_a_column_that_no_job_fills_is_left_out(tmp_path: Path) -> None:
    write_job(tmp_path, "a", ["seed=0"], accuracy=0.5)
    columns = [Column("x", "no.such"), Column("total", "seconds.total", before="no.before")]
    text = summarize(tmp_path, None, "max", columns, "eval.py").text
    assert text.splitlines()[1] == "┃   ┃ seed ┃ total ┃"
    assert "│ 1 │    0 │   1.2 │" in text
    assert "best:" not in text


def test_every_number_of_later_versions_has_a_column(tmp_path: Path) -> None:
    write_job(tmp_path, "a", ["seed=0"], accuracy=0.5, more={"energy": {"joules": [7, 8]}})
    write_job(tmp_path, "b", ["seed=1"], accuracy=0.4, digit=[0, 1])
    summary(tmp_path)
    a, b = read_summary(tmp_path)
    assert (a["energy.joules.1"], b["energy.joules.1"]) == ("8", "")
    assert a["val.errors_of_target"] == "4"
    assert a["seconds.total"] == "1.25"
    assert (a["folder"], a["status"], a["error"]) == ("a", "finished", "")


def test_what_is_not_finished_is_named(tmp_path: Path) -> None:
    write_job(tmp_path, "a-2", ["lora.rank=1"], accuracy=0.5)
    write_job(tmp_path, "b-1", ["lora.rank=0"], error="expected an integer >= 1")
    write_job(tmp_path, "c-1", ["lora.rank=3"])
    torn = write_job(tmp_path, "d-1", ["lora.rank=4"], accuracy=0.9)
    (torn / "results.json").write_text('{"val": {"accuracy": 0.')
    lost = write_job(tmp_path, "e-1", ["lora.rank=5"], accuracy=0.9)
    (lost / "job.json").write_text('{"number": 3}')
    found = summary(tmp_path)
    lines = found.text.splitlines()
    assert "failed: lora.rank=0: expected an integer >= 1" in lines
    assert "interrupted: lora.rank=3" in lines
    assert "damaged: lora.rank=4: results.json is damaged" in lines
    assert "damaged: e-1: job.json is damaged at command" in lines
    statuses = [row["status"] for row in read_summary(tmp_path)]
    assert statuses[0] == "finished"
    assert sorted(statuses[1:]) == ["damaged", "damaged", "failed", "interrupted"]
    assert "best: python train.py stage=lora lora.rank=1\n" in found.text


def test_only_damaged_jobs(tmp_path: Path) -> None:
    (write_job(tmp_path, "a", ["seed=0"]) / "job.json").write_text("[]")
    assert "damaged: a: job.json is damaged" in summary(tmp_path).text


@pytest.mark.parametrize("name", ["[/nope]", "[bold]", ":smile:", "[link"])
def test_markup_in_names_is_text(tmp_path: Path, name: str) -> None:
    more = {"target": name}
    for seed in (0, 1):
        write_job(tmp_path, f"{seed}", [f"x={name}{seed}", f"y{name}=1"], accuracy=0.5, more=more)
    write_job(tmp_path, "f", [f"x={name}2", f"y{name}=1"], error=name)
    text = summary(tmp_path).text
    for shown in (f"{name}0 ", f"y{name} ", f"val errors on {name} "):
        assert shown in text
    assert text.splitlines()[-2].endswith(f": {name}")


@pytest.mark.parametrize("metric", ["val.nope_per_class.0", "val.errors_per_class"])
def test_a_metric_that_no_job_has(tmp_path: Path, metric: str) -> None:
    write_job(tmp_path, "a", ["seed=0"], accuracy=0.5)
    found = summary(tmp_path, metric)
    assert found.complaint == (
        f"sweep.metric={metric}: no job has it; "
        "expected one of val.accuracy, val.errors_of_target, or null"
    )
    assert "best:" not in found.text


def test_no_metric_at_all(tmp_path: Path) -> None:
    write_job(tmp_path, "a", ["seed=0"], accuracy=0.5, more={"val": {}})
    assert summary(tmp_path).complaint == "sweep.metric=val.accuracy: no job has it; expected null"


def test_nan_is_never_best(tmp_path: Path) -> None:
    write_job(tmp_path, "a", ["seed=0"], accuracy=float("nan"))
    write_job(tmp_path, "b", ["seed=1"], accuracy=0.5)
    for mode in ("min", "max"):
        assert [row.folder for row in summary(tmp_path, mode=mode).rows] == ["b", "a"]


def test_long_sweeps_are_cut_on_the_screen_alone(tmp_path: Path) -> None:
    for seed in range(30):
        write_job(tmp_path, str(seed), [f"seed={seed}"], accuracy=0.5)
    assert "... 10 more in summary.csv" in summary(tmp_path).text
    assert len(read_summary(tmp_path)) == 30


def test_a_best_job_that_drops_a_key(tmp_path: Path) -> None:
    write_job(tmp_path, "a", ["seed=0", "~scheduler"], accuracy=0.5)
    assert "best: python train.py stage=lora seed=0 '~scheduler'\n" in summary(tmp_path).text


def test_a_sweep_without_a_job(tmp_path: Path) -> None:
    assert summary(tmp_path).text == "no job has started"
    assert list(tmp_path.iterdir()) == []
