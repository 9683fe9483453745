"""Single jobs of sweeps on real data: skipped, recorded, failed."""

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, read_results
from sweeping import FEW, job, only_sweep, read_summary, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData


def test_a_failing_job_takes_no_other_along(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    arguments = ("-m", *FEW[:3], f"base_ckpt={base_ckpt}", "lora.rank=0,1,2", "lora.alpha=1,4")
    done = cli("train.py", *arguments)
    sweep = only_sweep(tmp_path)
    assert done.code == 1
    reason = "lora.rank=0: expected an integer >= 1"
    told, _, last = done.err.splitlines()
    assert told == f"#0 lora.rank=0 lora.alpha=1 failed: {reason}"
    assert last.startswith("2 failed; go on with: python train.py -m stage=lora digit=9")
    assert last.endswith(f"sweep.resume={sweep}")
    assert "#2 lora.rank=1 lora.alpha=1: val.accuracy 0." in done.out
    rows = read_summary(sweep)
    assert [row["status"] for row in rows] == ["finished"] * 4 + ["failed"] * 2
    assert {row["error"] for row in rows[4:]} == {reason}
    accuracies = [float(row["val.accuracy"]) for row in rows[:4]]
    assert accuracies == sorted(accuracies, reverse=True)
    for row in rows[:4]:
        results = read_results(sweep / row["folder"])
        assert f"{row['lora.rank']},lora.alpha={row['lora.alpha']}-" in row["folder"]
        assert int(row["parameters.lora"]) == 6_794 * int(row["lora.rank"])
        assert float(row["val.accuracy"]) == results["val"]["accuracy"]
        for split in ("val", "test", "test_base"):
            errors = results[split]["errors_per_class"]
            assert [int(row[f"{split}.errors_per_class.{c}"]) for c in range(10)] == errors
            assert int(row[f"{split}.errors_on_class"]) == errors[9]
    best = rows[0]
    swept = f"lora.rank={best['lora.rank']} lora.alpha={best['lora.alpha']}"
    base = f"base_ckpt={base_ckpt}"
    assert (
        f"best: python train.py stage=lora digit=9 trainer.max_steps=5 {base} {swept}" in done.out
    )
    assert f"failed: lora.rank=0 lora.alpha=4: {reason}" in done.out
    assert (sweep / "summary.png").read_bytes().startswith(b"\x89PNG")
    hparams = {}
    for row in rows[:4]:
        plugin = EventAccumulator(str(sweep / row["folder"])).Reload()
        assert plugin.Scalars("val/accuracy")[-1].value == pytest.approx(float(row["val.accuracy"]))
        content = plugin.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        start = HParamsPluginData.FromString(content).session_start_info
        hparams[row["folder"]] = {key: v.number_value for key, v in start.hparams.items()}
    assert hparams == {
        row["folder"]: {key: float(row[key]) for key in ("lora.rank", "lora.alpha")}
        for row in rows[:4]
    }


def test_a_job_repeats_as_a_single_run(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    """What ran before in the same process leaves no trace in a job's numbers."""
    arguments = (*FEW, f"base_ckpt={base_ckpt}")
    assert cli("train.py", "-m", *arguments, "lora.rank=2,1").code == 0
    assert cli("train.py", *arguments, "lora.rank=1", f"hydra.run.dir={tmp_path}/run").code == 0
    swept, single = (
        read_results(folder)
        for folder in (job(only_sweep(tmp_path), "lora.rank=1"), tmp_path / "run")
    )
    assert {**swept, "seconds": None} == {**single, "seconds": None}


def test_fail_fast_stops_at_the_first(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    arguments = (*FEW, f"base_ckpt={base_ckpt}", "lora.rank=0,1", "sweep.fail_fast=true")
    done = cli("train.py", "-m", *arguments)
    assert done.code == 1
    assert len(done.err.splitlines()) == 2
    sweep = only_sweep(tmp_path)
    assert [row["status"] for row in read_summary(sweep)] == ["failed"]
    # What stopped it does not stop the next attempt.
    done = cli("train.py", "-m", *arguments, "lora.rank=1,2", f"sweep.resume={sweep}")
    assert done.code == 0, done.err
    assert [row["status"] for row in read_summary(sweep)] == ["finished", "finished", "failed"]


def test_a_full_disk_stops_and_loses_nothing(
    cli: Any, base_ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lora_mnist.run

    save, saved = lora_mnist.run.save_adapter, []

    def save_one(*arguments: Any, **metadata: Any) -> None:
        if saved:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(save(*arguments, **metadata))

    monkeypatch.setattr(lora_mnist.run, "save_adapter", save_one)
    arguments = ("-m", *FEW, f"base_ckpt={base_ckpt}", "lora.rank=1,2,4")
    done = cli("train.py", *arguments)
    assert done.code == 1
    assert "#1 lora.rank=2 failed: OSError: [Errno 28] No space left on device" in done.err
    assert len(done.err.splitlines()) == 2
    sweep = only_sweep(tmp_path)
    assert [row["status"] for row in read_summary(sweep)] == ["finished", "failed"]
    monkeypatch.undo()
    done = cli("train.py", *arguments, "sweep.resume=latest")
    assert done.code == 0, done.err
    assert [row["status"] for row in read_summary(sweep)] == ["finished"] * 3


def test_skipping_needs_no_torch(base_ckpt: Path, tmp_path: Path) -> None:
    """Whoever resumes a finished sweep of thousands waits for no import, job after job."""
    arguments = ("-m", *FEW, f"base_ckpt={base_ckpt}", "lora.rank=1,2")
    process = start(tmp_path, *arguments)
    assert process.wait(60) == 0
    command = [sys.executable, "-X", "importtime", "train.py", *arguments]
    done = subprocess.run(
        [*command, f"sweep.resume={only_sweep(tmp_path)}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.count("finished before") == 2
    assert not any(line.split("|")[-1].strip() == "torch" for line in done.stderr.splitlines())
