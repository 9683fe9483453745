"""Bases and adapters of version 0.2.0 are still read, and predict what they did then."""

import csv
import json
import sys

import pytest
import torch
from helpers.commands import ROOT, only_run, read_results
from safetensors.torch import load_file

from lora_mnist import MLP, load_classifier

OLD = ROOT / "tests" / "files" / "old"
RECORDED = json.loads((OLD / "recorded.json").read_text())
BASES = {"mnist": "base.ckpt", "own": "base.pt"}
#: What is typed beside the two files: whose code may run, and where the pictures are today.
TRUST = {"mnist": [], "own": ["trust=true"]}
PICTURES = {"mnist": [], "own": ["data.data_dir=photos"]}


@pytest.fixture(params=BASES)
def old(request, monkeypatch):
    """The name of the files; ``own`` has a network of its own, which Python has to find."""
    monkeypatch.syspath_prepend(str(OLD / "own"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield request.param
    sys.modules.pop("old_nets", None)


def options(name):
    return [f"adapter={OLD / name}/adapter", f"base_ckpt={OLD / name / BASES[name]}", *TRUST[name]]


def probabilities(name, side):
    """What was recorded for each picture, before or after the repair."""
    return [sides[side] for sides in RECORDED[name]["pictures"].values()]


def labels(name, side):
    classes = RECORDED[name]["classes"]
    return [classes[row.index(max(row))] for row in probabilities(name, side)]


def pictures(name):
    return [OLD / name / file for file in RECORDED[name]["pictures"]]


def test_eval_counts_the_same_errors(old, cli, tmp_path):
    done = cli("eval.py", *options(old), *PICTURES[old], "figures=false", here=OLD / old)
    done.ok()
    results = read_results(only_run(tmp_path / "outputs", "eval"))
    assert results["classes"] == RECORDED[old]["classes"]
    assert results["test_base"]["errors_per_class"] == RECORDED[old]["errors_before"]
    assert results["test"]["errors_per_class"] == RECORDED[old]["errors_after"]


def test_predict_says_the_same_of_pictures(old, cli, tmp_path):
    """Without any image of the training."""
    images = ",".join(RECORDED[old]["pictures"])
    out = tmp_path / "predictions.csv"
    cli("predict.py", *options(old), f"images=[{images}]", f"out={out}", here=OLD / old).ok()
    with out.open(newline="") as file:
        _, *rows = csv.reader(file)
    for column, side in ((1, "before"), (3, "after")):
        assert [row[column] for row in rows] == labels(old, side)
        surest = [max(row) for row in probabilities(old, side)]
        assert [float(row[column + 1]) for row in rows] == pytest.approx(surest, abs=1e-5)


def test_export_writes_the_same_network(old, cli, tmp_path):
    out = tmp_path / "plain.safetensors"
    cli("export.py", *options(old), *PICTURES[old], f"out={out}", here=OLD / old).ok()
    if old == "mnist":
        net = MLP(hidden_sizes=[16])
    else:
        from old_nets import Net

        net = Net(width=6)
    net.load_state_dict(load_file(out))
    classifier = load_classifier(OLD / old / "adapter", OLD / old / BASES[old], trust=True)
    images = torch.stack([classifier.prepare(picture) for picture in pictures(old)])
    with torch.no_grad():
        rows = net.eval()(images).softmax(dim=1)
    torch.testing.assert_close(rows, torch.tensor(probabilities(old, "after")), atol=1e-5, rtol=0)


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
