"""Bases and adapters of version 0.2.0 are still read, and predict what they did then."""

import json
import sys

import pytest
from composed import composed
from helpers.commands import ROOT

from lora_mnist import load_classifier
from lora_mnist.evaluate import evaluate

OLD = ROOT / "tests" / "files" / "old"
RECORDED = json.loads((OLD / "recorded.json").read_text())
BASES = {"mnist": "base.ckpt", "own": "base.pt"}
#: What is typed beside the two files: whose code may run, and where the pictures are today.
TYPED = {"mnist": [], "own": ["trust=true", "data.data_dir=photos"]}


@pytest.fixture(params=BASES)
def old(request, monkeypatch):
    """The name of the files; ``own`` has a network of its own, which Python has to find."""
    monkeypatch.syspath_prepend(str(OLD / "own"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield request.param
    sys.modules.pop("old_nets", None)


def probabilities(name, side):
    """What was recorded for each picture, before or after the repair."""
    return [sides[side] for sides in RECORDED[name]["pictures"].values()]


def labels(name, side):
    classes = RECORDED[name]["classes"]
    return [classes[row.index(max(row))] for row in probabilities(name, side)]


def pictures(name):
    return [OLD / name / file for file in RECORDED[name]["pictures"]]


def test_eval_counts_the_same_errors(old, tmp_path, monkeypatch):
    monkeypatch.chdir(OLD / old)
    files = (f"adapter={OLD / old}/adapter", f"base_ckpt={OLD / old / BASES[old]}", *TYPED[old])
    cfg = composed("eval", *files, f"paths.outputs={tmp_path}", "figures=false")
    results = evaluate(cfg)
    assert results["classes"] == RECORDED[old]["classes"]
    assert results["test_base"]["errors_per_class"] == RECORDED[old]["errors_before"]
    assert results["test"]["errors_per_class"] == RECORDED[old]["errors_after"]


@pytest.mark.parametrize(("scale", "side"), [(0, "before"), (1, "after")])
def test_load_classifier_predicts_the_same(old, scale, side):
    adapter, base = OLD / old / "adapter", OLD / old / BASES[old]
    classifier = load_classifier(adapter, base, scale=scale, trust=True)
    predictions = classifier.predict(pictures(old))
    assert classifier.classes == RECORDED[old]["classes"]
    assert [prediction.label for prediction in predictions] == labels(old, side)
    for prediction, expected in zip(predictions, probabilities(old, side), strict=True):
        assert prediction.probabilities == pytest.approx(expected, abs=1e-5)


def test_a_base_alone_says_what_network_it_is():
    predictions = load_classifier(base=OLD / "mnist" / "base.ckpt").predict(pictures("mnist"))
    assert [prediction.label for prediction in predictions] == labels("mnist", "before")
