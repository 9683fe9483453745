"""A repair of few images: the best of its trials is kept, or learns validation images too."""

import pytest
import torch
from composed import evaluated
from helpers.commands import read_results
from helpers.repairs import AUTO, QUIET, TRIALS, changed

from lora_mnist.classifier.train_digests_file import read_train_digests
from lora_mnist.errors import TrainingError
from lora_mnist.lora.adapter import read_metadata
from lora_mnist.lora.weight import lora_adapters
from lora_mnist.measure import scale_curve
from lora_mnist.training import run_training, trials
from lora_mnist.training.trials import LEARNING_RATES


def test_the_trial_that_is_best_on_validation_images_is_kept(go):
    """It is the training that its values alone would be, to the bit, and no further one is made."""
    chosen = go("chosen", *QUIET, *TRIALS)
    results = read_results(chosen)
    choice = results["choices"]["trial"]
    assert choice["of"] == ["high", "low"]
    assert choice["images"] == results["validation_images"] == 500
    assert results["steps"] == 12
    values = {"high": ("lora.dropout=0.3", "optimizer.lr=0.01"), "low": ("lora.dropout=0.05",)}
    measures = {}
    for name, command_line in values.items():
        alone = go(f"alone {name}", *QUIET, *command_line)
        measures[name] = max(row["score"] for row in read_results(alone)["scale_curve"]["rows"])
        assert choice["reasons"][0]["trials"][name][0] == measures[name]
        assert (changed(alone, chosen) == []) == (name == choice["value"])
        if name == choice["value"]:
            for key in ("val", "test", "scale_curve"):
                assert read_results(alone)[key] == results[key]
    assert measures[choice["value"]] == max(measures.values())


def test_a_training_that_diverges_ends_and_a_smaller_rate_is_tried(go, monkeypatch):
    """A scheduler, too, reads the rate that was chosen."""
    monkeypatch.setattr(trials, "LEARNING_RATES", (1e30, 0.003))
    options = (*QUIET, "scheduler=one_cycle", "trainer.log_every_n_steps=1")
    folder = go("steep", *options, "optimizer.lr=auto")
    rate = read_results(folder)["choices"]["learning_rate"]
    assert rate["value"] == 0.003
    (reason,) = rate["reasons"]
    assert (reason["code"], reason["learning_rate"]) == ("diverged", 1e30)
    assert not changed(folder, go("less steep", *options, "optimizer.lr=0.003"))


def test_a_trial_that_has_lost_ends_and_changes_no_other(go, monkeypatch):
    steps, fit = [], run_training.fit

    def counting(*arguments):
        module = fit(*arguments)
        steps.append(module.global_step)
        return module

    monkeypatch.setattr(run_training, "fit", counting)
    options = (*QUIET, "optimizer.lr=auto", "trainer.max_steps=40", "trainer.val_check_interval=10")
    both = "+trials={plain: {optimizer.lr: 0.003}, steep: {optimizer.lr: 3}}"
    folder = go("one has lost", *options, both)
    alone = go("the other alone", *options, "+trials={plain: {optimizer.lr: 0.003}}")
    assert steps[0] == steps[2] == 40
    assert steps[1] in (20, 30)
    choice = read_results(folder)["choices"]["trial"]
    assert choice["value"] == "plain"
    *_, last = choice["reasons"]
    assert (last["code"], last["trial"], last["step"]) == ("lost", "steep", steps[1])
    assert not changed(folder, alone)


@pytest.mark.parametrize("adds", [True, False])
def test_a_training_that_adds_nothing_to_an_offset_has_one_more_rate(go, monkeypatch, adds):
    is_ahead = property(lambda _: adds)
    monkeypatch.setattr(run_training.TrainingResult, "beats_offset", is_ahead)
    rates, fit = [], run_training.fit
    monkeypatch.setattr(
        run_training,
        "fit",
        lambda session, cfg, *parts: rates.append(cfg.optimizer.lr) or fit(session, cfg, *parts),
    )
    go(f"adds {adds}", *QUIET, "optimizer.lr=auto")
    assert rates == list(LEARNING_RATES[: 1 if adds else 2])
    rates.clear()  # also beside a trial that diverges
    steep = "+trials={steep: {optimizer.lr: 1e30}, auto: {lora.dropout: 0.1}}"
    go(f"adds {adds} beside", *QUIET, *AUTO, "trainer.log_every_n_steps=1", steep)
    assert rates == [1e30, *LEARNING_RATES[: 1 if adds else 2]]


def test_a_trial_says_how_many_images_have_decided(go, monkeypatch):
    """The search for the point takes a sample of many validation images."""
    monkeypatch.setattr(scale_curve, "MAX_IMAGES", 100)
    results = read_results(go("some", *QUIET, *TRIALS))
    assert results["validation_images"] == 500
    assert results["scale_curve"]["images"] == results["choices"]["trial"]["images"] == 100


