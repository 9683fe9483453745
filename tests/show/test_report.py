import json
import logging
from pathlib import Path
from typing import Any

import pytest
from composed import logged
from helpers.runs import answers, images, results, write_run
from lightning.pytorch import Trainer

import lora_mnist.show.report
from lora_mnist.disk.predictions import write_answers
from lora_mnist.show.report import REPORT_FILE, make_report, show_run


def trainer() -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)


@pytest.mark.parametrize("stage", ["lora", "finetune", "pretrain"])
def test_a_report_of_each_stage(tmp_path: Path, stage: str) -> None:
    write_run(tmp_path, stage)
    page = make_report(tmp_path).read_text()
    for said in ("errors", "Each class", "Which answers", "cat", "farm"):
        assert said in page
    assert ("Repaired" in page) == (stage != "pretrain")
    assert ("Inside the adapter" in page) == (stage == "lora")
    assert ("did not move by one bit" in page) == (stage == "lora")
    assert (tmp_path / REPORT_FILE).stat().st_size < 2e6


def test_needs_nothing_from_elsewhere_and_runs_nothing(tmp_path: Path) -> None:
    """Names of classes, and a configuration, that try to be markup."""
    write_run(tmp_path)
    page = make_report(tmp_path).read_text()
    assert "<script" not in page
    assert "<b>cow" not in page
    assert "&lt;b&gt;cow&lt;/b&gt;" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    for tag in ("src=", "href="):
        kinds = {piece[:6] for piece in page.split(tag)[1:]}
        assert all(kind.startswith(('"data:', '"#')) for kind in kinds), kinds
    assert "@import" not in page


def test_the_classes_to_repair_stand_out(tmp_path: Path) -> None:
    write_run(tmp_path)
    page = make_report(tmp_path).read_text()
    assert page.count("<tr class=mark><td>dog</td>") == 1


def test_a_layer_that_sees_no_pixels_is_named(tmp_path: Path) -> None:
    write_run(tmp_path)
    said = "No adapted layer sees the pixels"
    assert said not in make_report(tmp_path).read_text()
    write_answers(answers(), images(side=3), tmp_path)
    assert said in make_report(tmp_path).read_text()


def test_without_answers_it_says_what_is_missing(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "answers.safetensors").unlink()
    with logged("lora_mnist.report") as text:
        page = make_report(tmp_path).read_text()
    assert "no answers.safetensors, so no pictures of single images" in text.getvalue()
    assert "No adapted layer" not in page


@pytest.mark.parametrize("damage", ["answers", "inf", "negative"])
def test_nothing_is_drawn_from_what_is_damaged(tmp_path: Path, damage: str) -> None:
    """The figures that were drawn before stay."""
    found = write_run(tmp_path)
    make_report(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*g")}
    assert len(before) > 6
    if damage == "answers":
        content = (tmp_path / "answers.safetensors").read_bytes()
        (tmp_path / "answers.safetensors").write_bytes(content[:50])
    else:
        found["test"]["errors_per_class"][0] = float("inf") if damage == "inf" else -5
        (tmp_path / "results.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="damaged"):
        make_report(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*g")} == before


def test_results_alone_are_enough(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results(adapter=None)))
    assert "dog" in make_report(tmp_path).read_text()


@pytest.mark.parametrize("content", [None, "{", '{"stage": "lora"}'])
def test_refuses_a_folder_without_results(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"results\.json"):
        make_report(tmp_path)


@pytest.mark.parametrize(("figures", "drawn"), [(True, True), ("auto", True), (False, False)])
def test_runs_are_drawn_where_wanted(tmp_path: Path, figures: Any, drawn: bool) -> None:
    found = write_run(tmp_path)
    with logged("lora_mnist.report") as text:
        show_run(trainer(), found, tmp_path, figures)
    assert (tmp_path / REPORT_FILE).exists() == drawn
    assert text.getvalue() == (f"report: {tmp_path / REPORT_FILE}\n" if drawn else "")


def test_a_drawing_that_fails_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(folder: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr(lora_mnist.show.report, "make_report", fail)
    logging.getLogger("lora_mnist.report").propagate = True
    show_run(trainer(), results(), tmp_path, True)
    assert caplog.messages[-1:] == [
        f"the report was not drawn (no space); try again with: python report.py run={tmp_path}"
    ]
