"""No measured number in the documents is typed: each stands in a block that a script has made."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import readme
from composed import SMALL
from documents import markers, tables
from helpers.commands import ROOT, read_results, run_process

#: Documents whose numbers this script makes; docs/repair.md has a script of its own.
DOCUMENTS = (
    *("README.md", "docs/sweeps.md", "docs/notebook.md", "docs/adapters.md", "docs/speed.md"),
)
#: By scripts/benchmark/run.py --growth.
DRAWN_ELSEWHERE = {"speed.png"}
#: Heads of tables that say what to type, or what is a model's and not a run's.
TYPED = (
    "| command | what it does |",
    "| to change | say |",
    "| to run | say | needs |",
    "| | one process | joblib | Ray | Slurm |",
    "| cores | checking, min | sending, min | training, min | together, min |",
    # By scripts/benchmark/scale.py, rounded by hand.
    "| launcher | jobs | a further job, s | of the cores | start, s | of the cores |",
)
TERMINAL = "┏┃│"
ALL = [
    (document, name) for document in DOCUMENTS for name in sorted(markers.blocks(ROOT / document))
]


def typed_tables(text: str) -> Iterator[str]:
    """First lines of tables outside the blocks, those of terminals too."""
    before = ""
    for line in markers.without_blocks(text).splitlines():
        if line.startswith(("|", *TERMINAL)) and not before.startswith(("|", *TERMINAL)):
            yield line
        before = line


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tables_and_pictures_stand_in_blocks(document: str) -> None:
    text = (ROOT / document).read_text()
    assert [head for head in typed_tables(text) if head not in TYPED] == []
    assert set(markers.PICTURE.findall(markers.without_blocks(text))) <= DRAWN_ELSEWHERE


def test_every_table_that_may_be_typed_is_there() -> None:
    found = {head for d in DOCUMENTS for head in typed_tables((ROOT / d).read_text())}
    assert set(TYPED) <= found


@pytest.mark.parametrize(("document", "name"), ALL)
def test_nobody_changed_a_block_by_hand(document: str, name: str) -> None:
    block = markers.blocks(ROOT / document)[name]
    assert markers.checksum(block.body, (ROOT / document).parent) == block.checksum
    assert (ROOT / block.by).is_file()


def test_the_script_knows_every_block() -> None:
    known = {(made.document, name) for name, made in readme.MADE.items()}
    known |= {(printed.document, name) for name, printed in readme.PRINTED.items()}
    assert known == set(ALL)


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md"])
def test_links_lead_somewhere(document: str) -> None:
    here = (ROOT / document).parent
    links = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / document).read_text())
    assert [link for link in links if not (here / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_accuracy_is_typed_in_prose(document: str) -> None:
    assert accuracies((ROOT / document).read_text()) == []


def accuracies(text: str) -> list[str]:
    """Accuracies, shares and errors in what people typed; a number to be typed is in backticks."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", markers.without_blocks(text), flags=re.DOTALL)
    prose = re.sub(r"^\|.*$", "", prose, flags=re.MULTILINE)
    return re.findall(r"\b0\.\d{3,}|\b(?!100%)\d+(?:\.\d+)? ?%|\b\d[\d,]* (?:errors|broken)", prose)


