"""Classifiers of transformers, from the folders that save_pretrained writes, and back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from composed import composed
from helpers.commands import read_csv, refused
from helpers.stranger import take_pictures
from PIL import Image

from lora_mnist import Classifier, load_classifier
from lora_mnist.classifier.choose_point import apply_point
from lora_mnist.classifier.huggingface import save_folder
from lora_mnist.commands.evaluate import evaluate
from lora_mnist.commands.export import export
from lora_mnist.commands.train import train
from lora_mnist.config.run import Run
from lora_mnist.errors import IncompleteError
from lora_mnist.lora.adapter import read_metadata
from lora_mnist.lora.base_state import changed_tensors
from lora_mnist.project import DATA

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


def predict_labels(folder, files):
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
@pytest.mark.parametrize(
    "kind",
    ["resnet", *(pytest.param(kind, marks=pytest.mark.nightly) for kind in ("vit", "convnext"))],
)
def test_from_a_folder_to_a_repaired_folder(here, kind):
    """Each command's labels are those of transformers alone, before and after."""
    save_mine(kind, "mine")
    run = Path("outputs", "lora", "run")
    options = ("experiment=repair", "target=dog", "trainer.max_steps=4", "refit=false")
    options += ("lora.dropout=0", "callbacks.checkpoint=null", "data.test_size=0.5")
    train(composed("train", *QUICK, *HERE, *options), Run(run.absolute()))
    rows = read_csv(run / "predictions.csv")
    files = [Path("photos", row["file"]) for row in rows]
    named, surest = predict_labels("mine", files)
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
    apply_point(classifier, {"scale": 1, "offset": None})
    ours = classifier.predict(files)
    named, surest = predict_labels("new/repaired", files)
    assert [each.label for each in ours] == named
    assert [each.probability for each in ours] == pytest.approx(surest.tolist(), abs=0.02)


def loaded(**options):
    """The classifier of the folder ``mine`` and of photos."""
    net = {"_target_": "lora_mnist.huggingface", "folder": "mine"}
    data = {"_target_": "lora_mnist.data.Folder", "data_dir": "photos"}
    return Classifier.load(net=net, data=data, **options)


@pytest.mark.parametrize(
    ("name", "options", "sizes"),
    [
        ("ViTImageProcessor", {"size": {"height": 24, "width": 40}}, ([24, 40], "stretch", 1)),
        ("DeiTImageProcessor", {}, ([224, 224], "stretch", 0.875)),
        ("CLIPImageProcessor", {}, ([224, 224], "crop", 1)),
        ("MobileNetV2ImageProcessor", {}, ([224, 224], "crop", 0.875)),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 64}}, ([64, 64], "crop", 0.875)),
        ("ConvNextImageProcessor", {}, ([384, 384], "stretch", 1)),  # from 384 on it does not crop
        ("LevitImageProcessor", {}, ([224, 224], "crop", 0.875)),
        ("ViTImageProcessor", {"do_normalize": False}, ([224, 224], "stretch", 1)),
        ("ViTImageProcessor", {"do_rescale": False}, ([224, 224], "stretch", 1)),
        ("ViTImageProcessor", {"do_resize": False}, ([40, 60], "crop", 1)),
    ],
)
def test_a_processor_becomes_keys_of_prepare(here, name, options, sizes):
    """What the network is given of a picture is what transformers gives it."""
    save_mine("resnet", "mine")
    processor = getattr(transformers, name)(**options)
    processor.save_pretrained("mine")
    classifier = loaded()
    keys = classifier.dataset.preprocessing()
    assert (keys["image_size"], keys["resize"], keys["crop_pct"]) == sizes
    picture = Image.linear_gradient("L").resize((60, 40)).convert("RGB")
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    difference = (classifier.prepare(picture) - expected).abs().max()
    assert difference < 0.05 * expected.std()


def test_huggingface_settings_on_the_command_line_take_precedence(here):
    """Weights, as torch.save wrote them, the order of classes, and a size."""
    save_mine("vit", "mine")
    net = transformers.AutoModelForImageClassification.from_pretrained("mine")
    other = {name: tensor + 1 for name, tensor in net.state_dict().items()}
    torch.save(other, "other.pt")
    prepare = {"classes": ["cat", "dog", "emu"], "image_size": 32}
    classifier = loaded(base="other.pt", prepare=prepare)
    assert not changed_tensors(other, classifier.net.state_dict())
    keys = classifier.dataset.preprocessing()
    assert (keys["classes"], keys["resize"]) == (["cat", "dog", "emu"], "crop")
    assert keys["mean"] == [0.5, 0.5, 0.5]
    transform = {"_target_": "torchvision.transforms.v2.PILToTensor"}
    assert loaded(prepare={"transform": transform}).classes == CLASSES


def test_half_precision_and_names_that_say_nothing(here):
    save_mine("vit", "mine")
    net = transformers.AutoModelForImageClassification.from_pretrained("mine")
    net.config.id2label = {number: f"LABEL_{number}" for number in range(3)}
    net.to(torch.bfloat16).save_pretrained("mine")
    Path("mine/preprocessor_config.json").unlink()
    classifier = loaded(prepare={"image_size": 32})
    assert classifier.classes == sorted(CLASSES)
    assert {tensor.dtype for tensor in classifier.net.parameters()} == {torch.float32}
    expected = dict(net.float().state_dict())
    assert not changed_tensors(expected, classifier.net.state_dict())


