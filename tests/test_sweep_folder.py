"""A folder belongs to one configuration: grids that change, bases that change."""

from pathlib import Path
from typing import Any

from sweeping import FEW, only_sweep, read_summary, snapshot


def test_a_changed_grid_adds_and_touches_nothing(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    arguments = ("-m", *FEW, f"base_ckpt={base_ckpt}")
    assert cli("train.py", *arguments, "lora.rank=1").code == 0
    sweep = only_sweep(tmp_path)
    (first,) = [path for path in sweep.iterdir() if path.is_dir()]
    before = snapshot(first)
    done = cli("train.py", *arguments, "lora.rank=1,2", "sweep.resume=latest")
    assert done.code == 0, done.err
    assert "#0 lora.rank=1: finished before" in done.out
    assert done.out.count("finished before") == 1
    done = cli("train.py", *arguments, "lora.rank=2", "seed=0,1", f"sweep.resume={sweep}")
    assert "#0 seed=0: finished before" in done.out
    assert done.out.count("finished before") == 1
    assert snapshot(first) == before
    assert only_sweep(tmp_path) == sweep
    # The default of a key that only the last command sweeps stands in the first one's row too.
    swept = {(row["lora.rank"], row["seed"]) for row in read_summary(sweep)}
    assert swept == {("1", "0"), ("2", "0"), ("2", "1")}


def test_another_base_is_another_configuration(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.ckpt"
    arguments = ("-m", *FEW, f"base_ckpt={base}", "lora.rank=1,2")
    done = cli("train.py", *arguments)
    assert done.code == 1
    assert "base.ckpt: no such file" in done.err
    base.write_bytes(base_ckpt.read_bytes())
    done = cli("train.py", *arguments, "sweep.resume=latest")
    assert done.code == 0, done.err
    # The failures for want of a base were made good, and are listed no more.
    assert [row["status"] for row in read_summary(only_sweep(tmp_path))] == ["finished"] * 2
