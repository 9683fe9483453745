"""The notebook that teaches LoRA: every cell runs, and what is committed is what comes out.

Cells tagged ``exact`` print what no machine changes. In the others only the kind of output counts.
"""

import json
import re

import pytest
from composed import FEW
from helpers.commands import ROOT

NOTEBOOK = ROOT / "notebooks" / "walkthrough.ipynb"
COMMITTED = json.loads(NOTEBOOK.read_text())
#: A wrong answer to each exercise; its check says in one line what is missing.
WRONG = [
    "def rank_two(weight, alpha):\n    return alpha / 2",
    "def merge(net):\n    return net",
    "def turn(net, scale):\n    net.turn(scale)",
    "good_starts = [['both zero']]",
    "def tamper(net):\n    net.linear2.weight[0, 0] = 0",
]
#: So that it takes half a minute and no more: fewer steps, on fewer images.
SHORTER = {
    "PRETRAIN_STEPS, REPAIR_STEPS = 300, 100": "PRETRAIN_STEPS, REPAIR_STEPS = 40, 5",
    "HELD_OUT = 10_000": "HELD_OUT = 500",
    "steps=100": "steps=10",
    '"../data" if Path("../data/MNIST").exists() else "data"': repr(FEW[0].partition("=")[2]),
}


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def text(cell):
    """What the cell printed; a file on disk has it by lines, and both in as many parts as came."""
    return "".join("".join(o["text"]) for o in cell["outputs"] if o["output_type"] == "stream")


def kinds(cell):
    outputs = cell["outputs"]
    return {o.get("name", o["output_type"]) for o in outputs} | {
        kind for o in outputs for kind in o.get("data", {}) if kind.startswith("image/")
    }


def test_it_was_run_from_top_to_bottom_without_a_warning():
    cells = code_cells(COMMITTED)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not {kind for cell in cells for kind in kinds(cell)} & {"error", "stderr"}
    assert sum("image/png" in kinds(cell) for cell in cells) >= 8
    assert sum("exact" in cell["metadata"].get("tags", []) for cell in cells) >= 10


@pytest.mark.slow(60)
def test_every_cell_runs_alone_and_each_solution_is_right(tmp_path):
    """In an empty folder, as with the package alone; the solutions come after the last cell."""
    reason = "the extra all is not installed"
    nbformat = pytest.importorskip("nbformat", reason=reason)
    nbclient = pytest.importorskip("nbclient", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for before, after in SHORTER.items():
        assert any(before in cell["source"] for cell in code_cells(notebook)), before
        for cell in code_cells(notebook):
            cell["source"] = cell["source"].replace(before, after)
    solutions = re.findall(r"```python\n(.*?)```", notebook["cells"][-1]["source"], re.DOTALL)
    checks = [cell for cell in code_cells(notebook) if cell["id"].startswith("check-")]
    for answer, check in zip(WRONG + solutions, checks * 2, strict=True):
        source = f"{answer}\n{check['source']}"
        notebook["cells"].append(nbformat.v4.new_code_cell(source))
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    cells = code_cells(notebook)
    answered = [cells.pop() for _ in WRONG + solutions][::-1]
    for before, after in zip(code_cells(COMMITTED), cells, strict=True):
        if "exact" in before["metadata"].get("tags", []):
            assert text(after) == text(before)
        assert kinds(after) == kinds(before), "".join(before["source"])
    for number, (check, wrong, solved) in enumerate(
        zip(checks, answered[: len(WRONG)], answered[len(WRONG) :], strict=True), start=1
    ):
        for cell in (check, wrong):
            assert re.fullmatch(f"exercise {number}: not yet: .+\n", text(cell))
        assert text(solved).startswith(f"exercise {number}: right")
