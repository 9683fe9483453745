"""A run that was cut short ends as if it had not been: the same bits, the same logged values."""

import shlex
import shutil
import time
from functools import partial
from os.path import relpath

import pytest
import torch
from composed import FEW, SMALL, composed, small_base
from helpers.callbacks import Crash, Crashed
from helpers.commands import ROOT, files_of, only_run, read_results, refused, run_process
from helpers.stranger import config, move_in
from kills import CASES, OFTEN
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

import lora_mnist.results
from lora_mnist.command import Run
from lora_mnist.disk.base import read_base, versioned_base_path
from lora_mnist.disk.resume import begin_run, last_checkpoint, step_of
from lora_mnist.disk.run_paths import LAST_CHECKPOINT
from lora_mnist.train import train

CRASH = "+callbacks.crash._target_=helpers.callbacks.Crash"
LORA = ("stage=lora", "digit=9", "trainer.max_steps=20", "lora.dropout=0.2", *OFTEN)
NOISE = "net._target_=helpers.nets.Noisy"
#: The first validation is the best.
HARMFUL = ("optimizer.lr=0.03", "trainer.max_steps=40", "trainer.val_check_interval=7")


def shortened(case):
    """One of the cases of kills.py, in few steps, each of which is logged."""
    few = ("trainer.max_steps=20", "trainer.log_every_n_steps=1")
    return (*CASES[case].split(), *OFTEN, *few)


@pytest.fixture
def go(tmp_path, monkeypatch):
    """``go("run", *overrides)`` trains in tmp_path/run; it may ``crash`` before a step."""
    base = small_base(tmp_path / "outputs")
    # Readers sort event files by name, in which files are counted: .9 comes behind .10.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(100))

    def run(name, *overrides, crash=None, resume=False):
        folder = tmp_path / name
        common = [*SMALL, *FEW, CRASH, f"paths.outputs={tmp_path}/outputs"]
        is_base = "stage=pretrain" in overrides
        common += [f"base_ckpt={folder}/base.ckpt" if is_base else f"base_ckpt={base}"]
        common += [f"resume={folder}"] if resume else []
        monkeypatch.setenv("CRASH", str(-1 if crash is None else crash))
        try:
            train(composed("train", *common, *overrides), Run(folder))
        except Crashed:
            assert crash is not None
        else:
            assert crash is None
        return folder

    return run


def left_by(folder):
    """The results, adapter and losses that a run leaves, without its times.

    TensorBoard's curve is a list, so that a step that is logged twice shows.
    """
    left = {k: v for k, v in read_results(folder).items() if k not in ("overrides", "seconds")}
    for file in sorted(folder.glob("adapter/*.*")):
        left[file.name] = file.read_bytes()
    for file in sorted(folder.rglob("events.out.tfevents.*"))[:1]:
        events = EventAccumulator(str(file.parent), {"scalars": 0}).Reload()
        left["curve"] = [(event.step, event.value) for event in events.Scalars("train/loss")]
    return left


def differences(*folders):
    """The names of what differs between two runs."""
    one, other = map(left_by, folders)
    return [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "crashes"),
    [
        (shortened("null"), (3, 16)),
        ((*shortened("epochs"), NOISE, "batches.batch_size=120"), (9, 16)),  # of 10 steps
        ((*shortened("short"), NOISE), (4, 10)),
        ((*shortened("callbacks=early_stopping"), *HARMFUL), (9, 16)),
        (shortened("everything"), (9, 10)),
    ],
    ids=["null", "epochs", "short", "validated", "everything"],
)
def test_thrice_cut_short_and_moved_it_ends_as_it_would_have(
    go, tmp_path, monkeypatch, overrides, crashes
):
    """Twice before a step, and after training, when averaged weights stand where trained ones did.

    The run "null" has no checkpoint when it is cut first, and begins again.
    """

    def fail(*_, **__):
        raise InterruptedError

    whole = go("whole", *overrides)
    first, second = crashes
    go("run", *overrides, crash=first).rename(tmp_path / "moved")
    folder = go("moved", *overrides, crash=second, resume=True)
    assert not (folder / "results.json").exists()
    assert second - 7 <= step_of(folder / LAST_CHECKPOINT) <= second
    with monkeypatch.context() as patched, pytest.raises(InterruptedError):
        patched.setattr(lora_mnist.results, "write_predictions", fail)
        go("moved", *overrides, resume=True)
    go("moved", *overrides, resume=True)
    assert differences(whole, folder) == []
    if "stage=pretrain" in overrides:
        assert (whole / "base.ckpt").read_bytes() == (folder / "base.ckpt").read_bytes()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_killed_and_then_interrupted(go, cli, tmp_path, monkeypatch):
    """By kill -9, then by SIGTERM, after which the command to go on with is named."""
    overrides = shortened("everything")
    whole, outputs = go("whole", *overrides), tmp_path / "outputs"
    command = ("train.py", *overrides, *SMALL, *FEW, CRASH, f"base_ckpt={outputs}/base/mnist.ckpt")
    environment = {"CRASH": "9:SIGKILL", "PYTHONPATH": f"{ROOT}/tests:{ROOT}/src"}
    killed = run_process(*command, f"paths.outputs={outputs}", **environment)
    assert killed.returncode == -9
    time.sleep(1)  # readers sort event files by second, then by process
    folder = only_run(outputs, "lora")
    hydra = files_of(folder / ".hydra")
    assert step_of(folder / LAST_CHECKPOINT) == 7
    monkeypatch.setenv("CRASH", "16:SIGTERM")
    ended = cli(*command, "resume=latest")
    assert ended.code == 143, ended.err
    words = shlex.split(ended.err.splitlines()[-1].partition("go on with: python ")[2])
    assert words[0] == "train.py"
    assert words[-1] == f"resume={folder}"
    monkeypatch.setenv("CRASH", "-1")
    cli(*words).ok()
    assert only_run(outputs, "lora") == folder
    assert files_of(folder / ".hydra") == hydra
    # It says with which command it was made, and what was typed.
    said = ["adapter_model.safetensors", "choices"]
    assert differences(whole, folder) == said


