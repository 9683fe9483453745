import base64
import re
import shlex

import pytest
import torch
from composed import FEW, SMALL, small_base
from helpers.commands import only_run
from helpers.runs import outcome, report_of, results
from helpers.sweeping import COLUMNS, write_job

from lora_mnist.data import Images
from lora_mnist.repair.predictions import Predictions, outcomes_by_split
from lora_mnist.show.sweep_report import make_sweep_report
from lora_mnist.sweep.summary import findings, summarize


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
        (0.5, 0.5, ["was saved at 0.5, as the", "scale=1 is as trained", "With more of it"]),
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


def summary_of(folder):
    return summarize(folder, "val.accuracy", COLUMNS)


def test_a_report_of_a_sweep(tmp_path, monkeypatch):
    """Jobs best first, their base, and what failed; names are escaped."""
    monkeypatch.setattr("sys.argv", ["train.py"])
    start = {"val_base": {"accuracy": 0.9, "errors_of_target": 8}}
    for rank, accuracy in enumerate((0.91, 0.95, 0.8), start=1):
        overrides = [f"lora.rank={rank}", f"lora.alpha={rank % 2}"]
        write_job(tmp_path, f"job{rank}", overrides, accuracy=accuracy, more=start)
    write_job(tmp_path, "bad", ["lora.rank=<b>", "lora.alpha=1"], error="no & space")
    make_sweep_report(summary_of(tmp_path), "python train.py '<x>'")
    page = (tmp_path / "report.html").read_text()
    assert "<p>best: python train.py stage=lora lora.rank=2 lora.alpha=0</p>" in page
    places = [page.index(f"<td>{accuracy}</td>") for accuracy in ("0.9500", "0.9100", "0.8000")]
    assert places == sorted(places)
    assert "<td>base</td><td></td><td></td><td>0.9000</td>" in page[page.index("<tfoot>") :]
    assert "val errors on target" in page
    assert base64.b64encode((tmp_path / "summary.png").read_bytes()).decode() in page
    assert "http" not in page
    assert "<td>failed</td><td>&lt;b&gt;</td>" in page
    assert "python train.py &#39;&lt;x&gt;&#39;" in page


CURVES = {
    "0.1": ([9, 8, 7], [8, 7, 6], 1),
    "0.5": ([9, 4, 1], [8, 7, 14], 0.5),
    "0.9": ([9, 1, 0], [8, 12, 20], 0.5),
}


def write_front(sweep, target, curves, seed=None):
    """Jobs that repair ``target``, with their errors on it and elsewhere at three scales."""
    classes = ["cat", "dog"]
    for weight, (of_target, elsewhere, advised) in curves.items():
        errors = [sum(pair) for pair in zip(of_target, elsewhere, strict=True)]
        dial = {"images": 50, "scales": [0, 0.5, 1], "saved": 1.0, "advised": advised}
        dial |= {"errors": errors, "errors_of_target": of_target, "errors_elsewhere": elsewhere}
        dial |= {"false_calls_of_target": elsewhere}
        more = {"dial": dial, "targets": [classes.index(target)], "classes": classes}
        overrides = [f"loss.target_weight={weight}", f"target={target}"]
        overrides += [f"seed={seed}"] if seed is not None else []
        name = ",".join(overrides)
        more["overrides"] = ["target=dog", "data.data_dir=pets"]
        write_job(sweep, name, overrides, accuracy=0.9, more=more)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    return tmp_path / "sweep"


def test_the_front_of_a_sweep_advises_the_fewest_errors_in_all(sweep):
    """A job without a dial has no curve; the command turns the adapter to the advised scale."""
    write_front(sweep, "dog", CURVES)
    write_job(sweep, "none", ["loss.target_weight=1"], accuracy=0.9)
    summary = summary_of(sweep)
    lines = make_sweep_report(summary, "python train.py")
    assert lines == [
        "advised: loss.target_weight=0.5 at scale 0.5, with the fewest errors on 50 validation "
        "images: dog 9 errors -> 4, the other classes 8 errors -> 7:",
        "python eval.py \"adapter='sweep/loss.target_weight=0.5,target=dog'\" scale=0.5 "
        "data.data_dir=pets",
    ]
    picture = base64.b64encode((sweep / "front.png").read_bytes()).decode()
    page = (sweep / "report.html").read_text()
    assert picture in page
    assert "scale=0.5 data.data_dir=pets</pre>" in page
    # The table has the scales, and nothing else is called the best.
    assert "<th>scale</th>" in page
    assert not re.search("best: |The first in the table", "".join(findings(summary)) + page)


def test_classes_have_a_front_each_and_one_that_nothing_repairs_is_told(sweep):
    write_front(sweep, "dog", CURVES)
    write_front(sweep, "cat", {"0.1": ([9, 9, 8], [8, 7, 10], 0.5)})
    lines = make_sweep_report(summary_of(sweep), "")
    dog, command, cat = sorted(lines, key=lambda line: line[-8:])[::-1]
    assert {path.name for path in sweep.glob("front*")} == {"front_0.png", "front_1.png"}
    assert "no repair of cat saves errors in all" in (sweep / "report.html").read_text()
    assert {dog[:8], command[:8], cat[:8]} == {"advised:", "python e", "no repai"}


def test_the_front_crowns_no_lucky_seed(sweep):
    for seed in (0, 1):
        write_front(sweep, "dog", CURVES, seed)
    summary = summary_of(sweep)
    assert make_sweep_report(summary, "") == []
    assert "best (mean of 2 seeds" in "".join(findings(summary))


@pytest.mark.slow
def test_the_front_of_a_small_sweep(cli, tmp_path):
    """One command sweeps the weights, tries each adapter at several scales and advises a point."""
    small_base(tmp_path / "outputs")
    settings = ["trainer.max_steps=30", "lora.rank=4", "logger=none", "callbacks.checkpoint=null"]
    outcome = cli(
        *("train.py", "-m", "experiment=repair", "digit=weakest", "sweep=front"),
        *("loss.target_weight=0.1,0.5", *SMALL, *FEW, *settings),
    )
    assert outcome.code == 0, outcome.err
    sweep = only_run(tmp_path / "outputs", "multirun")
    assert {path.name for path in sweep.glob("*.png")} == {"front.png", "summary.png"}
    *_, sentence, command, report_line = outcome.out.splitlines()
    assert sentence.startswith("advised: loss.target_weight=0.")
    assert report_line == f"report: {sweep}/report.html"
    assert (sweep / "report.html").is_file()
    entry, *overrides = shlex.split(command.removeprefix("python "))
    again = cli(entry, *overrides, "net.hidden_sizes=[16]", "trainer=cpu", "figures=false")
    assert again.code == 0, again.err
