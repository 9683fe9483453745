from pathlib import Path
from typing import Any

import pytest
from composed import composed
from helpers.runs import write_run
from helpers.sweeping import write_job, write_sweep

from lora_mnist.errors import UserError
from lora_mnist.report import find_run, report


def test_draws_the_run_that_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    path = report(composed("report", f"run={tmp_path}/run"))
    assert path == tmp_path / "run" / "report.html"
    assert path.is_file()


def test_draws_a_sweep(tmp_path: Path) -> None:
    sweep = tmp_path / "multirun" / "2026"
    write_job(sweep, "job", ["lora.rank=1"], accuracy=0.9)
    write_sweep(sweep)
    path = report(composed("report", f"paths.outputs={tmp_path}"))
    assert "python train.py -m lora.rank=1" in path.read_text()


def test_latest_is_the_last_of_all_stages(tmp_path: Path) -> None:
    for name in ("lora/2026-01-02", "pretrain/2026-01-01"):
        write_run(tmp_path / name)
    assert find_run("latest", tmp_path) == tmp_path / "lora" / "2026-01-02"
    write_sweep(tmp_path / "multirun" / "2026-01-03")
    assert find_run("latest", tmp_path) == tmp_path / "multirun" / "2026-01-03"


def test_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run=latest: expected a run in .*, found none"):
        find_run("latest", tmp_path)
    for run in (tmp_path, tmp_path / "none", None):
        with pytest.raises(UserError, match=f"run={run}: expected the folder of a run"):
            find_run(run, tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"run=.*: results\.json is damaged"):
        report(composed("report", f"run={tmp_path}"))
    (tmp_path / "results.json").write_text('{"test": {"accuracy": "x"}, "classes": 3}')
    with pytest.raises(UserError, match=r"run=.*: damaged, or of another version .*; expected a"):
        report(composed("report", f"run={tmp_path}"))


def test_from_the_command_line(cli: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "outputs" / "lora" / "2026")
    outcome = cli("report.py")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"report: {tmp_path}/outputs/lora/2026/report.html\n"
