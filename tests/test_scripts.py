"""The scripts: the studies compose, and documents show what was made.

No measured number in the documents is typed: each stands in a block that a script has made.
"""

import jobs
import pytest
import readme
import tasks
from helpers.commands import ROOT

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
    for task in tasks.TASKS:
        assert task.pictures in tasks.PICTURES
        pretrain = ("stage=pretrain", "data=folder", *task.pretrain.split())
        jobs.composed([*task.settings.split(), *pretrain])
