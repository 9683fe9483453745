"""A repair of few images: trials choose its dropout, then it learns validation images too."""

from types import SimpleNamespace

import pytest
import torch
from composed import FEW, SMALL, adapter_of, composed, evaluated, small_base
from helpers.commands import read_results

import lora_mnist.recipe
from lora_mnist.command import Run
from lora_mnist.lora.adapter import read_metadata
from lora_mnist.lora.base_state import changed_tensors
from lora_mnist.recipe import choose_target
from lora_mnist.repair.predictions import Predictions
from lora_mnist.train import train

#: 350 nines are few.
RECIPE = (
    *("stage=lora", "digit=9", "batches.replay=20", "trainer.max_steps=12", "optimizer.lr=0.003"),
    *("lora.rank=8", "lora.init=pissa", "lora.dropout=auto", "lora.scale=auto", *SMALL, *FEW),
)
QUIET = ("callbacks=none", "logger=none")


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    """``go(NAME, *overrides)`` trains in a folder, once for all tests; it returns the folder."""
    outputs = tmp_path_factory.mktemp("trials")
    small_base(outputs)

    def run(name, *overrides):
        folder = outputs / "lora" / name
        if not (folder / "results.json").exists():
            cfg = composed("train", *RECIPE, f"paths.outputs={outputs}", *overrides)
            train(cfg, Run(folder))
        return folder

    return run


def changed(one, other):
    """The names of the tensors in which two runs' adapters differ."""
    return changed_tensors(adapter_of(one), adapter_of(other))


def test_the_trial_with_the_fewest_validation_errors_decides(go, monkeypatch):
    """What is trained after the trials is the trial that was chosen, to the bit: all draw alike."""
    monkeypatch.setattr(lora_mnist.recipe, "DROPOUTS", (0.1, 0.05))
    chosen = go("chosen", *QUIET, "refit=false")
    results = read_results(chosen)
    choice = results["choices"]["dropout"]
    assert choice["of"] == [0.1, 0.05]
    assert choice["images"] == results["validation_images"] == 500
    assert not results["choices"]["refit"]["value"]
    errors = {}
    for dropout in choice["of"]:
        typed = go(f"typed {dropout}", *QUIET, f"lora.dropout={dropout}")
        errors[dropout] = read_results(typed)["val"]["errors"]
        assert read_results(typed)["choices"]["dropout"]["images"] == 0
        assert f"{errors[dropout]} with {dropout:g}" in choice["why"]
        assert (changed(typed, chosen) == []) == (dropout == choice["value"])
    assert errors[choice["value"]] == min(errors.values()) == results["val"]["errors"]


def test_refit_learns_validation_images_after_they_have_decided(go):
    """Scale and numbers of validation images are those of the training before."""
    before = go("typed 0.0", *QUIET, "lora.dropout=0.0")
    folder = go("refit", *QUIET, "lora.dropout=0.0", "refit=true")
    results = read_results(folder)
    assert results["choices"]["refit"]["value"]
    for key in ("val", "val_base", "dial"):
        assert results[key] == read_results(before)[key]
    assert changed(folder, before)
    outputs = folder.parents[1]
    assert evaluated(outputs, folder)["test"]["errors"] == results["test"]["errors"]
    auto = evaluated(outputs, folder, "scale=auto")
    assert auto["scale"] == (1 if results["scale"] else 0)
    assert auto["choices"]["scale"]["images"] == 0  # no image has decided now


def test_a_refit_on_test_images_says_what_is_still_unseen(go, caplog):
    caplog.set_level("INFO", "lora_mnist")
    options = ("lora.dropout=0.0", "refit=true")
    folder = go("from test", *QUIET, *options, "data.val_from=test", "data.val_size=100")
    assert "part of test/; only the other test images are still unseen" in caplog.text
    assert read_results(folder)["held_out"] == {"val": "test"}
    record = read_metadata(folder / "adapter")
    assert (record["data"]["val_from"], record["made"]["refit"]) == ("test", True)


def test_the_weakest_of_numbered_classes_is_the_one_that_is_learnt():
    """Its name, 10, is that of a class, and its place, 1, the name of another."""
    label = torch.tensor([0] * 9 + [1] * 9 + [2] * 9)
    nothing = torch.zeros(1, len(label))
    before = Predictions(3, label, torch.where(label == 1, 0, label)[None], nothing, nothing)
    train = SimpleNamespace(labels=torch.tensor([0, 1, 2, 1]))
    session = SimpleNamespace(
        cfg=SimpleNamespace(target="weakest"),
        images=SimpleNamespace(train=train),
        classifier=SimpleNamespace(classes=["1", "10", "2"]),
        mistakes=None,
    )
    selection, choices = choose_target(session, before)
    assert choices["target"].value == ["10"]
    assert (selection.targets, selection.target_indices.tolist()) == ([1], [1, 3])


@pytest.mark.parametrize(
    "overrides",
    [("digit=[9,4]",), ("data.val_size=0", "lora.scale=1")],
    ids=["many images", "no validation images"],
)
def test_nothing_is_chosen_where_nothing_can_be(go, overrides):
    folder = go(overrides[0], *QUIET, "refit=auto", *overrides)
    choices = read_results(folder)["choices"]
    assert (choices["dropout"]["value"], choices["refit"]["value"]) == (0, False)
    assert not (folder / "trials").exists()
