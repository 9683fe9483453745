from pathlib import Path
from typing import Any

import pytest
from helpers.sweeping import write_job
from omegaconf import OmegaConf

import lora_mnist.show.sweep_report
from lora_mnist.show.sweep_report import REPORT_FILE, SweepReport, make_sweep_report

BASE = {"val_base": {"accuracy": 0.9, "errors_of_target": 8}}


def sweep(folder: Path, accuracies: tuple[float, ...], **config: Any) -> Path:
    for rank, accuracy in enumerate(accuracies, start=1):
        overrides = [f"lora.rank={rank}", f"lora.alpha={rank % 2}"]
        write_job(folder, f"job{rank}", overrides, accuracy=accuracy, more=BASE)
    ranking = {
        "metric": "val.accuracy",
        "mode": "max",
        "fail_fast": False,
        "columns": [{"title": "val errors on {target}", "value": "val.errors_of_target"}],
        "start": {"title": "base", "suffix": "_base"},
    }
    OmegaConf.save(OmegaConf.create({"sweep": {**ranking, **config}}), folder / "multirun.yaml")
    return folder


def test_jobs_best_first_and_their_base(tmp_path: Path) -> None:
    page = make_sweep_report(sweep(tmp_path, (0.91, 0.95, 0.8))).read_text()
    assert (
        "<h1>best: val.accuracy 0.9500 with lora.rank=2 lora.alpha=0; the base has 0.9000" in page
    )
    accuracies = [page.index(f'data-value="{value}"') for value in (0.95, 0.91, 0.8)]
    assert accuracies == sorted(accuracies)
    foot = page[page.index("<tfoot>") :]
    assert '<td>base</td><td></td><td></td><td data-value="0.9">0.9000</td>' in foot
    assert "val errors on 1" in page
    assert "<svg" in page  # the heat map
    assert "python train.py stage=lora lora.rank=2 lora.alpha=0" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_says_so_when_no_job_is_better(tmp_path: Path) -> None:
    page = make_sweep_report(sweep(tmp_path, (0.7, 0.9))).read_text()
    assert "<h1>no job is better than the base; the nearest: val.accuracy 0.9000" in page


def test_the_smaller_is_better(tmp_path: Path) -> None:
    page = make_sweep_report(sweep(tmp_path, (0.7, 0.8), mode="min")).read_text()
    assert "<h1>best: val.accuracy 0.7000 with lora.rank=1" in page


def test_jobs_that_failed_are_listed_last(tmp_path: Path) -> None:
    folder = sweep(tmp_path, (0.7,))
    write_job(folder, "bad", ["lora.rank=<b>", "lora.alpha=1"], error="no & space")
    page = make_sweep_report(folder).read_text()
    assert "<td>failed</td><td>&lt;b&gt;</td>" in page
    assert "<td>1</td><td>1</td>" in page


@pytest.mark.parametrize("content", [None, "{", "- a", "sweep: {metric: test.accuracy}"])
def test_an_older_sweep_is_listed_by_accuracy(tmp_path: Path, content: str | None) -> None:
    folder = sweep(tmp_path, (0.7, 0.8))
    (folder / "multirun.yaml").unlink()
    if content:
        (folder / "multirun.yaml").write_text(content)
    make_sweep_report(folder)


def test_refuses_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no job of a sweep"):
        make_sweep_report(tmp_path)


def test_is_made_at_the_end_of_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    SweepReport().on_multirun_end(cfg)
    assert not (tmp_path / REPORT_FILE).exists()
    sweep(tmp_path, (0.7,))
    SweepReport().on_multirun_end(cfg)
    assert (tmp_path / REPORT_FILE).exists()

    def fail(folder: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr(lora_mnist.show.sweep_report, "make_sweep_report", fail)
    SweepReport().on_multirun_end(cfg)
    assert "the report was not drawn (no space)" in caplog.text
