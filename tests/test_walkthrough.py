"""The notebook that teaches LoRA: every cell runs, and what is committed is what comes out.

Cells tagged ``exact`` print what no machine changes. In the others only the kind of output counts.
"""

import json

import pytest
from composed import FEW
from helpers.commands import ROOT

NOTEBOOK = ROOT / "notebooks" / "walkthrough.ipynb"
COMMITTED = json.loads(NOTEBOOK.read_text())


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
    assert sum("image/png" in kinds(cell) for cell in cells) >= 5
    assert sum("exact" in cell["metadata"].get("tags", []) for cell in cells) >= 10


@pytest.mark.slow(60)
def test_every_cell_runs_and_gives_what_is_committed():
    reason = "the extra all is not installed"
    nbformat = pytest.importorskip("nbformat", reason=reason)
    nbclient = pytest.importorskip("nbclient", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    shorter = {  # else it would take two minutes
        '"experiment=repair"': '"experiment=repair", "trainer.max_steps=40"',
        '"figures=false"': f'"figures=false", "{FEW[0]}", "{FEW[1]}"',
        'data_dir=PROJECT / "data"': f'data_dir="{FEW[0].partition("=")[2]}", val_size=500',
    }
    for before, after in shorter.items():
        assert any(before in cell["source"] for cell in code_cells(notebook)), before
        for cell in code_cells(notebook):
            cell["source"] = cell["source"].replace(before, after)
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    for before, after in zip(code_cells(COMMITTED), code_cells(notebook), strict=True):
        if "exact" in before["metadata"].get("tags", []):
            assert text(after) == text(before)
        assert kinds(after) == kinds(before), "".join(before["source"])
