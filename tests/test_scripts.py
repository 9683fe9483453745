"""The scripts: the studies compose, and documents show what was made.

No measured number in the documents is typed: each stands in a block that a script has made.
"""

import re

import pytest
import readme
import repair
import tasks
from composed import composed
from helpers.commands import ROOT

DOCUMENTS = []
for path in readme.DOCUMENTS:
    if readme.BLOCK.search(path.read_text()):
        DOCUMENTS.append(path.relative_to(ROOT).as_posix())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_pictures_stand_in_blocks_and_nobody_changed_these(document):
    path = ROOT / document
    text = path.read_text()
    assert readme.PICTURE.findall(readme.BLOCK.sub("", text)) == []
    for block in readme.BLOCK.finditer(text):
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


def test_every_task_and_every_method_composes():
    """No table's base was ever searched on."""
    all_tasks = [*tasks.SEARCH, *tasks.TASKS]
    assert len({task.seed for task in all_tasks}) == len(all_tasks)
    for task in all_tasks:
        assert task.pictures in ("", *tasks.PICTURES)
        images = "data=folder" if task.pictures else "data=mnist"
        pretrain = ("stage=pretrain", *task.pretrain.split())
        composed("train", images, *task.settings.split(), *pretrain)
    for change in repair.CHANGES:
        composed("train", "target=1", "experiment=repair", *change.split())
