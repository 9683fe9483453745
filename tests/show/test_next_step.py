"""The command to go on with, on made-up runs."""

import pytest
from helpers.commands import ROOT
from helpers.runs import outcome, repaired, results

from lora_mnist.show.next_step import suggest_next_step
from lora_mnist.show.run_results import RunResults

OWN = ["data=folder", "data.data_dir=my photos", "net._target_=nets.Net", "base_ckpt=mine.pt"]
AS_TYPED = "data=folder 'data.data_dir=my photos' net._target_=nets.Net base_ckpt=mine.pt"
WEAKEST = "train.py experiment=repair target=weakest"
#: On test images dogs are weakest, which choose nothing.
CATS = "train.py experiment=repair target=cat"
KEPT = results(test=repaired([2, 9, 1], [0, 0, 0], [0, 9, 0]))
#: A run, its overrides, and the command that is advised.
ADVICE = [
    (results("eval", point=None, targets=[]), [*OWN, "seed=3"], f"{WEAKEST} {AS_TYPED}"),
    (results("pretrain", weights="a.ckpt"), OWN[-1:], f"{WEAKEST} base_ckpt=run/a.ckpt"),
    (results("pretrain", val=outcome([9, 2, 1])), OWN[-1:], f"{CATS} base_ckpt=mine.pt"),
    (KEPT, [*OWN, "seed=3"], f"export.py adapter=run/adapter out=repaired.onnx {AS_TYPED}"),
]
#: Runs after which there is nothing to advise.
NO_ADVICE = {
    "no images to train on": results("pretrain", training_images_per_class=[0, 0, 0]),
    "called from Python": results("pretrain", overrides=None),
    "too few errors to show a gain": results("pretrain", test=outcome([2, 1, 0], 59)),
    "no error on validation images": results("pretrain", val=outcome([0, 0, 0])),
    "another preprocessing first": results("pretrain", better_preprocessing=["x"]),
    "a repair that is not kept": results(),
    "a repair without an adapter": {**KEPT, "adapter": None},
    "a repair, tested again": {**KEPT, "stage": "eval"},
}


def command_after(run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    return suggest_next_step(RunResults(run), folder / "run")


@pytest.mark.parametrize(("run", "command_line", "command"), ADVICE)
def test_a_next_step_is_a_whole_command(run, command_line, command, tmp_path, monkeypatch):
    advised = command_after({**run, "overrides": command_line}, tmp_path, monkeypatch)
    assert advised.command == f"python {ROOT}/{command}"


@pytest.mark.parametrize(
    "run",
    [results("pretrain", test=outcome([20, 20, 0])), results("pretrain", validation_images=0)],
)
def test_what_a_repair_does_not_mend_is_said(run, tmp_path, monkeypatch):
    step = command_after({**run, "overrides": []}, tmp_path, monkeypatch)
    assert step.text
    assert not step.command


def test_next_step_is_nothing_without_a_reason(tmp_path, monkeypatch):
    for name, run in NO_ADVICE.items():
        assert command_after(run, tmp_path, monkeypatch) is None, name
