import re

import pytest
import torch
from helpers.runs import outcome, report_of, results

from lora_mnist.data import Images
from lora_mnist.repair.predictions import Predictions, outcomes_by_split


@pytest.mark.parametrize("stage", ["lora", "eval", "pretrain"])
def test_a_report_of_each_stage(tmp_path, stage):
    """It needs nothing from elsewhere, and runs nothing: a name and a configuration try to."""
    assert list(report_of(tmp_path, results(stage))) == ["confusion"]
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["confusion.png"]
    page = (tmp_path / "report.html").read_text()
    for text in ("Each class", "onfusion matrix", "Can the test be believed?", "farm"):
        assert text in page
    kinds = re.findall(r'<section id="(\w+)">', page)
    assert kinds == (["wrong"] if stage == "pretrain" else ["broken", "wrong", "repaired"])
    assert ("unchanged by the training, checked bit for bit" in page) == (stage == "lora")
    assert page.count('<tr class="mark"><td>dog</td>') == (stage != "pretrain")
    assert ("train.py experiment=repair target=dog</pre>" in page) == (stage == "pretrain")
    assert "<script" not in page
    assert "<b>cow" not in page
    assert "&lt;b&gt;cow&lt;/b&gt;" in page
    assert ".py stage=lora &#39;notes=&lt;script&gt;alert(1)&lt;/script&gt;" in page
    for tag in ("src=", "href="):
        assert {piece[:6] for piece in page.split(tag)[1:]} <= {'"data:'}


@pytest.mark.parametrize(
    ("saved", "advised", "says"),
    [
        (1, 1, ["was saved at 1, as the validation", "At 1 there are 9 errors, and the base"]),
        (0.5, 0.5, ["was saved at 0.5, as the", "scale=2 is as trained", "With more of it"]),
        (1, 0.5, ["was saved at 1, as the command says", "advise 0.5", "there are 10 errors"]),
        (
            0,
            0,
            ["No scale of the adapter makes clearly fewer errors than the base, which makes"],
        ),
    ],
)
def test_the_report_says_which_scale_was_taken_and_why(tmp_path, saved, advised, says):
    dial = {"images": 50, "scales": [0.0, 0.5, 1.0], "saved": saved, "advised": advised}
    dial |= {"errors": [12, 10, 9], "errors_of_target": [9, 5, 2], "errors_elsewhere": [3, 5, 7]}
    report_of(tmp_path, results(dial={**dial, "false_calls_of_target": [0, 2, 4]}))
    page = " ".join((tmp_path / "report.html").read_text().split())
    for text in says:
        assert text in page


def belief(folder, **more):
    """What a report says of its test."""
    report_of(folder, results(val=outcome([1, 1, 1]), **more))
    _, _, section = (folder / "report.html").read_text().partition("Can the test be believed?")
    return section.partition("<h2>")[0]


def test_a_report_says_whether_its_test_can_be_believed(tmp_path):
    doubts = {"held_out": {"test": "train"}, "copies": 7, "base_pretrained_here": False}
    doubts |= {"targets_chosen": True, "val_base": outcome([0, 0, 0], 9000)}
    plain = belief(tmp_path)
    doubted = belief(tmp_path, **doubts, better_preprocessing=["data.mean=0.5"])
    for said, other in (
        ("60 test images\nare the test part of the data set farm", "were held out of the training"),
        ("60 validation images\nwere held out of the training", "are the validation part of the"),
        ("The class to repair was named in", "dog, was chosen on them, as the weakest"),
        ("No identical file is in two of the", "7 identical files were in two of the"),
        (
            "The base was trained by this project",
            "Test images that were used in that training prove",
        ),
    ):
        assert (said in plain, other in doubted) == (True, True)
        assert other not in plain or "held out" in other
    for warning in ("so few errors on the validation images, 0,", "preprocessing: data.mean=0.5"):
        assert (warning in plain, warning in doubted) == (False, True)
    assert "It was not checked whether an image is in two of the" in belief(tmp_path, copies=None)


@pytest.mark.filterwarnings("error")
def test_a_report_of_many_classes_is_small(tmp_path):
    """It begins with what changed, also where nothing did."""
    count = 300
    label = torch.arange(count)
    base, adapted = label.clone(), label.clone()
    base[:60], adapted[30:90] = 99, 98
    sure, loss = torch.ones(count), torch.zeros(count)
    before = Predictions(count, torch.arange(count), label, base, sure, loss)
    noise = torch.randint(0, 255, (100, 3, 64, 64), dtype=torch.uint8)[label % 100]
    for after in (adapted, base):
        table = before.with_after(after, sure, loss)
        run = {**results(), **outcomes_by_split({"test": table}, [0]), "targets": [0]}
        run["classes"] = [f"class number {n}" for n in range(count)]
        report_of(tmp_path, run, table, Images(noise, label))
        page = (tmp_path / "report.html").read_text()
        assert len(page) < 5e6
        assert page.count("<tr") <= 44
        assert '<tr class="mark"><td>class number 0</td>' in page
