import json
from pathlib import Path

import pytest
from helpers.runs import outcome, repaired, write_run

from lora_mnist.disk.predictions import PREDICTIONS_FILE
from lora_mnist.show.report import make_report
from lora_mnist.show.tables import results_text


@pytest.mark.parametrize("stage", ["lora", "finetune", "pretrain"])
def test_a_report_of_each_stage(tmp_path: Path, stage: str) -> None:
    write_run(tmp_path, stage)
    page = make_report(tmp_path).read_text()
    for said in ("Each class", "Which predictions", "cat", "farm", "stage=lora"):
        assert said in page
    assert "largest confusions, base: 1 image of cat taken for dog, 1 image of dog" in page
    assert page.count('alt="Some images of each confusion"') == 1 + (stage != "pretrain")
    assert ("Repaired" in page) == (stage != "pretrain")
    assert ("Inside the adapter" in page) == (stage == "lora")
    assert ("did not move by one bit" in page) == (stage == "lora")
    assert page.count('<tr class="mark"><td>dog</td>') == (stage != "pretrain")
    advice = "<code>experiment=repair digit=dog</code> repairs them."
    assert (advice in page) == (stage == "pretrain")


def test_mistakes_are_in_the_table_and_in_the_report(tmp_path: Path) -> None:
    learnt = {"mistakes": repaired([9], [0], [8], 9), "mistakes_base": outcome([9], 9)}
    found = write_run(tmp_path, digit=None, **learnt)
    assert "mistakes learnt: right 0 → 8 of 9" in make_report(tmp_path).read_text()
    assert "held out" not in results_text(found)
    assert "│ learnt   │                   0 │         8 │      9 │" in results_text(found)


def test_needs_nothing_from_elsewhere_and_runs_nothing(tmp_path: Path) -> None:
    """Names of classes, and a configuration, that try to be markup."""
    write_run(tmp_path)
    page = make_report(tmp_path).read_text()
    assert "<script" not in page
    assert "<b>cow" not in page
    assert "&lt;b&gt;cow&lt;/b&gt;" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    for tag in ("src=", "href="):
        assert {piece[:6] for piece in page.split(tag)[1:]} <= {'"data:'}


def test_results_alone_are_enough(tmp_path: Path) -> None:
    """As of a run from Python, whose seed was not set."""
    found = write_run(tmp_path, "finetune")
    (tmp_path / ".hydra" / "config.yaml").unlink()
    (tmp_path / PREDICTIONS_FILE).unlink()
    (tmp_path / "results.json").write_text(json.dumps({**found, "seed": None}))
    page = make_report(tmp_path).read_text()
    assert "There is no predictions.safetensors" in page
    assert "Configuration" not in page


@pytest.mark.parametrize("name", ["results.json", PREDICTIONS_FILE])
def test_from_what_is_damaged_nothing_is_drawn(tmp_path: Path, name: str) -> None:
    """The report and the figures that were drawn before stay."""
    write_run(tmp_path)
    make_report(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:50])
    with pytest.raises(ValueError, match=r"."):
        make_report(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def test_several_repairs_in_a_row_are_a_table(tmp_path: Path) -> None:
    write_run(tmp_path, in_a_row=[[2, 9, 1], [3, 4, 1], [5, 2, 0]])
    page = make_report(tmp_path).read_text()
    assert "<td>repair 2</td><td>5</td><td>2</td><td>0</td><td>7</td>" in page
