"""Single jobs of sweeps: skipped, recorded, failed, damaged."""

import errno
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import ROOT, read_results
from helpers.sweeping import FEW, TOY, job, only_sweep, read_summary, start, statuses

import lora_mnist.disk.files


def test_a_failing_job_takes_no_other_along(cli: Any, tmp_path: Path) -> None:
    done = cli(TOY, "-m", "x=0,-1,2", "y=1,4", "note='a b'")
    sweep = only_sweep(tmp_path)
    assert done.code == 1
    refused, crashed, last = (done.err.splitlines()[i] for i in (0, 2, 4))
    assert len(done.err.splitlines()) == 5
    assert refused == "#0 x=0 y=1 failed: x=0: expected an integer >= 1"
    log = job(sweep, "x=-1,y=1") / "toy.log"
    assert crashed == f"#2 x=-1 y=1 failed: RuntimeError: no such thing (traceback in {log})"
    assert "Traceback" in log.read_text()
    assert last == (
        f"4 failed; go on with: python {TOY} -m x=0,-1,2 y=1,4 \"note='a b'\" "
        f"paths.outputs={tmp_path}/outputs sweep.resume={sweep}"
    )
    assert "#4 x=2 y=1: val.accuracy 0.166667, 0.0 s" in done.out
    assert f"best: python {TOY} x=2 y=4 \"note='a b'\" paths.outputs" in done.out
    assert "failed: x=-1 y=4: RuntimeError: no such thing" in done.out
    rows = read_summary(sweep)
    assert [row["status"] for row in rows] == ["finished"] * 2 + ["failed"] * 4
    accuracies = [float(row["val.accuracy"]) for row in rows[:2]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert (sweep / "summary.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_fail_fast_stops_at_the_first(cli: Any, tmp_path: Path) -> None:
    done = cli(TOY, "-m", "x=0,1", "sweep.fail_fast=true")
    assert done.code == 1
    assert len(done.err.splitlines()) == 2
    sweep = only_sweep(tmp_path)
    assert statuses(sweep) == ["failed"]
    # What stopped it does not stop the next attempt.
    done = cli(TOY, "-m", "x=1,2", "sweep.fail_fast=true", f"sweep.resume={sweep}")
    assert done.code == 0, done.err
    assert statuses(sweep) == ["finished", "finished", "failed"]


@pytest.mark.slow
def test_a_full_disk_stops_and_loses_nothing(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = lora_mnist.disk.files.atomic_write, []

    def write_once(path: Path) -> Any:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return write(path)

    monkeypatch.setattr(lora_mnist.disk.files, "atomic_write", write_once)
    done = cli(TOY, "-m", "x=1,2,3")
    assert done.code == 1
    assert "#1 x=2 failed: OSError: [Errno 28] No space left on device" in done.err
    assert len(done.err.splitlines()) == 2
    sweep = only_sweep(tmp_path)
    assert statuses(sweep) == ["finished", "failed"]
    monkeypatch.undo()
    done = cli(TOY, "-m", "x=1,2,3", "sweep.resume=latest")
    assert done.code == 0, done.err
    assert statuses(sweep) == ["finished"] * 3


def test_a_damaged_job_runs_again(cli: Any, tmp_path: Path) -> None:
    assert cli(TOY, "-m", "x=1,2,3").code == 0
    sweep = only_sweep(tmp_path)
    torn, listed = (job(sweep, f"x={x}") for x in (1, 2))
    (torn / "results.json").write_text('{"val": {"accu')
    (listed / "job.json").write_text("[]")
    (listed / "half-done").write_text("from the first attempt")
    # A command that leaves the damaged ones alone names them, and does not end in a traceback.
    done = cli(TOY, "-m", "x=3", "sweep.resume=latest")
    assert f"damaged: {listed.name}: job.json is damaged" in done.out
    assert "damaged: x=1: results.json is damaged" in done.out
    assert "Traceback" not in done.err
    done = cli(TOY, "-m", "x=1,2,3", "sweep.resume=latest")
    assert done.code == 0, done.err
    assert done.out.count("finished before") == 1
    assert statuses(sweep) == ["finished"] * 3
    assert (listed / "half-done").read_text() == ""


@pytest.mark.slow
def test_what_a_job_starts_from_may_not_change_under_it(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is named by what it was before."""
    file = tmp_path / "input"
    file.write_text("before")
    monkeypatch.setattr(time, "sleep", lambda _: file.write_text("after, and longer"))
    done = cli(TOY, "-m", "x=1", f"input={file}")
    assert done.code == 1
    assert f"#0 failed: sweep.inputs=['{file}']: changed while the job ran" in done.err
    sweep = only_sweep(tmp_path)
    assert statuses(sweep) == ["failed"]
    done = cli(TOY, "-m", "x=1", f"input={file}", f"sweep.resume={sweep}")
    assert done.code == 0, done.err


def test_a_job_without_a_sweep_in_its_configuration_just_runs(cli: Any, tmp_path: Path) -> None:
    """As those of commands that leave no results, such as predict.py."""
    done = cli(TOY, "--config-name=plain", "-m", "x=1,2")
    assert done.code == 0, done.err
    assert "finished before" not in done.out
    assert "best:" not in done.out
    assert len(list((tmp_path / "outputs").glob("multirun/*/*/results.json"))) == 2


@pytest.mark.slow
def test_what_the_books_say_is_what_the_jobs_did(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    arguments = ("-m", *FEW[:3], f"base_ckpt={base_ckpt}", "lora.rank=0,1,2", "lora.alpha=1,4")
    done = cli("train.py", *arguments)
    assert done.code == 1
    sweep = only_sweep(tmp_path)
    reason = "lora.rank=0: expected an integer >= 1, at most 2147483647"
    assert done.err.splitlines()[0] == f"#0 lora.rank=0 lora.alpha=1 failed: {reason}"
    rows = read_summary(sweep)
    assert {row["error"] for row in rows[4:]} == {reason}
    swept, hparams = ("lora.rank", "lora.alpha"), {}
    for row in rows[:4]:
        results = read_results(sweep / row["folder"])
        assert f"{row['lora.rank']},lora.alpha={row['lora.alpha']}-" in row["folder"]
        assert int(row["parameters.lora"]) == 6_794 * int(row["lora.rank"])
        assert float(row["val.accuracy"]) == results["val"]["accuracy"]
        for split in ("val", "test", "test_base"):
            errors = results[split]["errors_per_class"]
            assert [int(row[f"{split}.errors_per_class.{c}"]) for c in range(10)] == errors
            assert int(row[f"{split}.errors_of_target"]) == errors[9]
        curves = sweep / row["folder"] / f"digit=9,rank={row['lora.rank']}"
        plugin = EventAccumulator(str(curves)).Reload()
        assert plugin.Scalars("val/accuracy")[-1].value == pytest.approx(float(row["val.accuracy"]))
        content = plugin.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        info = HParamsPluginData.FromString(content).session_start_info
        hparams[row["folder"]] = {key: info.hparams[key].number_value for key in swept}
    assert hparams == {row["folder"]: {key: float(row[key]) for key in swept} for row in rows[:4]}
    titles = next(line for line in done.out.splitlines() if line.startswith("┃"))
    assert [title.strip() for title in titles.split("┃")[2:-1]] == [
        *(*swept, "val.accuracy", "val errors on 9"),
        *("test.accuracy", "test errors on 9", "seconds"),
    ]


@pytest.mark.slow
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


@pytest.mark.slow
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
