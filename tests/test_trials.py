"""A repair of few images: trials choose its dropout, then it learns validation images too."""

import pytest
import torch
from composed import FEW, SMALL, composed, small_base
from helpers.callbacks import Crashed
from helpers.commands import only_run, read_results
from lora_mnist.lora.peft import read_metadata
from safetensors.torch import load_file
from tensorboard.summary.writer import event_file_writer
from test_resume import CRASH, OFTEN, differences, left_by

import lora_mnist.disk.resume
from lora_mnist.command import Run
from lora_mnist.data.plan import also_learning, select
from lora_mnist.disk.run_paths import LAST_CHECKPOINT
from lora_mnist.errors import UserError
from lora_mnist.evaluate import evaluate
from lora_mnist.train import train

#: 350 nines are few.
RECIPE = ("stage=lora", "digit=9", "batches.replay=20", "trainer.max_steps=12", "lora.rank=8")
RECIPE = (*RECIPE, "lora.init=pissa", "lora.dropout=auto", "lora.scale=auto", "optimizer.lr=0.003")
CHECKPOINTS = (CRASH, *OFTEN, "logger=tensorboard")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A folder of outputs with a small base, for all tests."""
    folder = tmp_path_factory.mktemp("trials") / "outputs"
    small_base(folder)
    return folder


@pytest.fixture(scope="module")
def go(outputs):
    """``go(NAME, *overrides)`` trains in a folder, once for all tests; it returns the folder."""

    def run(name, *overrides):
        folder = outputs / "lora" / name
        if not (folder / "results.json").exists():
            given = (*RECIPE, *SMALL, *FEW, f"paths.outputs={outputs}", *overrides)
            train(composed("train", *given), Run(folder))
        return folder

    return run


def weights(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_trial_with_the_fewest_validation_errors_decides(go):
    """What is trained after the trials is the trial that was chosen, to the bit."""
    chosen = go("chosen", "callbacks=none", "logger=none", "refit=false")
    results = read_results(chosen)
    choices = results["choices"]
    assert choices["dropout"]["of"] == [0.0, 0.05]
    assert choices["dropout"]["images"] == results["validation_images"] == 500
    assert not choices["refit"]["value"]
    errors = {}
    for dropout in choices["dropout"]["of"]:
        options = ("callbacks=none", "logger=none", f"lora.dropout={dropout}")
        typed = go(f"typed {dropout}", *options)
        errors[dropout] = read_results(typed)["val"]["errors"]
        assert read_results(typed)["choices"]["dropout"]["images"] == 0
        assert f"{errors[dropout]} with {dropout:g}" in choices["dropout"]["why"]
        is_chosen = dropout == choices["dropout"]["value"]
        assert same(weights(typed), weights(chosen)) == is_chosen
    assert errors[choices["dropout"]["value"]] == min(errors.values()) == results["val"]["errors"]


def test_an_interrupted_trial_names_the_command_that_goes_on(cli, tmp_path, monkeypatch):
    small_base(tmp_path / "outputs")
    monkeypatch.setenv("CRASH", "9:SIGTERM")
    monkeypatch.setenv("CRASH_IN", "dropout=0.0")
    ended = cli("train.py", *RECIPE, *SMALL, *FEW, CRASH, *OFTEN, "logger=none")
    assert ended.code == 143, ended.err
    folder = only_run(tmp_path / "outputs", "lora")
    last = ended.err.splitlines()[-1]
    assert last.startswith("go on with: ")
    assert last.endswith(f"resume={folder}")


def test_refit_learns_validation_images_after_they_have_decided(go, outputs):
    """Scale and numbers of validation images are those of the training before."""
    options = ("callbacks=none", "logger=none", "lora.dropout=0.0")
    before = read_results(go("typed 0.0", *options))
    folder = go("refit", *options, "refit=true")
    results = read_results(folder)
    assert results["choices"]["refit"]["value"]
    for key in ("val", "val_base", "dial"):
        assert results[key] == before[key]
    assert not same(weights(folder), weights(go("typed 0.0", *options)))
    cfg = composed("eval", *SMALL, *FEW, f"paths.outputs={outputs}", f"adapter={folder}")
    assert evaluate(cfg)["test"]["errors"] == results["test"]["errors"]
    cfg.scale = "auto"
    assert evaluate(cfg)["scale"] == (1 if results["scale"] else 0)


def test_a_refit_on_test_images_says_what_is_still_unseen(go, caplog):
    caplog.set_level("INFO", "lora_mnist")
    options = ("callbacks=none", "logger=none", "lora.dropout=0.0", "refit=true")
    folder = go("from test", *options, "data.val_from=test", "data.val_size=100")
    assert "part of test/; only the other test images are still unseen" in caplog.text
    assert read_results(folder)["held_out"] == {"val": "test"}
    record = read_metadata(folder / "adapter")
    assert (record["data"]["val_from"], record["made"]["refit"]) == ("test", True)


def test_the_images_of_refit():
    """All that were trained on stay; validation images are learnt or replayed by their class."""
    selection = select(torch.tensor([0, 1, 0, 1, 1]), ["cat", "dog"], "dog")
    targets, learnt, replayed = also_learning(selection, torch.tensor([1, 0, 1]), 5)
    assert (targets, learnt.tolist(), replayed.tolist()) == ([1], [1, 3, 4, 5, 7], [0, 2, 6])
    everything = select(torch.tensor([0, 1]), ["cat", "dog"], None)
    _, learnt, replayed = also_learning(everything, torch.tensor([1]), 2)
    assert (learnt.tolist(), replayed.tolist()) == ([0, 1, 2], [])


@pytest.mark.parametrize(
    "overrides",
    [("digit=[9,4]",), ("data.val_size=0", "lora.scale=1")],
    ids=["many images", "no validation images"],
)
def test_nothing_is_chosen_where_nothing_can_be(go, overrides):
    folder = go(overrides[0], "callbacks=none", "logger=none", "refit=auto", *overrides)
    results = read_results(folder)
    assert results["choices"]["dropout"]["value"] == 0
    assert results["choices"]["refit"]["value"] is False
    assert not (folder / "trials").exists()


def test_a_refit_that_cannot_be_is_refused(go):
    with pytest.raises(
        UserError, match=r"^refit=true: expected validation images: data\.val_size > 0"
    ):
        go("a", "refit=true", "data.val_size=0", "lora.scale=1")
    with pytest.raises(UserError, match=r"^refit=true: expected false, since val/\w+ is monitored"):
        go("b", "refit=true", "callbacks=best", "trainer.val_check_interval=5")


def test_trained_farther_it_goes_on_from_no_other_choice(go, outputs, monkeypatch):
    """The last training begins anew where more steps choose another dropout."""
    options = ("refit=true", "logger=none", *OFTEN, "trainer.max_steps=8")
    whole = go("farther", *options, "lora.dropout=0.05", "trainer.max_steps=12")
    folder = go("flipped", *options, "lora.dropout=0.0")
    checkpoint = folder / LAST_CHECKPOINT
    monkeypatch.setattr(lora_mnist.disk.resume, "_refuse_another_run", lambda *_: None)
    (folder / "results.json").unlink()
    go("flipped", *options, "lora.dropout=0.05", "trainer.max_steps=12", f"resume={folder}")
    assert same(weights(whole), weights(folder))
    choices = torch.load(checkpoint, weights_only=True)["hyper_parameters"]["choices"]
    assert choices["dropout"] == 0.05


@pytest.mark.slow
def test_cut_short_in_each_of_three_trainings(go, outputs, monkeypatch):
    # Readers sort event files by name, in which files are counted: .9 comes behind .10.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(100))
    monkeypatch.setenv("CRASH", "-1")
    whole = go("whole", *CHECKPOINTS, "refit=true")
    monkeypatch.setenv("CRASH", "9")
    folder, resume = outputs / "lora" / "cut", ()
    for name in ("dropout=0.0", "dropout=0.05", "cut"):
        monkeypatch.setenv("CRASH_IN", name)
        with pytest.raises(Crashed):
            go("cut", *CHECKPOINTS, "refit=true", *resume)
        assert not (folder / "results.json").exists()
        resume = (f"resume={folder}",)
    monkeypatch.delenv("CRASH_IN")
    monkeypatch.setenv("CRASH", "-1")
    go("cut", *CHECKPOINTS, "refit=true", *resume)
    assert differences(left_by(whole), left_by(folder)) == []
