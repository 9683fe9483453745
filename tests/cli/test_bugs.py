"""What no key has caused looks like a bug: Python's traceback, with the file and the line."""

import traceback

import pytest
from composed import FEW, composed, small_base
from helpers.bugs import trip
from helpers.stranger import config, move_in

import lora_mnist.training.recipe
from lora_mnist.cli.main import explain
from lora_mnist.commands.train import train
from lora_mnist.config.command import Run

QUICK = ("trainer=cpu", "trainer.max_steps=2", "figures=false", "logger=none")
PRETRAIN = ("stage=pretrain", *QUICK, *FEW)


def shown(function, *arguments):
    """The traceback of an error that is no refusal."""
    with pytest.raises(ValueError, match="a bug") as caught:
        function(*arguments)
    assert explain(caught.value) is None
    text = "".join(traceback.format_exception(caught.value))
    traceback.clear_frames(caught.tb)  # a DataLoader in them has processes
    return text


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (("net=custom", "net._target_=helpers.bugs.Unmade"), "net._target_=helpers.bugs.Unmade: "),
        (
            ("net=custom", "net._target_=helpers.bugs.Forward"),
            "net: images of shape (4, 1, 28, 28)",
        ),
        (("loss=own", "net.hidden_sizes=[16]"), ""),
        (("+callbacks.bug._target_=helpers.bugs.InTraining", "net.hidden_sizes=[16]"), ""),
        (("+callbacks.bug._target_=helpers.bugs.UnmadeCallback",), "callbacks.bug: "),
    ],
)
def test_a_bug_in_code_of_ones_own(tmp_path, options, note):
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "own.yaml").write_text("_target_: helpers.bugs.Loss")
    groups = (f"hydra.searchpath=[file://{tmp_path}]", f"paths.outputs={tmp_path}/outputs")
    text = shown(train, composed("train", *groups, *PRETRAIN, *options), Run(tmp_path / "run"))
    assert 'bugs.py", line' in text
    assert text.rpartition("ValueError: a bug\n")[2].startswith(note)


def test_a_bug_in_a_transform_that_a_worker_calls(tmp_path, monkeypatch):
    move_in(tmp_path, monkeypatch)
    own = ("prepare.transform={_target_: helpers.bugs.prepare}", "data.num_workers=1")
    cfg = config("train", "stage=lora", "target=dog", *QUICK, *own)
    assert 'bugs.py", line' in shown(train, cfg, Run(tmp_path / "run"))


def test_a_bug_of_ours(tmp_path, monkeypatch):
    small_base(tmp_path / "outputs")
    monkeypatch.setattr(lora_mnist.training.recipe, "select", lambda *_: trip())
    options = ("stage=lora", "digit=9", *QUICK, *FEW, "net.hidden_sizes=[16]")
    cfg = composed("train", f"paths.outputs={tmp_path}/outputs", *options)
    assert 'recipe.py", line' in shown(train, cfg, Run(tmp_path / "run"))
