"""A training that was cut short goes on from Lightning's checkpoint; a kill loses no file."""

import os
import shlex
import tempfile
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from composed import FEW, SMALL, composed, small_base
from helpers.callbacks import CRASH, OFTEN, Crashed
from helpers.commands import ROOT, files_of, only_run, read_results, refused, run_process

from lora_mnist.commands.train import train
from lora_mnist.config.command import Run
from lora_mnist.data import MNIST
from lora_mnist.run_paths import LAST_CHECKPOINT
from lora_mnist.training import repair
from lora_mnist.training.trainer import make_trainer

#: Two epochs of seven steps.
PRETRAIN = ("stage=pretrain", "trainer.max_epochs=2", "batches.batch_size=500", *OFTEN)
LORA = ("stage=lora", "digit=9", "trainer.max_steps=14", "trainer.val_check_interval=5", *OFTEN)


@pytest.fixture
def go(tmp_path, monkeypatch):
    """``go("run", *overrides)`` trains in tmp_path/run; it may ``crash`` before a step."""
    base = small_base(tmp_path / "outputs")

    def run(name, *overrides, crash=-1):
        folder = tmp_path / name
        is_base = "stage=pretrain" in overrides
        path = f"base_ckpt={folder}/base.ckpt" if is_base else f"base_ckpt={base}"
        monkeypatch.setenv("CRASH", str(crash))
        options = (*SMALL, *FEW, CRASH, f"paths.outputs={tmp_path}/outputs", "logger=none", path)
        try:
            train(composed("train", *options, *overrides), Run(folder))
        except Crashed:
            assert crash != -1
        return folder

    return run


def weights_of(folder):
    """The bytes of the adapter, or of the base, that a run has left."""
    paths = [folder / "adapter" / "adapter_model.safetensors", folder / "base.ckpt"]
    return next(path for path in paths if path.exists()).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "crashes"),
    [
        ((*PRETRAIN, "trainer.accumulate_grad_batches=2", "callbacks=averaging"), (6,)),
        ((*LORA, "batches.replay=9", "callbacks=averaging"), (5, 8)),
        ((*PRETRAIN, "+trainer.limit_train_batches=3"), (3,)),
    ],
    ids=["accumulated", "lora", "limited"],
)
def test_ckpt_path_goes_on_at_the_next_batch(go, overrides, crashes):
    """Inside an epoch, and at its last batch; where nothing is drawn, it ends in the same bits."""
    whole = go("whole", *overrides)
    for crash in crashes:
        cut = go(f"cut {crash}", *overrides, crash=crash)
        assert not (cut / "results.json").exists()
        before = files_of(cut)
        on = go(f"on {crash}", *overrides, f"ckpt_path='{cut / LAST_CHECKPOINT}'")
        assert read_results(on)["steps"] == read_results(whole)["steps"]
        assert weights_of(on) == weights_of(whole)
        curves = []  # Lightning writes a checkpoint before the validation at its step
        for folder in (on, whole):
            curve = read_results(folder).get("validation_errors", [])
            curves.append([errors for step, errors in curve if step != crash])
        assert curves[0] == curves[1]
        assert files_of(cut) == before


def test_a_checkpoint_is_replaced_whole_where_temporary_files_lie_elsewhere(tmp_path, monkeypatch):
    """Lightning writes one to them first. On another file system a move is a copy: not at once."""
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    options = ("trainer=cpu", "logger=none", f"paths.run={tmp_path}")
    strategy = make_trainer(composed("train", *PRETRAIN, *options), Run(tmp_path)).strategy
    last, same_file = tmp_path / "last.ckpt", tmp_path / "link.ckpt"
    strategy.save_checkpoint({"step": 1}, last)
    os.link(last, same_file)
    strategy.save_checkpoint({"step": 2}, last)
    for path, step in ((last, 2), (same_file, 1)):
        assert torch.load(path, weights_only=True) == {"step": step}