def test_what_a_callback_ends_goes_on_from_there(go, monkeypatch):
    """In the middle of an epoch, and as if nothing had ended it."""
    options = (*LORA, "callbacks=averaging")

    def stop(self, trainer, *_):
        trainer.should_stop |= trainer.global_step == 13

    with monkeypatch.context() as patched:
        patched.setattr(Crash, "on_train_batch_end", stop)
        folder = go("cut", *options, "trainer.max_steps=17")
    assert read_results(folder)["steps"] == 13
    assert step_of(folder / LAST_CHECKPOINT) == 7
    go("cut", *options, crash=18, resume=True)
    go("cut", *options, resume=True)
    assert differences(go("whole", *options), folder) == []


def test_one_process_at_a_time_and_a_new_run_begins_anew(tmp_path, caplog):
    """Another device is no obstacle, but rounds otherwise."""
    with begin_run(tmp_path, {"device": "cuda"}, None):
        (tmp_path / LAST_CHECKPOINT).touch()
        second = begin_run(tmp_path, {}, "latest")
        assert "a run is still going there" in refused(second.__enter__)
    with pytest.raises(Crashed), begin_run(tmp_path, {"device": "cuda"}, None):
        assert not (tmp_path / LAST_CHECKPOINT).exists()
        raise Crashed
    with begin_run(tmp_path, {"device": "cpu"}, "latest"):
        assert "device: this run began on cuda, and cpu rounds otherwise" in caplog.text


@pytest.mark.parametrize(
    ("key", "less", "more"),
    [("max_time", {"seconds": 1}, {"seconds": 9}), ("max_epochs", 1, 2), ("max_steps", 20, -1)],
)
def test_a_run_can_be_trained_farther(tmp_path, key, less, more):
    """From its checkpoint, unless it chooses another dropout."""

    def begin(limit, resume="latest"):
        return begin_run(tmp_path, {"trainer": {key: limit}}, resume)

    with begin(less, None):
        torch.save(
            {"hyper_parameters": {"trained_with": {"dropout": 0.1}}}, tmp_path / LAST_CHECKPOINT
        )
    assert "has finished; expected a larger" in refused(begin(less).__enter__)
    with begin(more):
        last = last_checkpoint(tmp_path, "latest", {"dropout": 0.1})
        assert last == tmp_path / LAST_CHECKPOINT
        assert last_checkpoint(tmp_path, "latest", {"dropout": 0.0}) is None
    last.unlink()
    assert f"expected {last}, to go on from" in refused(begin(more).__enter__)


def test_other_settings_are_refused_by_their_key_and_what_changes_no_number_is_not(go, tmp_path):
    """A replaced base is named by the file that keeps it."""
    options, outputs = (*LORA, "logger=none", "scheduler=linear"), tmp_path / "outputs"
    folder = go("run", *options, crash=9)
    before = files_of(folder)
    base = outputs / "base" / "mnist.ckpt"
    copy = versioned_base_path(base.parent, "mnist", read_base(base).sha256)
    shutil.copy(base, copy)
    other = small_base(outputs, seed=1).rename(tmp_path / "other.ckpt")
    small_base(outputs)
    for override, start, expected in (
        ("trainer.max_steps=60", "scheduler.total_iters=60", "20"),
        ("augment=shift", "batches.augment.", "null"),
        (f"base_ckpt={other}", f"base_ckpt={other}", f"base_ckpt={copy}"),
    ):
        answer = refused(partial(go, resume=True), "run", *options, override)
        assert answer.startswith(start)
        assert f": expected {expected}, as in resume={relpath(folder)}" in answer
    assert files_of(folder) == before
    moved = base.rename(tmp_path / "moved.ckpt")
    more = ("callbacks.checkpoint.every_n_train_steps=5", f"base_ckpt={moved}")
    assert read_results(go("run", *options, *more, resume=True))["steps"] == 20


def test_other_images_are_refused_by_name(tmp_path, monkeypatch):
    photos, run = move_in(tmp_path, monkeypatch) / "photos", Run(tmp_path / "run")
    options = ("stage=lora", "target=dog", *OFTEN, "logger=none", "trainer=cpu", "figures=false")
    train(config("train", *options, "trainer.max_steps=8"), run)
    options = (*options, f"resume={run.folder}", "trainer.max_steps=10")
    shutil.copytree(photos, tmp_path / "moved")  # the same images elsewhere go on
    train(config("train", *options, "data.data_dir=moved"), run)
    shutil.copy(photos / "dog" / "1.png", photos / "cat" / "1.png")
    answer = refused(train, config("train", *options), run)
    assert answer.startswith("data.data_dir=photos: expected the same images, as in resume=")
