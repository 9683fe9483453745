"""No measured number in the documents is typed: each stands in a block that a script has made."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import readme
from helpers.commands import ROOT

DOCUMENTS = sorted({document for document, _ in (*readme.MADE.values(), *readme.PRINTED.values())})
#: Heads of tables that say what to type, or what is a model's and not a run's.
TYPED = (
    *("| command |", "| to change |", "| to run |", "| | one process |", "| cores |"),
    *("| logger |", "| callbacks |", "| say |", "| exit code |"),
    "| launcher |",  # rounded by hand
)
TABLE = ("|", "┏", "┃", "│")


def typed(document: str) -> str:
    """A document without its blocks."""
    return readme.BLOCK.sub("", (ROOT / document).read_text())


def typed_tables(text: str) -> Iterator[str]:
    """First lines of tables, those of terminals too."""
    before = ""
    for line in text.splitlines():
        if line.startswith(TABLE) and not before.startswith(TABLE):
            yield line
        before = line


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tables_and_pictures_stand_in_blocks_that_nobody_changed(document: str) -> None:
    assert [head for head in typed_tables(typed(document)) if not head.startswith(TYPED)] == []
    assert readme.PICTURE.findall(typed(document)) == []
    assert readme.changed_by_hand(ROOT / document) == []


def test_the_script_knows_every_block() -> None:
    known = {(document, n) for n, (document, _) in {**readme.MADE, **readme.PRINTED}.items()}
    found = set()
    for document in DOCUMENTS:
        for block in readme.BLOCK.finditer((ROOT / document).read_text()):
            found.add((document, block["name"]))
            assert (ROOT / block["by"]).is_file()
    assert found == known


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md"])
def test_links_lead_somewhere(document: str) -> None:
    here = (ROOT / document).parent
    links = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / document).read_text())
    assert [link for link in links if not (here / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_accuracy_is_typed_in_prose(document: str) -> None:
    prose = re.sub(r"```.*?```|`[^`]*`|^\|.*?$", "", typed(document), flags=re.DOTALL | re.M)
    assert re.findall(r"\b0\.\d{3,}|\b\d[\d,]* (?:errors|broken)", prose) == []


def test_a_block_is_filled_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- one: made by me, 000000000000 -->\nx\n<!-- /one -->\nbelow\n")
    (tmp_path / "dot.png").write_bytes(b"dot")
    readme.fill(page, "one", "| 1 |\n\n![a dot](dot.png)")
    assert readme.BLOCK.sub("", page.read_text()) == "above\n\nbelow\n"
    assert readme.changed_by_hand(page) == []
    (tmp_path / "dot.png").write_bytes(b"another")
    assert readme.changed_by_hand(page) == ["one"]
    with pytest.raises(ValueError, match="expected a block <!-- two: made by"):
        readme.fill(page, "two", "x")


def test_what_other_scripts_print() -> None:
    table = "| method | all |\n| --- | ---: |\n| a | 1 |\n| b | 2 |\n| c | 3 |"
    printed = f"2 cores\n\n{table}\n\na processor\n"
    assert readme.markdown_table(printed) == f"{table}\n\na processor"
    assert readme.markdown_table(printed, ["c", "a"], ["all"]).splitlines()[2:] == [
        "| 3 |",
        "| 1 |",
    ]
    with pytest.raises(ValueError, match="no d in the table; expected one of a, b, c"):
        readme.markdown_table(printed, ["d"])
    assert readme.from_line("┏ old\nx\n┏ new\ny\n", "┏") == "┏ new\ny"
    assert readme.lines_that_begin("ok 1\nno\nok 2", "ok") == "```text\nok 1\nok 2\n```"
    table = "┏━┓\n┃ n ┃\n│ 1 │\n└─┘"
    assert readme.terminal_table(f"┏┓\n┃ m ┃\n└┘\n{table}\nend", "n") == f"```text\n{table}\n```"
