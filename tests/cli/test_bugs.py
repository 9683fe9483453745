"""What no key has caused looks like a bug: Python's traceback, with the file and the line."""

import traceback

import pytest
from composed import FEW, composed
from helpers.commands import refused
from helpers.nets import as_floats
from helpers.stranger import config, move_in
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import get_worker_info

from lora_mnist.cli.explain import explain
from lora_mnist.commands.train import train
from lora_mnist.config.make import instantiate_part
from lora_mnist.config.run import Run

QUICK = ("trainer=cpu", "trainer.max_steps=2", "figures=false", "logger=none")


def trip():
    raise ValueError("a bug")


class Forward(nn.Linear):
    def __init__(self):
        super().__init__(784, 10)

    def forward(self, images):
        trip()


class InTraining(Callback):
    def on_train_batch_start(self, *_):
        trip()


class Unmade(Callback):
    def __init__(self):
        trip()


def prepare(picture):
    """Its bug shows where pictures are read by a process of their own."""
    if get_worker_info() is not None:
        trip()
    return as_floats(picture)


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
        (("net=custom", f"net._target_={__name__}.Forward"), "net: images of shape (4, 1, 28, 28)"),
        ((f"+callbacks.bug._target_={__name__}.InTraining", "net.hidden_sizes=[16]"), ""),
        ((f"+callbacks.bug._target_={__name__}.Unmade",), "callbacks.bug: "),
    ],
)
def test_a_bug_in_code_of_ones_own(tmp_path, options, note):
    more = ("stage=pretrain", f"paths.outputs={tmp_path}/outputs", *FEW)
    text = shown(composed("train", *QUICK, *more, *options), tmp_path / "run")
    assert ", in trip\n" in text
    assert text.rpartition("ValueError: a bug\n")[2].startswith(note)


def test_a_bug_in_a_transform_that_a_worker_calls(tmp_path, monkeypatch):
    move_in(tmp_path, monkeypatch)
    own = (f"prepare.transform={{_target_: {__name__}.prepare}}", "data.num_workers=1")
    cfg = config("train", "stage=lora", "target=dog", *QUICK, *own)
    assert ", in trip\n" in shown(cfg, tmp_path / "run")


def test_what_any_installed_library_says_of_a_value_is_a_line(tmp_path, monkeypatch):
    """Of a library that this project does not know."""
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "foreign.py").write_text("def make():\n    raise ValueError('no such size')")
    monkeypatch.syspath_prepend(str(installed))
    assert (
        refused(instantiate_part, "net", {"_target_": "foreign.make"})
        == "net: ValueError: no such size"
    )
