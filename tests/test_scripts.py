"""The scripts: the studies compose, and documents show what was made.

No measured number in the documents is typed: each stands in a block that a script has made.
"""

import runpy
import sys
from functools import partial

import jobs
import plain
import pytest
import readme
import tasks
from helpers.commands import ROOT, read_results
from helpers.stranger import OPTIONS, config, move_in

from lora_mnist.command import Run
from lora_mnist.train import train

#: Heads of tables that say what to type, or what is a model's and not a run's.
TYPED = (
    *("| command |", "| to change |", "| to run |", "| callbacks |", "| exit code |"),
    *("| in training |", "| in results.json |"),
)
TABLE = ("|", "┏", "┃", "│")


def test_measured_numbers_and_pictures_stand_in_blocks_that_nobody_changed():
    names, made_here = [], set()
    for document in readme.DOCUMENTS:
        text = document.read_text()
        for block in readme.BLOCK.finditer(text):
            assert readme.checksum(block["body"], document.parent) == block["sum"], block["name"]
            assert (ROOT / block["by"]).is_file()
            names.append(block["name"])
            if block["by"] == "scripts/readme.py":
                made_here.add(block["name"])
        typed, before = readme.BLOCK.sub("", text), ""
        assert readme.PICTURE.findall(typed) == []
        for line in typed.splitlines():
            if document.name != "experiments.md" and line.startswith(TABLE):
                assert before.startswith(TABLE) or line.startswith(TYPED), line
            before = line
    assert made_here == readme.MADE.keys()
    assert len(set(names)) == len(names)


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
    monkeypatch.setattr(plain, "fine_tune", partial(plain.fine_tune, steps=2))
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
