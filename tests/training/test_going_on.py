"""A training that was cut short goes on from Lightning's checkpoint; a kill loses no file."""

import shlex
from unittest.mock import Mock

import pytest
from composed import FEW, SMALL, composed, small_base
from helpers.callbacks import CRASH, Crash, Crashed
from helpers.checkpoints import LORA, PRETRAIN
from helpers.commands import ROOT, list_files, only_run, read_results, run_process
from helpers.repairs import RECIPE, TRIALS, changed

from lora_mnist.commands.train import train
from lora_mnist.config.run import Run
from lora_mnist.run_paths import FINISHED_FOLDER, LAST_CHECKPOINT, list_finished
from lora_mnist.training import repair


def read_weights(folder):
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
def test_ckpt_path_goes_on_at_the_next_batch(start, overrides, crashes):
    """Inside an epoch, and at its last batch; where nothing is drawn, it ends in the same bits."""
    whole = start("whole", *overrides)
    for crash in crashes:
        cut = start(f"cut {crash}", *overrides, crash=crash)
        assert not (cut / "results.json").exists()
        before = list_files(cut)
        on = start(f"on {crash}", *overrides, f"ckpt_path='{cut / LAST_CHECKPOINT}'")
        assert read_results(on)["steps"] == read_results(whole)["steps"]
        assert read_weights(on) == read_weights(whole)
        curves = []  # Lightning writes a checkpoint before the validation at its step
        for folder in (on, whole):
            curve = read_results(folder).get("validation_errors", [])
            curves.append([errors for step, errors in curve if step != crash])
        assert curves[0] == curves[1]
        assert list_files(cut) == before


def test_more_steps_go_on_at_the_next_batch(start):
    first, more = start("first", *LORA), (*LORA, "trainer.max_steps=20")
    on = start("on", *more, f"ckpt_path={first / LAST_CHECKPOINT}")
    assert read_results(on)["steps"] == 20
    assert read_weights(on) == read_weights(start("whole", *more))


def test_a_run_that_was_cut_at_a_second_rate_ends_as_it_would_have(start, monkeypatch):
    """Its checkpoint is of the first training; the second starts again."""
    steep = (*LORA, "optimizer.lr=auto", "lora.alpha=15000", "lora.rank=8")
    whole = start("whole", *steep)
    rate = read_results(whole)["choices"]["learning_rate"]
    assert rate["value"] < rate["of"][0]
    with monkeypatch.context() as patched:
        patched.setattr(repair, "_plan_smaller_rate", Mock(side_effect=Crashed))
        cut = start("cut", *steep, crash=99)
    on = start("on", *steep, f"ckpt_path={cut / LAST_CHECKPOINT}")
    assert read_weights(on) == read_weights(whole)
    assert read_results(on)["choices"] == read_results(whole)["choices"]


@pytest.mark.parametrize("training", [3, 4, 5], ids=["first trial", "second", "refit"])
def test_a_repair_takes_the_finished_trainings_of_one_that_was_cut(start, training):
    """Two heads, two trials and a refit: it ends in the same bits, and the cut one stays."""
    command = (*RECIPE, *TRIALS, "head=true", "lora.offset=auto", "refit=true")
    whole = start("whole", *command)
    assert Crash.trainings == 5
    cut = start("cut", *command, crash=f"3@{training}")
    before = list_files(cut)
    assert len(list_finished(cut)) == training - 1
    on = start("on", *command, f"ckpt_path={cut}")
    assert Crash.trainings == 5 - (training - 1)
    assert read_weights(on) == read_weights(whole)
    one, other = read_results(on), read_results(whole)
    for key in ("choices", "scale_curve", "head", "steps", "test", "val", "validation_errors"):
        assert one[key] == other[key]
    assert list_files(cut) == before
    assert not any((folder / FINISHED_FOLDER).exists() for folder in (on, whole))


@pytest.mark.nightly
@pytest.mark.parametrize("training", [2, 3], ids=["second trial", "refit"])
def test_a_killed_repair_names_the_command_that_goes_on(cli, outputs, monkeypatch, training):
    """Killed, then interrupted at the next step, and then left alone."""
    command = ("train.py", *RECIPE, *TRIALS, *SMALL, *FEW, "refit=true", CRASH, "logger=none")
    command += (f"paths.outputs={outputs}",)
    monkeypatch.setenv("CRASH", f"3@{training}:SIGKILL")
    path = f"{ROOT}/tests:{ROOT}/src"
    assert run_process(*command, PYTHONPATH=path).returncode == -9
    killed = only_run(outputs, "lora")
    files = list_files(killed)
    monkeypatch.setenv("CRASH", "3:SIGTERM")
    ended = cli(*command, f"ckpt_path={killed}", f"hydra.run.dir={outputs}/two")
    assert ended.code == 143, ended.err
    script, *command_line = shlex.split(
        ended.err.splitlines()[-1].removeprefix("go on with: python ")
    )
    assert command_line[-1] == f"ckpt_path={outputs}/two"
    monkeypatch.setenv("CRASH", "-1")
    cli(script, *command_line, f"hydra.run.dir={outputs}/three").ok()
    assert list_files(killed) == files
    cli(*command, f"hydra.run.dir={outputs}/whole").ok()
    assert not changed(outputs / "three", outputs / "whole")


@pytest.mark.parametrize(("before", "after"), [("0", "0.5"), ("0.5", "0")])
def test_another_point_of_the_finished_adapter_is_no_other_training(start, before, after):
    last = start("cut", *LORA, f"lora.offset={before}", crash=3) / LAST_CHECKPOINT
    folder = start("on", *LORA, f"lora.offset={after}", "lora.scale=0.5", f"ckpt_path={last}")
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
    files = list_files(folder)
    monkeypatch.setenv("CRASH", "9:SIGTERM")
    ended = cli(*command, f"ckpt_path={folder / LAST_CHECKPOINT}", f"hydra.run.dir={tmp_path}/two")
    assert ended.code == 143, ended.err
    assert base.read_bytes() == before
    line = ended.err.splitlines()[-1]
    script, *command_line = shlex.split(line.removeprefix("go on with: python "))
    assert script == "train.py"
    assert command_line[-1] == f"ckpt_path={tmp_path}/two/{LAST_CHECKPOINT}"
    assert not [
        text for text in command_line[:-1] if "ckpt_path" in text or "hydra.run.dir" in text
    ]
    monkeypatch.setenv("CRASH", "-1")
    cli(script, *command_line).ok()
    (last,) = set((outputs / "pretrain").iterdir()) - {folder}
    assert read_results(last)["steps"] == 14
    assert base.read_bytes() != before
    assert list_files(folder) == files


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
    [("results.write_test_predictions", False), ("artifacts.set_current_base", True)],
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
    left, results = list_files(outputs / "cut"), read_results(outputs / "cut")
    more = (f"ckpt_path={outputs / 'cut' / LAST_CHECKPOINT}",) if goes_on else ()
    again = train(composed("train", *options, *more), Run(outputs / "on"))
    for key in ("base_sha256", "steps", "test", "val"):
        assert again[key] == results[key]
    assert list_files(outputs / "cut") == left
    names = {path.name for path in base.parent.iterdir()}
    assert f"mnist-{results['base_sha256'][:12]}.ckpt" in names
    assert len(names) == 3  # the one before is kept, too
