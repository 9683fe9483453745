"""Classifiers of transformers, from the folders that save_pretrained writes, and back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from composed import composed
from helpers.commands import read_csv
from helpers.stranger import take_pictures
from PIL import Image

from lora_mnist import load_classifier
from lora_mnist.command import Run
from lora_mnist.evaluate import evaluate
from lora_mnist.export import export
from lora_mnist.lora.adapter import read_metadata
from lora_mnist.train import train

transformers = pytest.importorskip("transformers", reason="the extra huggingface is missing")

#: Not in the order of the folders' names.
CLASSES = ["emu", "cat", "dog"]
NAMED = {"id2label": dict(enumerate(CLASSES)), "label2id": {c: n for n, c in enumerate(CLASSES)}}
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
CONFIGS = {
    "resnet": lambda: transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **NAMED
    ),
    "vit": lambda: transformers.ViTConfig(
        intermediate_size=32, image_size=32, patch_size=8, **SMALL, **NAMED
    ),
    "convnext": lambda: transformers.ConvNextConfig(
        hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, **NAMED
    ),
}
PROCESSORS = {
    "resnet": lambda: transformers.BitImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
    ),
    "vit": lambda: transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
    "convnext": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 32}),
}
QUICK = ("trainer=cpu", "logger=none", "figures=false", "paths.outputs=outputs")
HERE = ("data=folder", "data.data_dir=photos", "net=huggingface", "net.folder=mine")


def save_mine(kind, folder):
    """What a user of transformers has after a training."""
    torch.manual_seed(0)
    net = transformers.AutoModelForImageClassification.from_config(CONFIGS[kind]())
    with torch.no_grad():
        net.train()(torch.randn(30, 3, 32, 32))  # for the statistics
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # classes that differ
    net.save_pretrained(folder)
    PROCESSORS[kind]().save_pretrained(folder)


def labels_of(folder, files):
    """What transformers alone says of pictures, and how sure it is."""
    net = transformers.AutoModelForImageClassification.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pictures = [Image.open(file).convert("RGB") for file in files]
    with torch.no_grad():
        logits = net(**processor(pictures, return_tensors="pt")).logits
    surest, numbers = logits.softmax(dim=1).max(dim=1)
    return [net.config.id2label[number] for number in numbers.tolist()], surest


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    take_pictures(tmp_path / "photos", size=(60, 40))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_from_a_folder_to_a_repaired_folder(here, kind):
    """Each command's labels are those of transformers alone, before and after."""
    save_mine(kind, "mine")
    run = Path("outputs", "lora", "run")
    options = ("experiment=repair", "target=dog", "trainer.max_steps=4", "refit=false")
    options += ("lora.dropout=0", "callbacks.checkpoint=null", "data.test_size=0.5")
    train(composed("train", *QUICK, *HERE, *options), Run(run.absolute()))
    rows = read_csv(run / "predictions.csv")
    files = [Path("photos", row["file"]) for row in rows]
    named, surest = labels_of("mine", files)
    assert [row["before"] for row in rows] == named
    given = [float(row["before_probability"]) for row in rows]
    assert given == pytest.approx(surest.tolist(), abs=0.02)  # pictures are resized by Pillow
    record = read_metadata(run / "adapter")
    assert record["net"].keys() == {"_target_", "config"}
    assert json.loads(record["net"]["config"])["model_type"] == kind
    assert record["prepare"]["classes"] == CLASSES

    # The adapter and the base's weights alone.
    shutil.copytree(run / "adapter", "elsewhere/adapter")
    shutil.copy("mine/model.safetensors", "elsewhere/base.safetensors")
    shutil.rmtree("outputs")
    Path("mine").rename("gone")
    own = ("adapter=elsewhere/adapter", "base_ckpt=elsewhere/base.safetensors")
    evaluated = evaluate(composed("eval", *QUICK, *own))
    assert evaluated["classes"] == CLASSES
    export(composed("export", "paths.outputs=outputs", *own, "scale=1", "out=new/repaired"))
    assert sorted(path.name for path in Path("new").iterdir()) == ["repaired"]
    classifier = load_classifier("elsewhere/adapter", "elsewhere/base.safetensors")
    classifier.set_scale(1)
    ours = classifier.predict(files)
    named, surest = labels_of("new/repaired", files)
    assert [each.label for each in ours] == named
    assert [each.probability for each in ours] == pytest.approx(surest.tolist(), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_onnx_of_a_base_alone(here, kind):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="the extra onnx is not installed")
    save_mine(kind, "mine")
    export(composed("export", "paths.outputs=outputs", *HERE, "out=mine.onnx"))