def test_an_accuracy_in_prose_is_noticed() -> None:
    told = "It gets 0.9565, 97.1% or 435 errors; `lr=0.001`, 100%, 2.5 s and 60 images are fine."
    assert accuracies(told) == ["0.9565", "97.1%", "435 errors"]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A document with a block and a picture in it."""
    (tmp_path / "dot.png").write_bytes(b"dot")
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- one: made by me, 000000000000 -->\nx\n<!-- /one -->\nbelow\n")
    return page


def test_a_block_is_filled_and_nothing_else(page: Path) -> None:
    markers.fill(page, "one", "| 1 |\n\n![a dot](dot.png)")
    block = markers.blocks(page)["one"]
    assert page.read_text() == (
        f"above\n<!-- one: made by me, {block.checksum} -->\n"
        "| 1 |\n\n![a dot](dot.png)\n<!-- /one -->\nbelow\n"
    )
    assert markers.without_blocks(page.read_text()) == "above\n\nbelow\n"
    with pytest.raises(ValueError, match="expected a block <!-- two: made by"):
        markers.fill(page, "two", "x")


def test_a_number_or_a_picture_that_was_changed_is_noticed(page: Path) -> None:
    markers.fill(page, "one", "| 1 |\n\n![a dot](dot.png)")
    made = markers.blocks(page)["one"].checksum
    assert markers.checksum("| 1 |\n\n![a dot](dot.png)", page.parent) == made
    assert markers.checksum("| 2 |\n\n![a dot](dot.png)", page.parent) != made
    (page.parent / "dot.png").write_bytes(b"another")
    assert markers.checksum("| 1 |\n\n![a dot](dot.png)", page.parent) != made


def test_what_other_scripts_print() -> None:
    table = "| method | all |\n| --- | ---: |\n| a | 1 |\n| b | 2 |\n| c | 3 |"
    assert tables.markdown_table(f"2 cores\n\n{table}\n\nend") == table
    assert tables.rows_of(table, ["c", "a"]).splitlines()[2:] == ["| c | 3 |", "| a | 1 |"]
    with pytest.raises(ValueError, match="no row d; expected one of a, b, c"):
        tables.rows_of(table, ["d"])
    assert tables.columns_of("| a | b |\n| - | - |\n| 1 | 2 |", ["b"]) == "| b |\n| - |\n| 2 |"
    with pytest.raises(ValueError, match="found none"):
        tables.markdown_table("nothing")
    assert tables.from_line("┏ old\nx\n┏ new\ny\n", "┏") == "┏ new\ny"
    assert tables.lines_that_begin("ok 1\nno\nok 2", "ok") == "```text\nok 1\nok 2\n```"
    table = "┏━┓\n┃ n ┃\n│ 1 │\n└─┘"
    printed = f"┏┓\n┃ m ┃\n└┘\nthen\n{table}\nend"
    assert tables.terminal_table(printed, "n") == f"```text\n{table}\n```"
    with pytest.raises(ValueError, match="expected a table ┃ k"):
        tables.terminal_table(printed, "k")


def test_speed_is_the_median_of_the_rounds() -> None:
    rows = {}
    for (name, (_, other)), unit in zip(tables.SPEED.items(), ("steps/s", "s", "s"), strict=True):
        rows[name] = {"unit": unit, "measured": {other: [10, 30, 20], "ours": [20, 90, 20]}}
    kept = {"machine": "2 cores", "rows": rows}
    made = tables.speed_rows(json.dumps(kept)).splitlines()
    assert made[2].endswith("| 20 steps/s | 20 steps/s | 2.0 |")
    assert made[3].endswith("| 20 s | 20 s | 0.5 |")
    assert made[-1] == "Medians; 2 cores."


@pytest.mark.slow
def test_a_block_says_what_its_run_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "README.md", tmp_path)
    before = markers.without_blocks((tmp_path / "README.md").read_text())
    settings = [*SMALL, "trainer.max_steps=3", "logger=none"]
    options = ["--into", str(tmp_path), "--runs", str(tmp_path / "runs"), "--set", *settings]
    done = run_process("scripts/readme.py", "--only", "lora", "before_after", *options)
    assert done.returncode == 0, done.stderr
    found = read_results(tmp_path / "runs" / "outputs" / "lora" / "nines")
    made = markers.blocks(tmp_path / "README.md")
    base, test = found["test_base"], found["test"]
    assert f"accuracy: {base['accuracy']:.4f} -> {test['accuracy']:.4f}" in made["lora"].body
    assert f"repaired: {test['repaired']}, broken: {test['broken']}\n" in made["lora"].body
    assert (tmp_path / "docs" / "before_after.png").stat().st_size > 10_000
    assert markers.without_blocks((tmp_path / "README.md").read_text()) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nothing", "torture", "lora=README.md"])
def test_a_block_that_there_is_not(name: str) -> None:
    done = run_process("scripts/readme.py", "--only", name)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"--only={name.partition('=')[0]}: expected one of before_after")
