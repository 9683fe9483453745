"""Trainings of the last layer alone, on features that the frozen network has computed once."""

import pytest
import torch
from composed import evaluated, load_adapter_tensors
from helpers.commands import read_results
from helpers.repairs import QUIET, TRIALS, changed

from lora_mnist import MLP, load_classifier
from lora_mnist.errors import UserError
from lora_mnist.training import features, repair, run_training

LAST = "lora.target_modules=last-linear"
HEAD = (*TRIALS, "head=true", "lora.offset=auto")


def adapted_layers(folder):
    return {key.partition(".lora_")[0] for key in load_adapter_tensors(folder) if ".lora_" in key}


@pytest.fixture
def averaged(monkeypatch):
    """A network whose logits are the mean of its last layer's: none of an image's are they."""
    monkeypatch.setattr(MLP, "forward", lambda self, x: super(MLP, self).forward(x) / 2)


@pytest.fixture
def prefers_head(monkeypatch):
    """Validation images that always prefer the last layer alone."""
    score = run_training.TrainingResult.score.fget
    better = property(lambda self: score(self) + (self.training.name == "head"))
    monkeypatch.setattr(run_training.TrainingResult, "score", better)


@pytest.mark.parametrize("epochs", [(), ("trainer.max_epochs=1", "trainer.max_steps=-1")])
def test_features_train_what_the_network_around_the_layer_trains(go, epochs):
    through = go(f"through {len(epochs)}", *QUIET, *epochs, "lora.target_modules=[linear2]")
    folder = go(f"features {len(epochs)}", *QUIET, *epochs, LAST)
    assert len(adapted_layers(folder)) == 1
    for key, tensor in load_adapter_tensors(through).items():
        torch.testing.assert_close(load_adapter_tensors(folder)[key], tensor, rtol=1e-3, atol=1e-5)
    one, other = read_results(folder), read_results(through)
    assert one["steps"] == other["steps"] > 0
    scores = [[row["score"] for row in each["scale_curve"]["rows"]] for each in (one, other)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert one["test"] == evaluated(folder.parents[1], folder)["test"]


def test_an_image_of_the_batches_goes_through_the_network_once(go, monkeypatch):
    """All trials and the refit share features, and images of no batch have none."""
    computed, logits_at = [], features.logits_at

    def counting(net, batches, points):
        for batch in batches:
            computed.append(len(batch[1]))
            yield from logits_at(net, [batch], points)

    monkeypatch.setattr(features, "logits_at", counting)
    sizes = []
    use_features = features.use_features

    def remembering(session, training):
        result = use_features(session, training)
        sizes.append(sum(computed))
        assert len(training.features) == sizes[-1]  # no image twice
        return result

    monkeypatch.setattr(run_training, "use_features", remembering)
    go("counted", *QUIET, LAST, *TRIALS, "refit=true")
    first, second, refit = sizes
    assert 500 < first == second < refit < 2_000  # of 4,000 images, 500 of which validate


def test_trials_are_the_same_to_the_bit_beside_a_head(go):
    without, beside = go("no head", *QUIET, *TRIALS, "lora.offset=auto"), go("head", *QUIET, *HEAD)
    one, other = read_results(without), read_results(beside)
    assert one["head"] is None
    assert other["choices"]["trial"]["of"] == ["head", "high", "low"]
    row = other["head"]
    assert other["choices"]["trial"]["reasons"][0]["trials"]["head"][0] == row["score"]
    if other["choices"]["trial"]["value"] != "head":
        assert not changed(without, beside)
        assert [one[key] for key in ("scale_curve", "test")] == [
            other[key] for key in ("scale_curve", "test")
        ]


@pytest.mark.parametrize("refit", ["refit=false", "refit=true"])
def test_a_head_that_is_best_is_saved_with_one_layer(go, prefers_head, refit):
    folder = go(f"best head {len(refit)}", *QUIET, *HEAD, refit)
    results = read_results(folder)
    assert results["choices"]["trial"]["value"] == "head"
    assert results["choices"]["refit"]["value"] == (refit == "refit=true")
    assert len(adapted_layers(folder)) == 1
    outputs = folder.parents[1]
    assert evaluated(outputs, folder)["test"] == results["test"]
    classifier = load_classifier(adapter=folder / "adapter", base=outputs / "base" / "mnist.ckpt")
    assert len(classifier.classes) == 10


def test_a_network_without_such_a_layer_says_so(go, averaged, caplog):
    caplog.set_level("INFO", "lora_mnist")
    results = read_results(go("averaged", *QUIET, *HEAD))
    assert results["head"] is None
    assert f"the last layer alone: not trained, since {repair.NO_HEAD}" in caplog.text
    with pytest.raises(
        UserError, match=r"^lora\.target_modules=last-linear: expected other layers"
    ):
        go("averaged alone", *QUIET, LAST)


def test_an_image_has_one_feature(go):
    with pytest.raises(UserError, match=r"^batches\.augment=.*last-linear"):
        go("augmented", *QUIET, LAST, "augment=shift")