def test_refit_learns_validation_images_after_they_have_decided(go, caplog):
    """Scale and numbers of validation images are those of the training before."""
    caplog.set_level("INFO", "lora_mnist")
    before = go("alone", *QUIET)
    folder = go("refit", *QUIET, "refit=true")
    results = read_results(folder)
    assert "training 1 of 2: " in caplog.text
    assert "training 2 of 2: refit" in caplog.text
    assert results["choices"]["refit"]["value"]
    for key in ("val", "val_base", "scale_curve"):
        assert results[key] == read_results(before)[key]
    assert changed(folder, before)
    outputs = folder.parents[1]
    assert evaluated(outputs, folder)["test"]["errors"] == results["test"]["errors"]
    auto = evaluated(outputs, folder, "scale=auto")
    assert auto["point"] == results["point"]
    assert auto["choices"]["point"]["images"] == 0  # no image has decided now
    levels = {each.levelname for each in caplog.records if "are excluded" in each.getMessage()}
    assert levels == {"INFO"}


def test_refit_begins_where_its_trial_began(go, monkeypatch):
    starts, fit = [], run_training.fit

    def remembering(session, *parts):
        starts.append([p.clone() for each in lora_adapters(session.net) for p in each.parameters()])
        return fit(session, *parts)

    monkeypatch.setattr(run_training, "fit", remembering)
    go("from the start", *QUIET, "refit=true")
    trial, refit = starts
    assert all(map(torch.equal, trial, refit))


@pytest.mark.parametrize("diverges", [False, True])
def test_a_refit_that_is_behind_the_base_is_given_up(go, monkeypatch, caplog, diverges):
    """It is judged by images that it was trained on; the trial is what is saved."""
    fit = run_training.fit

    def ruined(session, cfg, trainer, data):
        module = fit(session, cfg, trainer, data)
        if not len(data.images.val):  # the refit
            for adapter in lora_adapters(session.net):
                torch.nn.init.normal_(adapter.lora_B, std=10)
            if diverges:
                raise TrainingError("the loss is nan")
        return module

    monkeypatch.setattr(run_training, "fit", ruined)
    folder, before = go(f"ruined {diverges}", "refit=true"), go("alone", *QUIET)
    results = read_results(folder)
    assert not results["choices"]["refit"]["value"]
    assert f"refit: {'the loss is nan' if diverges else 'its score is'}" in caplog.text
    assert not changed(folder, before)
    for key in ("val", "test", "scale_curve", "point"):
        assert results[key] == read_results(before)[key]
    train_digests = []
    for each in (folder / "adapter", before / "adapter"):
        train_digests.append(len(read_train_digests(each, read_metadata(each)["train_digests"])))
    assert train_digests[0] == train_digests[1]


def test_a_refit_on_test_images_says_what_is_still_unseen(go, caplog):
    caplog.set_level("INFO", "lora_mnist")
    folder = go("from test", *QUIET, "refit=true", "data.val_from=test", "data.val_size=100")
    assert "part of test/; only the other test images are still unseen" in caplog.text
    assert read_results(folder)["held_out"] == {"val": "test"}
    record = read_metadata(folder / "adapter")
    assert (record["data"]["val_from"], record["made"]["refit"]) == ("test", True)


@pytest.mark.parametrize("none", ["trials=null", "~trials"])
def test_a_class_of_few_images_is_trained_once_without_trials(go, none):
    choices = read_results(go(none, *QUIET, none, "lora.offset=auto"))["choices"]
    assert "trial" not in choices
    assert choices["point"]["reasons"][0]["code"] == "best_point"


def test_the_point_is_not_searched_without_images_of_the_class(go):
    folder = go("alone low", *QUIET, "lora.dropout=0.05")
    results = evaluated(folder.parents[1], folder, "scale=auto", "data.val_size=1")
    assert results["point"] == read_results(folder)["point"]
    assert results["choices"]["point"]["images"] == 0
    *_, last = results["choices"]["point"]["reasons"]
    assert last == {"code": "unseen", "classes": ["9"]}


def test_a_trial_that_diverges_loses_no_other(go, caplog):
    high = TRIALS[-1].replace("optimizer.lr: 0.01", "optimizer.lr: 1e30")
    options = (*QUIET, *AUTO, "trainer.log_every_n_steps=1")
    folder = go("one diverges", *options, high)
    choice = read_results(folder)["choices"]["trial"]
    assert choice["value"] == "low"
    assert [reason["code"] for reason in choice["reasons"]] == ["only_trial", "diverged"]
    assert "high: optimizer.lr=1e+30: the loss is nan" in caplog.text
    assert not changed(folder, go("alone low", *QUIET, "lora.dropout=0.05"))
    both = high.replace("0.003", "1e30")
    with pytest.raises(TrainingError, match=r"^optimizer.lr=1e\+30: .*; optimizer.lr=1e\+30: "):
        go("all diverge", *options, both)
