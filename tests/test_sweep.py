"""Sweeps: whole ones of a toy command, and the parts by themselves."""

import os
import re
import time

import pytest
from composed import FEW, SMALL, small_base
from helpers.commands import ROOT, only_run
from helpers.sweeping import COLUMNS, TOY, read_summary, start, write_job
from omegaconf import OmegaConf

from lora_mnist.disk.files import write_json
from lora_mnist.errors import UserError
from lora_mnist.project import command_line
from lora_mnist.sweep import (
    findings,
    job_folder,
    summarize,
    sweep_folder,
    table,
    table_text,
    what_it_computes,
    write_report,
)

# --- whole sweeps --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_failing_job_takes_no_other_along_and_a_resumed_sweep_runs_what_is_left(cli, tmp_path):
    failed = cli(TOY, "-m", "x=0,-1,2,3", "note='a b'")
    sweep = only_run(tmp_path / "outputs", "multirun")
    assert failed.code == 1
    refused, crashed, count, last = failed.err.splitlines()
    assert refused == "#0 x=0 failed: x=0: expected an integer >= 1"
    (log,) = sweep.glob("x=-1-*/toy.log")
    assert crashed == f"#1 x=-1 failed: RuntimeError: no such thing (traceback in {log})"
    assert "Traceback" in log.read_text()
    assert count == "2 failed"
    entry = f"python {ROOT / TOY}"
    assert last.startswith(f"go on with: {entry} -m x=0,-1,2,3 \"note='a b'\" ")
    assert last.endswith(f"sweep.resume={sweep}")
    assert "#3 x=3: val.accuracy 0.2, " in failed.out
    assert f"\nbest: {entry} x=3 \"note='a b'\" paths.outputs=" in failed.out
    assert [row["status"] for row in read_summary(sweep)] == ["finished"] * 2 + ["failed"] * 2
    assert {"summary.csv", "summary.png", "report.html"} <= {path.name for path in sweep.iterdir()}

    (lost,) = sweep.glob("x=2-*/results.json")
    lost.unlink()
    # What failed is not in this grid. The group's one file is its default: no other configuration.
    grid = ("x=2,3,4", "note='a b'", "shape=glob(r*)", "sweep.metric=val.loss")
    done = cli(TOY, "-m", *grid, "sweep.resume=latest")
    assert done.out.count("finished before") == 1
    rows = [(row["x"], row["shape"], row["status"]) for row in read_summary(sweep)]
    assert rows == [(x, "round", "finished") for x in ("2", "3", "4")]
    refusal = "sweep.metric=val.loss: no job has it; expected a column of summary.csv\n"
    assert (done.code, done.err) == (2, refusal)
    assert "best:" not in done.out


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(cli, tmp_path):
    arguments = ("-m", "x=1,2,3", "pause=0.4")
    process = start(tmp_path, *arguments)
    while len(list((tmp_path / "outputs").glob("multirun/*/*/half-done"))) < 2:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)
    sweep = only_run(tmp_path / "outputs", "multirun")
    (finished,) = sweep.glob("*/results.json")
    (interrupted,) = [path for path in sweep.glob("x=*") if path != finished.parent]
    (interrupted / "part").mkdir()
    (interrupted / "part" / "left").touch()
    before = finished.stat().st_mtime_ns
    done = cli(TOY, *arguments, "sweep.resume=latest").ok()
    assert done.out.count("finished before") == 1
    assert finished.stat().st_mtime_ns == before
    assert not (interrupted / "part").exists()
    assert len(read_summary(sweep)) == len({row["folder"] for row in read_summary(sweep)}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "sweep.resume=latest"), "sweep.resume=latest: expected the folder of a sweep"),
        (("sweep.resume=latest",), "sweep.resume=latest: expected a sweep; start it with -m"),
        (("-m", "sweep.metric=test.loss"), "sweep.metric=test.loss: expected a number of valid"),
        (("-m", "hydra.sweep.subdir=mine"), "hydra.sweep.subdir: expected none"),
        (("-m", "+resume=a"), "resume: expected a single run; a sweep has sweep.resume"),
        (("-m", "nope=1,2"), "nope: nothing reads this key; "),
    ],
)
def test_bad_input(cli, tmp_path, arguments, message):
    """It leaves nothing that sweep.resume=latest would take for a sweep."""
    done = cli(TOY, *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(message)
    assert len(done.err.splitlines()) == 1
    assert not list(tmp_path.glob("outputs/multirun/*"))


def test_a_command_that_keeps_no_results_just_runs(cli, tmp_path):
    """Such as predict.py, which has no ``sweep`` in its configuration."""
    done = cli(TOY, "--config-name=plain", "-m", "x=1").ok()
    assert "best:" not in done.out
    assert len(list((tmp_path / "outputs").glob("multirun/*/*/results.json"))) == 1


@pytest.mark.nightly
def test_a_real_sweep(cli, tmp_path):
    """The price of the class stands in the table."""
    small_base(tmp_path / "outputs")
    settings = ("trainer.max_steps=30", "logger=none", "callbacks.checkpoint=null")
    repair = ("experiment=repair", "digit=weakest", "loss.target_weight=0.1,0.5")
    done = cli("train.py", "-m", *repair, "sweep.metric=val.errors", *SMALL, *FEW, *settings).ok()
    for title in ("val errors on target", "val errors elsewhere", "val errors"):
        assert f" {title} ┃" in done.out
    rows = read_summary(only_run(tmp_path / "outputs", "multirun"))
    errors = [int(row["val.errors"]) for row in rows]
    assert errors == sorted(errors)
    parts = [int(row["val.errors_of_target"]) + int(row["val.errors_elsewhere"]) for row in rows]
    assert parts == errors


# --- folders, and what a job computes ------------------------------------------------------------

TASK = {"stage": "lora", "lora": {"rank": 1, "scaled": "${.rank}"}, "digit": 9, "base_ckpt": None}


def config(**changes):
    return OmegaConf.create({**TASK, **changes})


def test_a_job_is_its_settings():
    same = what_it_computes(config())
    assert re.fullmatch("[0-9a-f]{12}", same)
    assert what_it_computes(OmegaConf.create(dict(reversed(list(config().items()))))) == same
    for change in ({"hydra": {"run": 1}}, {"paths": {"root": "/"}}, {"logger": {}}, {"sweep": 1}):
        assert what_it_computes(config(**change)) == same
    for change in ({"digit": 8}, {"digit": "9"}, {"lora": None}):
        assert what_it_computes(config(**change)) != same


@pytest.mark.parametrize("key", ["base_ckpt", "adapter", None])
def test_a_job_is_its_base_and_its_adapter(tmp_path, key):
    """Those that are named, or else the current base: by their content."""
    file = tmp_path / "mnist.ckpt"
    cfg = config(**{key: str(file)} if key else {})
    if key == "adapter":  # of the run's folder, or of its own
        file = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
        file.parent.mkdir(parents=True)
        cfg.adapter = str(tmp_path / "run")
    cfg.paths = {"bases": str(tmp_path)}
    digests = [what_it_computes(cfg)]
    for content in (b"1", b"12"):
        file.write_bytes(content)
        digests.append(what_it_computes(cfg))
    assert len(set(digests)) == 3
    os.utime(file, ns=(1, 1))  # another time, the same content
    assert what_it_computes(cfg) == digests[-1]


def test_a_base_that_a_job_will_replace_is_no_part_of_it(tmp_path):
    cfg = config(stage="pretrain", paths={"bases": str(tmp_path)})
    before = what_it_computes(cfg)
    (tmp_path / "mnist.ckpt").write_bytes(b"1")
    assert what_it_computes(cfg) == before


def folder_of_job(sweep, *overrides):
    hydra = {"sweep": {"dir": str(sweep)}, "overrides": {"task": list(overrides)}}
    return job_folder(_root_=config(hydra=hydra))


def test_a_job_is_named_by_what_was_swept(tmp_path):
    digest = folder_of_job(tmp_path, "stage=lora")
    assert digest == what_it_computes(config())
    write_json(tmp_path / "sweep.json", {"swept": ["classifier", "net.act", "a"]})
    name = folder_of_job(tmp_path, "stage=lora", "classifier@_global_=b", "+net.act='a/b c'")
    assert name == f"classifier=b,net.act=_a_b_c_-{digest}"
    assert len(folder_of_job(tmp_path, f"a={'x' * 500}")) == 113
    (tmp_path / name).mkdir()  # another command, which sweeps other keys, finds it
    assert folder_of_job(tmp_path, "seed=0") == name


def test_latest_is_the_sweep_that_ran_a_job_last(tmp_path):
    new = f"{tmp_path}/new"
    assert sweep_folder(new, None) == new
    write_json(tmp_path / "c" / "sweep.json", {"swept": []})  # it came to no job
    for i, name in enumerate(("b", "a")):
        os.utime(write_job(tmp_path / name, "job", []) / "job.json", ns=(i, i))
    assert sweep_folder(new, "latest") == f"{tmp_path}/a"
    assert sweep_folder(new, f"{tmp_path}/c") == f"{tmp_path}/c"
    for resume in ("latest", f"{tmp_path}/d"):
        with pytest.raises(UserError, match=rf"^sweep\.resume={resume}: expected the folder"):
            sweep_folder(f"{tmp_path}/b/new/x", resume)


# --- the summary, from the files of jobs that never ran ------------------------------------------


def printed(sweep, metric="val.accuracy"):
    """What the sweep prints at its end."""
    summary = summarize(sweep, metric, COLUMNS)
    return "\n".join([table_text(summary), *findings(summary)])


def test_the_table(tmp_path):
    """An earlier command's jobs, which the last one does not have, are not in it."""
    more = {
        "val_base": {"accuracy": 0.93, "errors_of_target": 38},
        "test_base": {"accuracy": 0.952},
        "test": {"accuracy": 0.92484},
        "scale": 0.5,
    }
    for rank, accuracy, command in ((4, 0.9166, 1), (8, 0.93344, 1), (16, 0.99, 0)):
        job = {"accuracy": accuracy, "more": more, "command": command}
        write_job(tmp_path, f"{rank}", [f"lora.rank={rank}"], **job)
    write_job(tmp_path, "0", ["lora.rank=0"], error="expected an integer >= 1")
    titles, rows, base = table(summarize(tmp_path, "val.accuracy", COLUMNS))
    assert titles[:4] == ["", "lora.rank", "val.accuracy", "val errors on target"]
    assert titles[4:] == ["test accuracy", "scale", "seconds"]
    assert rows[0] == ["1", "8", "0.9334", "4", "0.9248", "0.5000", "1.250"]
    assert rows[1:] == [["2", "4", "0.9166", "4", "0.9248", "0.5000", "1.250"]]
    assert base == ["base", "", "0.9300", "38", "0.9520", "", ""]
    assert [row["lora.rank"] for row in read_summary(tmp_path)] == ["8", "4", "0"]


@pytest.mark.parametrize(
    ("metric", "base", "verdict", "rank"),
    [
        ("accuracy", 0.5, "best", 1),
        ("errors", 0.5, "no job is better than the base; the nearest", 2),
        ("loss", 0.95, "best", 2),
    ],
)
def test_the_best_job_is_better_than_its_start(tmp_path, metric, base, verdict, rank):
    """The smallest loss is the best, the largest accuracy."""
    for number, value in enumerate((0.8, 0.7), start=1):
        more = {"val": {metric: value}, "val_base": {metric: base}}
        write_job(tmp_path, f"{number}", [f"lora.rank={number}"], accuracy=0.0, more=more)
    text = printed(tmp_path, f"val.{metric}")
    assert "│ base │ " in text
    command = command_line(["stage=lora", f"lora.rank={rank}"])
    assert text.splitlines()[-1] == f"{verdict}: {command}"


def test_a_lucky_seed_is_not_crowned(tmp_path):
    """Jobs that differ in their seed alone are one: the mean decides."""
    accuracies = {(1, 0): 0.95, (1, 1): 0.75, (1, 2): 0.85, (2, 0): 0.9, (2, 1): 0.88}
    for (rank, seed), accuracy in accuracies.items():
        overrides = [f"seed={seed}", f"lora.rank={rank}"]
        write_job(tmp_path, f"{rank}-{seed}", overrides, accuracy=accuracy)
    write_job(tmp_path, "2-2", ["seed=2", "lora.rank=2"], error="no")
    text = printed(tmp_path)
    assert "┃ seeds ┃" in text
    assert "│ 1 │         2 │     2 │ 0.8900 ± 0.01414 │" in text
    assert "│ 2 │         1 │     3 │  0.8500 ± 0.1000 │" in text
    best, failed = text.splitlines()[-2:]
    command = command_line(["stage=lora", "seed=0", "lora.rank=2"])
    assert best == f"best by the mean of 2 seeds: {command}"
    assert failed == "failed: seed=2 lora.rank=2: no"
    rows = read_summary(tmp_path)
    assert [row["lora.rank"] + row["seed"] for row in rows] == ["20", "21", "10", "11", "12", "22"]


def test_the_report(tmp_path):
    """The table, its picture and what failed; names are escaped."""
    for rank, accuracy in enumerate((0.91, 0.95), start=1):
        base = {"val_base": {"accuracy": 0.9}}
        write_job(tmp_path, f"{rank}", [f"lora.rank={rank}"], accuracy=accuracy, more=base)
    write_job(tmp_path, "bad", ["lora.rank=<b>"], error="no & space")
    write_report(summarize(tmp_path, "val.accuracy", COLUMNS), "python train.py '<x>'")
    page = (tmp_path / "report.html").read_text()
    places = [page.index(f"<td>{accuracy}</td>") for accuracy in ("0.9500", "0.9100")]
    assert places == sorted(places)
    assert "<td>base</td><td></td><td>0.9000</td>" in page[page.index("<tfoot>") :]
    assert '<img src="data:image/png;base64,' in page
    assert "http" not in page
    assert "<p>failed: lora.rank=&lt;b&gt;: no &amp; space</p>" in page
    assert "python train.py &#39;&lt;x&gt;&#39;" in page
