"""The scripts: the studies compose, and documents show what was made.

No measured number in the documents is typed: each stands in a block that a script has made.
"""

import re

import jobs
import pytest
import readme
import tasks
from helpers.commands import ROOT

DOCUMENTS = []
for path in readme.DOCUMENTS:
    if readme.BLOCK.search(path.read_text()):
        DOCUMENTS.append(path.relative_to(ROOT).as_posix())
#: Heads of tables that say what to type, or what is a model's and not a run's.
TYPED = (
    *("| command |", "| to change |", "| to run |", "| callbacks |", "| exit code |"),
    *("| in training |", "| in results.json |"),
)
TABLE = ("|", "┏", "┃", "│")


def typed(document):
    return readme.BLOCK.sub("", (ROOT / document).read_text())


def typed_tables(text):
    before = ""
    for line in text.splitlines():
        if line.startswith(TABLE) and not before.startswith(TABLE):
            yield line
        before = line


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tables_and_pictures_stand_in_blocks_that_nobody_changed(document):
    assert [head for head in typed_tables(typed(document)) if not head.startswith(TYPED)] == []
    assert readme.PICTURE.findall(typed(document)) == []
    path = ROOT / document
    for block in readme.BLOCK.finditer(path.read_text()):
        assert readme.checksum(block["body"], path.parent) == block["sum"], block["name"]


def test_the_scripts_that_make_the_blocks_are_there():
    made_here, names = set(), []
    for document in DOCUMENTS:
        for block in readme.BLOCK.finditer((ROOT / document).read_text()):
            names.append(block["name"])
            assert (ROOT / block["by"]).is_file()
            if block["by"] == "scripts/readme.py":
                made_here.add(block["name"])
    assert made_here == readme.MADE.keys()
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md"])
def test_links_lead_somewhere(document):
    here = (ROOT / document).parent
    links = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / document).read_text())
    assert [link for link in links if not (here / link).exists()] == []


@pytest.mark.slow
def test_every_task_composes():
    every = (*tasks.TASKS, *tasks.FURTHER)
    assert len({task.seed for task in every}) == len({task.name for task in every}) == len(every)
    for task in every:
        assert task.pictures in ("", *tasks.PICTURES)
        images = "data=folder" if task.pictures else "data=mnist"
        pretrain = ("stage=pretrain", *task.pretrain.split())
        jobs.composed([images, *task.settings.split(), *pretrain])
