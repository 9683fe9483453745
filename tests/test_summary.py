"""The summary from the files of jobs that never ran."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_mnist.figures import draw_sweep
from lora_mnist.summary import flatten, read_rows, summarize

METRIC = "val.accuracy"


def write_job(sweep: Path, name: str, overrides: list[str], **outcome: Any) -> None:
    """A job's folder; ``accuracy`` makes it finished, ``error`` failed, neither interrupted."""
    folder = sweep / name
    folder.mkdir(parents=True)
    record = {
        "number": 0,
        "command": outcome.get("command", 1),
        "overrides": ["stage=lora", *overrides],
        "varied": [override.split("=")[0] for override in overrides],
        "error": outcome.get("error"),
    }
    (folder / "job.json").write_text(json.dumps(record))
    if "accuracy" in outcome:
        val = {"accuracy": outcome["accuracy"], "errors_per_class": [3, 4]}
        results = {"digit": outcome.get("digit", 1), "val": val, "seconds": {"total": 1.25}}
        (folder / "results.json").write_text(json.dumps(results | outcome.get("more", {})))


def read_csv(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_flatten() -> None:
    nested = {"a": {"b": 1, "c": [2, {"d": 3}]}, "e": None}
    assert flatten(nested) == {"a.b": 1, "a.c.0": 2, "a.c.1.d": 3, "e": None}


@pytest.mark.parametrize(("mode", "order"), [("max", "bca"), ("min", "acb")])
def test_best_first(tmp_path: Path, mode: str, order: str) -> None:
    for name, accuracy in (("a", 0.1), ("b", 0.9), ("c", 0.5)):
        write_job(tmp_path, name, [f"loss={name}"], accuracy=accuracy)
    summary = summarize(tmp_path, METRIC, mode, "train.py")
    assert "".join(row.folder for row in summary.rows) == order
    assert f"best: python train.py stage=lora loss={order[0]}\n" in summary.text
    assert summary.complaint is None


def test_equals_go_by_what_was_swept_and_numbers_by_value(tmp_path: Path) -> None:
    for rank in (10, 9, 1):
        write_job(tmp_path, f"{rank}-0", [f"lora.rank={rank}"], accuracy=0.5)
    rows = summarize(tmp_path, METRIC, "max", "train.py").rows
    assert [row.swept["lora.rank"] for row in rows] == ["1", "9", "10"]


def test_every_number_of_later_versions_has_a_column(tmp_path: Path) -> None:
    write_job(tmp_path, "a", ["seed=0"], accuracy=0.5, more={"energy": {"joules": [7, 8]}})
    write_job(tmp_path, "b", ["seed=1"], accuracy=0.4, digit=[0, 1])
    summarize(tmp_path, METRIC, "max", "train.py")
    a, b = read_csv(tmp_path)
    assert (a["energy.joules.1"], b["energy.joules.1"]) == ("8", "")
    assert (a["val.errors_on_class"], b["val.errors_on_class"]) == ("4", "7")
    assert a["seconds.total"] == "1.25"
    assert (a["folder"], a["status"], a["error"]) == ("a", "finished", "")


def test_failures_are_listed_until_they_are_made_good(tmp_path: Path) -> None:
    write_job(tmp_path, "a-1", ["lora.rank=1"], error="no such file")
    write_job(tmp_path, "a-2", ["lora.rank=1"], accuracy=0.5)
    write_job(tmp_path, "b-1", ["lora.rank=0"], error="expected an integer >= 1")
    write_job(tmp_path, "c-1", ["lora.rank=3"])
    summary = summarize(tmp_path, METRIC, "max", "train.py")
    assert [row.status for row in summary.rows] == ["finished", "failed", "interrupted"]
    assert "failed: lora.rank=0: expected an integer >= 1" in summary.text
    assert "interrupted: lora.rank=3" in summary.text
    assert [row["status"] for row in read_csv(tmp_path)] == ["finished", "failed", "interrupted"]


def test_a_key_that_was_not_set_has_its_configured_value(tmp_path: Path) -> None:
    write_job(tmp_path, "a", ["lora.rank=1"], accuracy=0.5)
    (tmp_path / "a" / ".hydra").mkdir()
    (tmp_path / "a" / ".hydra" / "config.yaml").write_text("lora:\n  alpha: 1.0\n")
    write_job(tmp_path, "b", ["lora.rank=1", "lora.alpha=4"], accuracy=0.5)
    write_job(tmp_path, "c", ["lora.rank=2"])
    (tmp_path / "c" / ".hydra").mkdir()
    (tmp_path / "c" / ".hydra" / "config.yaml").write_text("lora: {alpha")  # killed meanwhile
    swept = {row.folder: row.swept for row in read_rows(tmp_path)}
    assert swept["a"] == {"lora.rank": "1", "lora.alpha": "1.0"}
    assert swept["c"] == {"lora.rank": "2", "lora.alpha": ""}


@pytest.mark.parametrize("metric", ["val.nope", "val.errors_per_class"])
def test_a_metric_that_no_job_has(tmp_path: Path, metric: str) -> None:
    write_job(tmp_path, "a", ["seed=0"], accuracy=0.5)
    summary = summarize(tmp_path, metric, "max", "train.py")
    assert summary.complaint == (
        f"sweep.metric={metric}: no job has it; "
        "expected one of val.accuracy, val.errors_on_class, or null"
    )
    assert "best:" not in summary.text


def test_nan_is_never_best(tmp_path: Path) -> None:
    write_job(tmp_path, "a", ["seed=0"], accuracy=float("nan"))
    write_job(tmp_path, "b", ["seed=1"], accuracy=0.5)
    for mode in ("min", "max"):
        summary = summarize(tmp_path, METRIC, mode, "train.py")
        assert [row.folder for row in summary.rows] == ["b", "a"]


def test_long_sweeps_are_cut_on_the_screen_alone(tmp_path: Path) -> None:
    for seed in range(30):
        write_job(tmp_path, str(seed), [f"seed={seed}"], accuracy=0.5)
    summary = summarize(tmp_path, METRIC, "max", "train.py")
    assert "... 10 more in summary.csv" in summary.text
    assert len(read_csv(tmp_path)) == 30


def grid(*keys: str) -> list[tuple[dict[str, str], float | None]]:
    values = ("1", "2", "16")
    cells = [
        dict(zip(keys, (a, b, c), strict=False)) for a in values for b in values for c in values
    ]
    unique = [dict(cell) for cell in {tuple(cell.items()) for cell in cells}]
    return [(cell, sum(map(float, cell.values()))) for cell in unique]


@pytest.mark.parametrize(
    ("points", "labels"),
    [
        (grid("lora.rank"), {"lora.rank", METRIC}),
        (grid("lora.rank", "lora.alpha"), {"lora.rank", "lora.alpha", METRIC}),
        (
            [*grid("lora.rank", "lora.alpha"), ({"lora.rank": "0", "lora.alpha": "1"}, None)],
            {"lora.rank", "lora.alpha", METRIC},
        ),
        (grid("lora.rank", "seed"), {"lora.rank", f"mean {METRIC} over seeds"}),
        (grid("lora.rank", "lora.alpha", "digit"), {"lora.rank", "lora.alpha", "digit", METRIC}),
        ([({"loss": "focal"}, 0.5), ({"loss": "hinge"}, 0.4)], {"loss", METRIC}),
        ([({"seed": "0"}, 0.5)], {"seed", METRIC}),
    ],
)
def test_both_axes_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, points: Any, labels: set[str]
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))
    )
    draw_sweep(tmp_path / "a.png", points, METRIC, "max")
    names = {text for axes in drawn[0].axes for text in (axes.get_xlabel(), axes.get_ylabel())}
    assert names - {""} == labels
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) >= 400
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50