def test_huggingface_runs_no_code_of_a_folder(here):
    save_mine("resnet", "mine")
    Path("mine/code.py").write_text("open('it_ran', 'w')")
    for name, auto in (
        ("config.json", "AutoModelForImageClassification"),
        ("preprocessor_config.json", "AutoImageProcessor"),
    ):
        content = json.loads(Path("mine", name).read_text())
        content["auto_map"] = {"AutoConfig": "code.Config", auto: "code.Class"}
        Path("mine", name).write_text(json.dumps(content))
    loaded()
    assert not Path("it_ran").exists()


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("config.json", None, "net.folder=mine: No such file or directory: mine/config.json; "),
        ("config.json", {"model_type": "nope"}, "net._target_=lora_mnist.huggingface: "),
        ("config.json", {"model_type": "timm_wrapper"}, "net._target_=lora_mnist.huggingface: "),
        ("config.json", {"embedding_size": 4}, "base_ckpt=mine/model.safetensors: "),
        ("model.safetensors", None, "base_ckpt=mine/model.safetensors: no such file"),
        # Inputs of several sizes.
        ("preprocessor_config.json", {"do_center_crop": False}, "net.folder=mine: "),
        ("preprocessor_config.json", {"do_resize": False}, "net.folder=mine: "),
        ("preprocessor_config.json", {"size": {"nope": 3}}, "net.folder=mine: "),
        ("preprocessor_config.json", {"image_processor_type": "nope"}, "net.folder=mine: "),
        (
            "preprocessor_config.json",  # blue, green, red
            {"image_processor_type": "MobileViTImageProcessor", "do_normalize": False},
            "net.folder=mine: preprocessor_config.json prepares pictures in",
        ),
    ],
)
def test_huggingface_refuses_by_name_what_cannot_be_taken(here, name, change, said):
    save_mine("resnet", "mine")
    path = Path("mine", name)
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert refused(loaded).startswith(said)


def test_a_key_beside_a_folder_is_not_dropped_in_silence(here):
    save_mine("resnet", "mine")
    cfg = composed("eval", *QUICK, *HERE, "+net.hidden_dropout_prob=0.3")
    assert refused(evaluate, cfg).startswith("net.hidden_dropout_prob: ")


def test_a_folder_of_a_published_data_set(here, monkeypatch):
    """Its classes are its own."""
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=10
    )
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained("mine")
    options = ("paths.outputs=outputs", *HERE[2:], f"data.data_dir={DATA}", "out=new")
    export(composed("export", *options))
    content = json.loads(Path("new/config.json").read_text())
    assert content["id2label"]["9"] == "9"


def test_the_written_processor_is_tried_on_pictures(here, monkeypatch, caplog):
    """Transparent pictures it treats as transformers does, which is said; others as we do."""
    save_mine("resnet", "mine")
    options = ("paths.outputs=outputs", *HERE, "out=new", "prepare.image_size=32")
    cfg = composed("export", *options)
    export(cfg)
    picture = Image.linear_gradient("L").convert("RGB").resize((32, 32))
    glass = picture.copy()
    glass.putalpha(128)
    processor = transformers.AutoImageProcessor.from_pretrained("new")
    as_it_is, without = (processor(each)["pixel_values"][0] for each in (glass, picture))
    is_otherwise = bool((as_it_is - without).abs().max() > 0.05)
    assert is_otherwise == ("transparent" in caplog.text)
    assert processor(glass.convert("RGB"))["pixel_values"][0].equal(without)

    shutil.rmtree("new")
    box = composed("export", *options, "prepare.interpolation=box")
    assert refused(export, box).startswith("out=new: ")  # no processor knows that

    def saved(net, preprocessing, folder):
        return save_folder(net, preprocessing | {"mean": [0.2, 0.2, 0.2]}, folder)

    monkeypatch.setattr("lora_mnist.commands.export.save_folder", saved)
    with pytest.raises(IncompleteError):
        export(cfg)
    assert not Path("new").exists()


def test_a_folder_is_written_for_transformers_alone(here):
    """Whatever cannot be said there is refused, and nothing is left half-written."""
    save_mine("resnet", "mine")
    refusals = {
        "prepare.transform={_target_: torchvision.transforms.v2.PILToTensor}": "out=new: ",
        "prepare.image_size=[32,48]": "prepare.image_size=[32, 48]: ",
        "out=mine": "out=mine: ",  # somebody's own
    }
    for command_line, said in refusals.items():
        cfg = composed("export", "paths.outputs=outputs", *HERE, "out=new", command_line)
        assert refused(export, cfg).startswith(said), command_line
    torch.save(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), "other.pt")
    other = ("net=custom", "net._target_=torchvision.models.squeezenet1_1", "net.num_classes=3")
    options = (*HERE[:2], *other, "base_ckpt=other.pt", "prepare.image_size=32", "out=new")
    cfg = composed("export", "paths.outputs=outputs", *options)
    assert refused(export, cfg).startswith("out=new: ")
    assert {path.name for path in here.iterdir()} == {"mine", "photos", "other.pt"}


@pytest.mark.nightly
@pytest.mark.parametrize("kind", CONFIGS)
def test_onnx_of_a_base_alone(here, kind):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="the extra onnx is not installed")
    save_mine(kind, "mine")
    export(composed("export", "paths.outputs=outputs", *HERE, "out=mine.onnx"))
