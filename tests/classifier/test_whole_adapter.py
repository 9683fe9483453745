"""An adapter's folder and its base's file are all that a command needs, wherever they are.

Each kind of network and images is pretrained and repaired. Every command then gives the same
numbers in place as from a copy, in another working directory.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from composed import FEW, composed
from helpers.commands import read_results
from helpers.stranger import PHOTOS, move_in
from PIL import Image
from safetensors.torch import load_file

from lora_mnist import load_classifier
from lora_mnist.classifier.build import build_network
from lora_mnist.classifier.weights_file import read_base
from lora_mnist.commands.evaluate import evaluate
from lora_mnist.commands.export import export
from lora_mnist.commands.predict import predict
from lora_mnist.commands.train import train
from lora_mnist.config.run import Run
from lora_mnist.lora.adapter import read_metadata

QUICK = ("trainer=cpu", "logger=none", "figures=false", "paths.outputs=outputs")
CASES = {
    "a CNN with another mean": (
        *(*FEW, "net=cnn", "net.channels=[4,4]"),
        *("prepare.mean=0.5", "prepare.std=0.5"),
    ),
    "a network of one's own": (
        *(*PHOTOS, "prepare.image_size=6", "prepare.crop_pct=0.9", "prepare.classes=[emu,cat,dog]"),
        "net._target_=nets_of_a_stranger.Net",
    ),
    "timm in gray": (
        *(*PHOTOS, "prepare.image_size=16"),
        *("net._target_=timm.create_model", "net.model_name=test_vit3", "net.in_chans=1"),
        *("net.img_size=16", "net.patch_size=4", "net.num_classes=3"),
        "net.pretrained=false",  # how it began: no record of it is needed, and none is refused
    ),
}


def answers(adapter, base, picture, own):
    """What each command says with the adapter, from its file; a network of one's own is named."""
    options = [f"adapter={adapter}", f"base_ckpt={base}", *own]
    results = evaluate(composed("eval", *QUICK, *options))
    (prediction,) = predict(composed("predict", *options, f"images={picture}"))
    out = Path("plain.safetensors")
    out.unlink(missing_ok=True)
    about = export(composed("export", *options, f"out={out}"))
    plain = build_network(json.loads(about["net"]))
    plain.load_state_dict(load_file(out))
    net = build_network(json.loads(about["net"])) if own else None
    classifier = load_classifier(adapter, base, net=net)
    with torch.no_grad():
        row = plain(classifier.prepare(picture)[None]).softmax(1)[0].tolist()
    (loaded,) = classifier.predict(picture)
    assert prediction["after"].probabilities == loaded.probabilities
    assert row == pytest.approx(loaded.probabilities, abs=1e-4)
    assert json.loads(about["classes"]) == classifier.classes
    keys = ("test", "test_base", "classes", "mean", "std", "data_sha256", "targets")
    return {key: results[key] for key in keys}, prediction["before"], loaded


@pytest.mark.slow(15)
@pytest.mark.parametrize("case", CASES)
def test_adapter_gives_the_same_numbers_wherever_it_is(tmp_path, monkeypatch, case):
    if "timm" in case:
        pytest.importorskip("timm", reason="timm is not installed")
    here = move_in(tmp_path / "here", monkeypatch)
    monkeypatch.syspath_prepend(str(here))
    picture = here / "gradient.png"
    Image.linear_gradient("L").resize((53, 37)).save(picture)
    train_digests = ("trainer.max_steps=40", "batches.batch_size=40", "optimizer.lr=0.003")
    train(composed("train", *QUICK, "stage=pretrain", *train_digests, *CASES[case]))
    # From the base's file alone.
    (base,) = Path("outputs", "base").glob("*-" + 12 * "?" + ".ckpt")
    own = [text for text in CASES[case] if text.startswith("net._target_=nets_of")]
    assert "pretrained" not in read_base(base).record.net
    names = ",".join(read_base(base).record.prepare.get("classes", "012")[1:3])
    options = ("stage=lora", "trainer.max_steps=4", f"target=[{names}]", f"base_ckpt={base}", *own)
    options += tuple(text for text in CASES[case] if "val_size" in text)
    folder = Path("outputs", "lora", "a")
    train(composed("train", *QUICK, *options), Run(folder.absolute()))
    results, before = read_results(folder), answers(folder, base, picture, own)
    assert before[0]["test"]["errors_per_class"] == results["test"]["errors_per_class"]
    for key in ("mean", "std", "classes", "data_sha256"):
        assert before[0][key] == results[key]
    assert read_metadata(folder / "adapter")["targets"] == results["classes"][1:3]
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder / "adapter", elsewhere / "a")
    (elsewhere / "a" / "model.sig").write_text("{}")  # of model_signing
    shutil.copy(base, elsewhere / "base.ckpt")
    shutil.move("outputs", "gone")
    monkeypatch.chdir(elsewhere)
    assert answers("a", "base.ckpt", picture, own) == before
