"""What no key has caused looks like a bug: Python's traceback, with the file and the line."""

import traceback

import pytest
from composed import FEW, composed
from helpers.stranger import config, move_in

from lora_mnist.cli.main import explain
from lora_mnist.commands.train import train
from lora_mnist.config.command import Run

QUICK = ("trainer=cpu", "trainer.max_steps=2", "figures=false", "logger=none")


def shown(cfg, folder):
    """The traceback of a training, whose error is no refusal."""
    with pytest.raises(ValueError, match="a bug") as caught:
        train(cfg, Run(folder))
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
        (("+callbacks.bug._target_=helpers.bugs.InTraining", "net.hidden_sizes=[16]"), ""),
        (("+callbacks.bug._target_=helpers.bugs.UnmadeCallback",), "callbacks.bug: "),
    ],
)
def test_a_bug_in_code_of_ones_own(tmp_path, options, note):
    more = ("stage=pretrain", f"paths.outputs={tmp_path}/outputs", *FEW)
    text = shown(composed("train", *QUICK, *more, *options), tmp_path / "run")
    assert 'bugs.py", line' in text
    assert text.rpartition("ValueError: a bug\n")[2].startswith(note)


def test_a_bug_in_a_transform_that_a_worker_calls(tmp_path, monkeypatch):
    move_in(tmp_path, monkeypatch)
    own = ("prepare.transform={_target_: helpers.bugs.prepare}", "data.num_workers=1")
    cfg = config("train", "stage=lora", "target=dog", *QUICK, *own)
    assert 'bugs.py", line' in shown(cfg, tmp_path / "run")
