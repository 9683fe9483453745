import base64
from pathlib import Path
from typing import Any

import pytest
from helpers.sweeping import write_job, write_sweep

from lora_mnist.show.sweep_report import make_sweep_report
from lora_mnist.sweep.summary import Ranked, summarize

BASE = {"val_base": {"accuracy": 0.9, "errors_of_target": 8}}


def report(folder: Path, accuracies: tuple[float, ...], **sweep: Any) -> str:
    for rank, accuracy in enumerate(accuracies, start=1):
        overrides = [f"lora.rank={rank}", f"lora.alpha={rank % 2}"]
        write_job(folder, f"job{rank}", overrides, accuracy=accuracy, more=BASE)
    write_sweep(folder, **sweep)
    summarize(Ranked(folder))
    return make_sweep_report(folder).read_text()


def test_jobs_best_first_and_their_base(tmp_path: Path) -> None:
    page = report(tmp_path, (0.91, 0.95, 0.8))
    best = "best: val.accuracy 0.9500 with lora.rank=2 lora.alpha=0; the base has 0.9000"
    assert f"<h1>{best}</h1>" in page
    places = [page.index(f"<td>{accuracy}</td>") for accuracy in ("0.9500", "0.9100", "0.8000")]
    assert places == sorted(places)
    assert "<td>base</td><td></td><td></td><td>0.9000</td>" in page[page.index("<tfoot>") :]
    assert "val errors on 1" in page
    assert base64.b64encode((tmp_path / "summary.png").read_bytes()).decode() in page
    assert "<pre>python train.py stage=lora lora.rank=2 lora.alpha=0</pre>" in page
    assert "http" not in page


@pytest.mark.parametrize(
    ("mode", "headline"),
    [
        ("max", "no job is better than the base; the nearest: val.accuracy 0.8000"),
        ("min", "best: val.accuracy 0.7000 with lora.rank=1"),
    ],
)
def test_says_which_job_is_better_than_the_base(tmp_path: Path, mode: str, headline: str) -> None:
    assert f"<h1>{headline}" in report(tmp_path, (0.7, 0.8), mode=mode)


def test_names_are_escaped_and_failures_listed(tmp_path: Path) -> None:
    write_job(tmp_path, "bad", ["lora.rank=<b>", "lora.alpha=1"], error="no & space")
    page = report(tmp_path, (0.7,), commands=["python train.py '<x>'"])
    assert "<td>&lt;b&gt;</td><td>failed</td>" in page
    assert "python train.py &#39;&lt;x&gt;&#39;" in page


def test_a_folder_without_jobs_is_refused(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    with pytest.raises(ValueError, match="no job of a sweep"):
        make_sweep_report(tmp_path)
