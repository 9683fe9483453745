"""The scripts: the studies compose, and documents show what was made.

No measured number in the documents is typed: each stands in a block that a script has made.
"""

import re

import jobs
import pytest
import readme
import tasks
from helpers.commands import ROOT

DOCUMENTS = [path for path in readme.DOCUMENTS if readme.BLOCK.search(path.read_text())]
#: Heads of tables that say what to type, or what is a model's and not a run's.
TYPED = (
    *("| command |", "| to change |", "| to run |", "| callbacks |", "| exit code |"),
    *("| in training |", "| in results.json |"),
)
TABLE = ("|", "┏", "┃", "│")


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_tables_and_pictures_stand_in_blocks_that_nobody_changed(document):
    text = document.read_text()
    typed, before = readme.BLOCK.sub("", text), ""
    for line in typed.splitlines():
        if line.startswith(TABLE) and not before.startswith(TABLE):
            assert line.startswith(TYPED)
        before = line
    assert readme.PICTURE.findall(typed) == []
    for block in readme.BLOCK.finditer(text):
        assert readme.checksum(block["body"], document.parent) == block["sum"], block["name"]


def test_the_scripts_that_make_the_blocks_are_there():
    made_here, names = set(), []
    for document in DOCUMENTS:
        for block in readme.BLOCK.finditer(document.read_text()):
            names.append(block["name"])
            assert (ROOT / block["by"]).is_file()
            if block["by"] == "scripts/readme.py":
                made_here.add(block["name"])
    assert made_here == readme.MADE.keys()
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("document", [*readme.DOCUMENTS, ROOT / "CONTRIBUTING.md"], ids=str)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.nightly
def test_every_task_composes():
    every = (*tasks.TASKS, *tasks.FURTHER)
    assert len({task.seed for task in every}) == len({task.name for task in every}) == len(every)
    for task in every:
        assert task.pictures in ("", *tasks.PICTURES)
        images = "data=folder" if task.pictures else "data=mnist"
        pretrain = ("stage=pretrain", *task.pretrain.split())
        jobs.composed([images, *task.settings.split(), *pretrain])
