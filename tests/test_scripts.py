"""The scripts: the studies compose, and documents show what a command has made."""

import runpy
import sys

import jobs
import pytest
import readme
import tasks
from helpers.commands import ROOT, read_results
from helpers.stranger import OPTIONS, config, move_in

from lora_mnist.command import Run
from lora_mnist.train import train


def test_measured_numbers_and_pictures_stand_in_blocks_that_nobody_changed():
    made_here = []
    for document in readme.DOCUMENTS:
        for block in readme.BLOCK.finditer(document.read_text()):
            if block["by"] == "scripts/readme.py":
                total = readme.checksum(block["body"], document.parent)
                assert total == block["sum"], block["name"]
                made_here.append(block["name"])
    assert sorted(made_here) == sorted(readme.MADE)


def test_the_reference_has_the_keys_of_today():
    text = (ROOT / "docs" / "reference.md").read_text()
    blocks = {block["name"]: block["body"] for block in readme.BLOCK.finditer(text)}
    assert blocks["keys"] == readme.keys(readme.Runs(ROOT)), "python scripts/readme.py --only keys"


@pytest.mark.nightly
def test_every_task_composes():
    today = pytest.importorskip("today")
    for task in (*tasks.TASKS, *today.TODAY):
        assert task.pictures in tasks.PICTURES
        pretrain = ("stage=pretrain", "data=folder", *task.pretrain.split())
        jobs.composed([*task.settings.split(), *pretrain])


def test_the_yardstick_stands_beside_the_latest_repair(tmp_path, monkeypatch, capsys):
    here = move_in(tmp_path, monkeypatch)
    few = ("trainer=cpu", "trainer.max_steps=6", "logger=none", "figures=false", "refit=false")
    few = (*few, "batches.replay=10", "trainer.val_check_interval=6")
    folder = here / "outputs" / "lora" / "run"
    train(config("train", "experiment=repair", "target=dog", "lora.dropout=0", *few), Run(folder))
    monkeypatch.setattr(sys, "argv", ["rival.py", *OPTIONS, "experiment=repair", "target=weakest"])
    capsys.readouterr()
    runpy.run_path(str(ROOT / "scripts" / "rival.py"), run_name="__main__")
    rows = {}
    for line in capsys.readouterr().out.splitlines()[2:]:
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[name] = cells
    results = read_results(folder)
    names = ("errors_of_target", "errors", "false_calls_of_target")
    for name, part in {"base": "test_base", "repair": "test"}.items():
        assert rows[name][:3] == [str(results[part][key]) for key in names]
    assert rows.keys() == {"base", "repair", "twenty lines", "twenty lines, refitted"}