def test_a_checkpoint_of_something_else_is_refused(go, tmp_path, monkeypatch):
    """Of another base, or none at all, before images are read; or of one of several trainings."""
    last = go("cut", *LORA, crash=3) / LAST_CHECKPOINT
    other = small_base(tmp_path / "other", seed=1)
    two = "+trials={one: {lora.dropout: 0}, two: {lora.dropout: 0.1}}"
    for overrides, path in (
        ((*LORA, f"base_ckpt={other}"), last),
        (PRETRAIN, last),
        ((*LORA, "refit=true"), last),
        ((*LORA, "lora.dropout=auto", two), last),
        ((*LORA, "data.val_size=400"), last),
        ((*LORA, "digit=4"), last),
        (LORA, other),
        (LORA, tmp_path / "none.ckpt"),
    ):
        answer = refused(go, "new", *overrides, f"ckpt_path={path}")
        assert answer.startswith(f"ckpt_path={path}: ")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(MNIST, "sets", property(lambda _: pytest.fail("images are read")))
    for overrides, path in (((*LORA, f"base_ckpt={other}"), last), (LORA, tmp_path / "none.ckpt")):
        assert refused(go, "new", *overrides, f"ckpt_path={path}")


#: What a training is made of: as it was, and as it may not be where it goes on.
SETTINGS = {
    "optimizer.lr": ("0.0001", "5"),
    "lora.alpha": ("1", "4"),
    "loss.target_weight": ("null", "0.3"),
    "scheduler.end_factor": ("0.0", "0.5"),
    "batches.batch_size": ("10", "20"),
    "+callbacks.averaging.decay": ("0.9", "null"),
    "seed": ("0", "7"),
    "trainer.max_steps": ("14", "20"),  # to which the rate would not fall
}


def test_a_checkpoint_of_other_settings_is_refused(go):
    """The line names the first that differs, as it was and as it is now."""
    own = {key: before for key, (before, _) in SETTINGS.items()}
    own["+callbacks.averaging._target_"] = "lora_mnist.training.callbacks.TrainedAverage"
    command = (*LORA, "scheduler=linear")
    last = go("cut", *command, *map("=".join, own.items()), crash=3) / LAST_CHECKPOINT
    for key, (before, after) in SETTINGS.items():
        other = own | {key: after}
        if after == "null":
            del other["+callbacks.averaging.decay"], other["+callbacks.averaging._target_"]
        answer = refused(go, "new", *command, *map("=".join, other.items()), f"ckpt_path={last}")
        named = key.lstrip("+").replace("trainer.max_steps", "scheduler.total_iters")
        assert answer.startswith(f"ckpt_path={last}: its training had {named}={before}, ")
        assert f"this one has {after};" in answer


def test_more_steps_go_on_at_the_next_batch(go):
    first, more = go("first", *LORA), (*LORA, "trainer.max_steps=20")
    on = go("on", *more, f"ckpt_path={first / LAST_CHECKPOINT}")
    assert read_results(on)["steps"] == 20
    assert weights_of(on) == weights_of(go("whole", *more))


def test_a_run_that_was_cut_at_a_second_rate_ends_as_it_would_have(go, monkeypatch):
    """Its checkpoint is of the first training; the second starts again."""
    steep = (*LORA, "optimizer.lr=auto", "lora.alpha=15000", "lora.rank=8")
    whole = go("whole", *steep)
    rate = read_results(whole)["choices"]["rate"]
    assert rate["value"] < rate["of"][0]
    with monkeypatch.context() as patched:
        patched.setattr(repair, "_at_next_rate", Mock(side_effect=Crashed))
        cut = go("cut", *steep, crash=99)
    on = go("on", *steep, f"ckpt_path={cut / LAST_CHECKPOINT}")
    assert weights_of(on) == weights_of(whole)
    assert read_results(on)["choices"] == read_results(whole)["choices"]


@pytest.mark.parametrize(("before", "after"), [("0", "0.5"), ("0.5", "0")])
def test_another_point_of_the_finished_adapter_is_no_other_training(go, before, after):
    last = go("cut", *LORA, f"lora.offset={before}", crash=3) / LAST_CHECKPOINT
    folder = go("on", *LORA, f"lora.offset={after}", "lora.scale=0.5", f"ckpt_path={last}")
    point = {"scale": 0.5, "offset": float(after)}
    assert read_results(folder)["choices"]["point"]["value"] == point


