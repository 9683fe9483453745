import shlex

import pytest
from composed import FEW, SMALL, small_base
from helpers.commands import only_run


@pytest.mark.slow
def test_the_front_of_a_small_sweep(cli, tmp_path):
    """One command sweeps the weights, tries each adapter at several scales and advises a point."""
    small_base(tmp_path / "outputs")
    settings = ["trainer.max_steps=3", "lora.rank=1", "logger=none", "callbacks.checkpoint=null"]
    outcome = cli(
        *("train.py", "-m", "experiment=repair", "digit=4", "sweep=front"),
        *("loss.target_weight=0.1,0.5", *SMALL, *FEW, *settings),
    )
    assert outcome.code == 0, outcome.err
    sweep = only_run(tmp_path / "outputs", "multirun")
    assert {path.name for path in sweep.glob("*.png")} == {"front.png", "summary.png"}
    *_, sentence, command, report_line = outcome.out.splitlines()
    assert sentence.startswith("advised: loss.target_weight=0.")
    assert report_line == f"report: {sweep}/report.html"
    (sweep / "report.html").unlink()
    again = cli("report.py", "run=latest")
    assert (again.code, again.err) == (0, "")
    assert again.out.splitlines() == [sentence, command, report_line]
    assert (sweep / "report.html").is_file()
    entry, *overrides = shlex.split(command.removeprefix("python "))
    again = cli(entry, *overrides, "net.hidden_sizes=[16]", "trainer=cpu", "figures=false")
    assert again.code == 0, again.err
