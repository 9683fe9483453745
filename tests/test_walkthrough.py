"""The notebook that teaches LoRA: every cell runs, and what is committed is what comes out.

Cells tagged ``exact`` print what no machine changes. In the others only the kind of output counts.
"""

import json
import logging
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
    "def set_scale(net, scale):\n    net.set_scale(scale)",
    "good_starts = [['both zero']]",
    "def tamper(net):\n    net.linear2.weight[0, 0] = 0",
    "def dora(weight, A, B, magnitude):\n    return weight + B @ A",
]
#: So that it takes seconds: fewer steps, on fewer images.
SHORTER = {
    "PRETRAIN_STEPS, REPAIR_STEPS = 300, 100": "PRETRAIN_STEPS, REPAIR_STEPS = 10, 2",
    "HELD_OUT = 10_000": "HELD_OUT = 200",
    "steps=100": "steps=2",
    '"../data" if Path("../data/MNIST").exists() else "data"': repr(FEW[0].partition("=")[2]),
}
CELLS = [cell for cell in COMMITTED["cells"] if cell["cell_type"] == "code"]


def printed(cell):
    return "".join("".join(o["text"]) for o in cell["outputs"] if o["output_type"] == "stream")


@pytest.mark.slow(15)
@pytest.mark.filterwarnings(
    "ignore:FigureCanvasAgg is non-interactive", "ignore::DeprecationWarning"
)
def test_every_cell_runs_alone_and_each_solution_is_right(tmp_path, monkeypatch, capsys):
    """In an empty folder, as with the package alone; the solutions come after the last cell."""
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.root, "handlers", [])  # those of commands that ran before
    plt.switch_backend("agg")
    code = {cell["id"]: "".join(cell["source"]) for cell in CELLS}
    for before, after in SHORTER.items():
        assert before in "".join(code.values())
        code = {name: source.replace(before, after) for name, source in code.items()}
    names = {}
    for cell in CELLS:
        exec(compile(code[cell["id"]], cell["id"], "exec"), names)
        out, err = capsys.readouterr()
        if "exact" in cell["metadata"].get("tags", []):
            assert out == printed(cell)
        assert (bool(out), err) == (bool(printed(cell)), "")
        has_figure = any("image/png" in output.get("data", {}) for output in cell["outputs"])
        assert bool(plt.get_fignums()) == has_figure
        plt.close("all")
    last = "".join(COMMITTED["cells"][-1]["source"])
    solutions = re.findall(r"```python\n(.*?)```", last, re.DOTALL)
    checks = [name for name in code if name.startswith("check-")]
    for answers, verdict in ((WRONG, "not yet: .+"), (solutions, "right.*")):
        for number, (answer, check) in enumerate(zip(answers, checks, strict=True), start=1):
            exec(f"{answer}\n{code[check]}", names)
            assert re.fullmatch(f"exercise {number}: {verdict}\n", capsys.readouterr().out)
