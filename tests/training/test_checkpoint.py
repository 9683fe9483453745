import os
import tempfile
from pathlib import Path

import pytest
import torch
from composed import composed, small_base
from helpers.checkpoints import LORA, PRETRAIN
from helpers.commands import refused
from helpers.repairs import RECIPE

from lora_mnist.config.run import Run
from lora_mnist.data import MNIST
from lora_mnist.run_paths import LAST_CHECKPOINT, list_finished
from lora_mnist.training.trainer import make_trainer


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


def test_a_checkpoint_of_something_else_is_refused(start, tmp_path, monkeypatch):
    """Of another base, or none at all, before images are read; or of one of several trainings."""
    last = start("cut", *LORA, crash=3) / LAST_CHECKPOINT
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
        answer = refused(start, "new", *overrides, f"ckpt_path={path}")
        assert answer.startswith(f"ckpt_path={path}: ")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(MNIST, "sets", property(lambda _: pytest.fail("images are read")))
    for overrides, path in (((*LORA, f"base_ckpt={other}"), last), (LORA, tmp_path / "none.ckpt")):
        assert refused(start, "new", *overrides, f"ckpt_path={path}")


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


def test_a_checkpoint_of_other_settings_is_refused(start):
    """The line names the first that differs, as it was and as it is now."""
    own = {key: before for key, (before, _) in SETTINGS.items()}
    own["+callbacks.averaging._target_"] = "lora_mnist.training.callbacks.TrainedAverage"
    command = (*LORA, "scheduler=linear")
    last = start("cut", *command, *map("=".join, own.items()), crash=3) / LAST_CHECKPOINT
    for key, (before, after) in SETTINGS.items():
        other = own | {key: after}
        if after == "null":
            del other["+callbacks.averaging.decay"], other["+callbacks.averaging._target_"]
        answer = refused(start, "new", *command, *map("=".join, other.items()), f"ckpt_path={last}")
        named = key.lstrip("+").replace("trainer.max_steps", "scheduler.total_iters")
        assert answer.startswith(f"ckpt_path={last}: its training had {named}={before}, ")
        assert f"this one has {after};" in answer


#: Another value of a key, for a repair whose finished trainings have the first.
OTHERS = {
    "trainer.max_steps": ("12", "20"),
    "choose_by": ("mean_accuracy", "accuracy"),
    "lora.scale": ("auto", "0.5"),
    "lora.offset": ("auto", "0"),
    "seed": ("0", "7"),
    "+trials": ("{high: {}, low: {optimizer.lr: 0.003}}", "{high: {}, low: {optimizer.lr: 0.002}}"),
    "data.val_size": ("500", "400"),
}


def test_finished_trainings_of_another_repair_are_refused(start):
    own = {key: before for key, (before, _) in OTHERS.items()}
    common = (*RECIPE, "optimizer.lr=auto")
    cut = start("cut", *common, *map("=".join, own.items()), crash="3@2")
    for key, (_, after) in OTHERS.items():
        other = own | {key: after}
        answer = refused(start, "new", *common, *map("=".join, other.items()), f"ckpt_path={cut}")
        named = {"data.val_size": "images_sha256"}.get(key, key.lstrip("+"))
        assert answer.startswith(f"ckpt_path={cut}: its training had {named}")
    (file,) = list_finished(cut)
    file.write_bytes(file.read_bytes()[:-9])
    again = (*common, *map("=".join, own.items()), f"ckpt_path={cut}")
    assert refused(start, "new", *again).startswith(f"{file}: expected a finished training")
    file.unlink()
    assert "no such file" in refused(start, "new", *again)