@pytest.mark.slow
@pytest.mark.parametrize("kill", ["", pytest.param(":SIGKILL", marks=pytest.mark.nightly)])
def test_a_killed_pretraining_goes_on(cli, tmp_path, monkeypatch, kill):
    """Killed, then interrupted, after which the command to go on with is named."""
    outputs = tmp_path / "outputs"
    base = small_base(outputs)
    before = base.read_bytes()
    command = ("train.py", *PRETRAIN, *SMALL, *FEW, CRASH)
    monkeypatch.setenv("CRASH", f"5{kill}")
    if kill:  # the process, too
        path = f"{ROOT}/tests:{ROOT}/src"
        killed = run_process(*command, f"paths.outputs={outputs}", PYTHONPATH=path)
        assert killed.returncode == -9
    else:
        with pytest.raises(Crashed):
            cli(*command)
    folder = only_run(outputs, "pretrain")
    files = files_of(folder)
    monkeypatch.setenv("CRASH", "9:SIGTERM")
    ended = cli(*command, f"ckpt_path={folder / LAST_CHECKPOINT}", f"hydra.run.dir={tmp_path}/two")
    assert ended.code == 143, ended.err
    assert base.read_bytes() == before
    line = ended.err.splitlines()[-1]
    script, *typed = shlex.split(line.removeprefix("go on with: python "))
    assert script == "train.py"
    assert typed[-1] == f"ckpt_path={tmp_path}/two/{LAST_CHECKPOINT}"
    assert not [text for text in typed[:-1] if "ckpt_path" in text or "hydra.run.dir" in text]
    monkeypatch.setenv("CRASH", "-1")
    cli(script, *typed).ok()
    (last,) = set((outputs / "pretrain").iterdir()) - {folder}
    assert read_results(last)["steps"] == 14
    assert base.read_bytes() != before
    assert files_of(folder) == files


@pytest.mark.parametrize(
    ("overrides", "crash"), [((), 0), (("refit=true",), 9)], ids=["no checkpoint", "trials"]
)
def test_what_cannot_go_on_is_started_again(cli, outputs, monkeypatch, overrides, crash):
    monkeypatch.setenv("CRASH", f"{crash}:SIGINT")
    command = (*LORA, *overrides, *SMALL, *FEW, CRASH, "logger=none")
    ended = cli("train.py", *command, f"hydra.run.dir={outputs}/mine")
    assert ended.code == 130, ended.err
    line = ended.err.splitlines()[-1].removeprefix("start again with: python ")
    assert shlex.split(line) == ["train.py", *command, f"paths.outputs={outputs}"]
    assert (outputs / "mine" / "train.log").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("writer", "goes_on"),
    [("results.write_table", False), ("artifacts.set_current_base", True)],
)
def test_a_kill_while_results_are_written_loses_no_base(outputs, monkeypatch, writer, goes_on):
    """What was trained is there; the same command gives the same, and so does going on."""
    base = outputs / "base" / "mnist.ckpt"
    before = base.read_bytes()
    options = (*PRETRAIN, *SMALL, *FEW, "logger=none", f"paths.outputs={outputs}")

    def crash(*_):
        raise Crashed

    with monkeypatch.context() as patch, pytest.raises(Crashed):
        patch.setattr(f"lora_mnist.training.{writer}", crash)
        train(composed("train", *options), Run(outputs / "cut"))
    assert base.read_bytes() == before
    left, results = files_of(outputs / "cut"), read_results(outputs / "cut")
    more = (f"ckpt_path={outputs / 'cut' / LAST_CHECKPOINT}",) if goes_on else ()
    again = train(composed("train", *options, *more), Run(outputs / "on"))
    for key in ("base_sha256", "steps", "test", "val"):
        assert again[key] == results[key]
    assert files_of(outputs / "cut") == left
    names = {path.name for path in base.parent.iterdir()}
    assert f"mnist-{results['base_sha256'][:12]}.ckpt" in names
    assert len(names) == 3  # the one before is kept, too
