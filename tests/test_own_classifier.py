"""A stranger's network, weights and folder of images, through every command."""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import readme
import torch
from composed import composed
from helpers.commands import only_run, read_csv, read_results, refused
from helpers.stranger import CLASSES, PHOTOS, config, mine, move_in, take_pictures
from PIL import Image
from safetensors import safe_open
from torch import nn
from torchvision.models import ResNet18_Weights

from lora_mnist import load_adapter
from lora_mnist.commands.evaluate import evaluate
from lora_mnist.commands.export import export
from lora_mnist.commands.predict import predict
from lora_mnist.commands.train import train
from lora_mnist.config.make import load_from_config
from lora_mnist.config.run import Run
from lora_mnist.errors import TrainingError
from lora_mnist.lora.adapter import read_metadata
from lora_mnist.training import artifacts

FIT = (
    *("trainer=cpu", "trainer.max_steps=6", "callbacks.checkpoint=null", "logger=none"),
    "figures=false",
)


def evaluated(*overrides):
    """The results of a test of the stranger's classifier."""
    return evaluate(config("eval", "figures=false", *overrides))


@pytest.fixture
def here(tmp_path, monkeypatch):
    return move_in(tmp_path, monkeypatch)


def repaired(here, *overrides):
    """The folder of a repair, and its results."""
    folder = here / "outputs" / "lora" / "run"
    once = ("experiment=repair", "target=dog", "lora.dropout=0", "refit=false")
    return folder, train(config("train", *once, *FIT, *overrides), Run(folder))


def test_a_transform_of_ones_own_prepares_pictures_for_every_command(here):
    """Its code lies in the folder where the command is started; a network takes what it makes."""
    transform = ResNet18_Weights.DEFAULT.transforms(crop_size=8, resize_size=10)
    weights = "from torchvision.models import ResNet18_Weights\n"
    Path("my_transforms.py").write_text(f"{weights}make = ResNet18_Weights.DEFAULT.transforms\n")
    own = "prepare.transform={_target_: my_transforms.make, crop_size: 8, resize_size: 10}"
    folder, results = repaired(here, own, "augment=flip")
    rows = read_csv(folder / "predictions.csv")
    names = [row["file"] for row in rows]
    assert names == sorted(names)
    images = torch.stack([transform(Image.open(f"photos/{n}").convert("RGB")) for n in names])
    for side, net in (("before", mine()), ("after", load_adapter(mine(), folder / "adapter"))):
        with torch.no_grad():
            surest, numbers = net(images).softmax(dim=1).max(dim=1)
        assert [row[side] for row in rows] == [CLASSES[number] for number in numbers]
        given = [float(row[f"{side}_probability"]) for row in rows]
        assert given == pytest.approx(surest.tolist(), abs=2e-6)
    assert (results["mean"], results["std"]) == (None, None)
    options = ("adapter=latest", own)
    (both,) = predict(config("predict", f"images=photos/{names[0]}", *options))
    assert both["after"].label == rows[0]["after"]
    export(config("export", "out=repaired.safetensors", *options))
    with safe_open("repaired.safetensors", framework="pt") as file:
        assert "my_transforms.make" in file.metadata()["input"]


def of_colors():
    """A network of the mean of each color."""
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3, 3))


def test_a_base_that_knows_its_validation_images_gets_others_from_test(here, caplog):
    """The weakest class is then found, as it is not where the base has been trained on them."""
    torch.save({"2.weight": torch.eye(3), "2.bias": torch.zeros(3)}, "mine.pt")
    shutil.copytree("photos", "parts/train")
    take_pictures(here / "others", seed=1)
    shutil.copytree("others/cat", "parts/test/dog")
    shutil.copytree("others/emu", "parts/test/cat")
    own = ("data.data_dir=parts", "prepare.mean=0", "prepare.std=1", "target=weakest")
    own += (f"net._target_={__name__}.of_colors",)
    said = refused(repaired, here, *own)
    assert said.startswith("target=weakest: ")
    (key,) = re.findall(r"data\.val_from=\w+", said)
    # What is not known of the base was said before anything was computed.
    assert any(each.startswith("validation images were held") for each in caplog.messages)
    assert any(each.startswith("batches.augment=auto: ") for each in caplog.messages)
    caplog.clear()
    repaired(here, *own, key, "augment=none")
    assert not any(each.startswith("validation images were held") for each in caplog.messages)
    assert not any(each.startswith("batches.augment=auto: ") for each in caplog.messages)


def test_an_adapter_is_tested_on_images_it_was_not_trained_on(here, monkeypatch):
    """Wherever the folder lies, and by whatever path it is named."""
    folder, results = repaired(here, "data.split_seed=7")
    (here / "moved").mkdir()
    (here / "photos").rename(here / "moved" / "pictures")
    monkeypatch.chdir(here / "moved")
    monkeypatch.syspath_prepend(str(here))
    named = ("base_ckpt=../mine.pt", "data.data_dir=pictures", "paths.outputs=../outputs")
    evaluated(f"adapter={folder}", *named)
    tested = [folder, only_run(here / "outputs", "eval")]
    names = [{row["file"] for row in read_csv(run / "predictions.csv")} for run in tested]
    assert names[0] == names[1]
    assert results["test"]["images_per_class"] == [2, 2, 2]
    said = refused(evaluated, f"adapter={folder}", *named, "data.val_from=test")
    assert said.startswith("data.val_from=test: ")


def test_batch_normalization_is_given_no_batch_of_one_image(here):
    """Of 48 images; torch would refuse it in the middle of a training."""
    net = "nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, num_classes))"
    Path("flat.py").write_text(f"from torch import nn\ndef flat(num_classes=3): return {net}\n")
    options = ("net._target_=flat.flat", "prepare.image_size=8", "optimizer.lr=0.01", *FIT)
    options += ("trainer.max_steps=-1", "trainer.max_epochs=2", "batches.batch_size=47")
    assert train(composed("train", "stage=pretrain", *PHOTOS, *options))["steps"] == 2


def test_batch_normalization_has_the_statistics_of_the_averaged_weights(here):
    """And not those of the last ones, among which the average has never been."""
    options = ("base_ckpt=averaged.ckpt", "callbacks=averaging", "batches.batch_size=16")
    with suppress(TrainingError):  # of so few steps
        train(config("train", "stage=pretrain", *FIT, *options, "optimizer.lr=0.1"))
    classifier = load_from_config(config("eval", "base_ckpt=averaged.ckpt"))
    pixels, _ = classifier.images.train.take(list(range(48)))
    outputs = classifier.net.conv(classifier.dataset.normalize(pixels))
    torch.testing.assert_close(classifier.net.norm.running_mean, outputs.mean(dim=(0, 2, 3)))


def test_which_images_are_held_out_is_each_repairs_choice(here):
    """A copy of somebody's base does not remember that of the first repair, and proves nothing."""
    repaired(here, "data.split_seed=7", "data.test_size=0.5")
    folder = here / "outputs" / "lora" / "second"
    second = train(config("train", "stage=lora", "target=dog", *FIT), Run(folder))
    again = evaluated(f"adapter={folder}", "base_ckpt=null")
    assert again["test"]["images_per_class"] == second["test"]["images_per_class"]
    assert second["unknown_train_digests"] == again["unknown_train_digests"] == ["base"]


def test_what_the_classes_and_folders_say_is_refused_before_an_image_is_read(here):
    for path in Path("photos").rglob("*.png"):
        path.write_bytes(b"no picture")
    known = ("prepare.image_size=8", "prepare.mean=0.3", "prepare.std=0.2")
    assert refused(repaired, here, *known, "target=dgo").startswith("target=dgo: no class has")
    assert "data_dir" in refused(repaired, here, *known)  # which reads them


def test_a_folder_of_test_images_alone_is_tested_and_not_trained_on(here):
    shutil.copytree("photos", "alone/test")
    form = ("data.data_dir=alone", "prepare.mean=[0.3,0.3,0.3]", "prepare.std=0.2")
    results = evaluated(*form)
    assert sum(results["test"]["images_per_class"]) == 60
    assert "test" not in results["held_out"]
    assert "prepare.mean=null: " in refused(evaluated, form[0])
    with pytest.raises(RuntimeError) as caught:
        evaluated("prepare.channels=1")
    assert "prepare.channels" in caught.value.__notes__[0]
    assert refused(repaired, here, *form).startswith("data: ")


def test_a_name_that_is_no_text_loses_nothing(here):
    """A picture that was named in Latin-1, and folders whose names are numbers."""
    for folder in map(os.fsencode, Path("photos").iterdir()):
        Path(os.fsdecode(folder + b"/0.png")).rename(os.fsdecode(folder + b"/\xe4.png"))
    Path("photos").rename("5")
    folder, results = repaired(here, "data.data_dir=5", "data.test_size=0.5")
    assert results["test"]["images_per_class"] == [10, 10, 10]
    assert "\\udce4.png" in (folder / "predictions.csv").read_text()
    folder.rename("2024")
    evaluated("adapter=2024", "data.data_dir=5")
    predict(config("predict", "images=5", "adapter=2024", "out=p.csv"))
    assert len(Path("p.csv").read_text().splitlines()) == 1 + 60


def test_an_adapter_records_a_folder_named_data(here, monkeypatch):
    """There MNIST lies, where the package is installed."""
    monkeypatch.setattr(artifacts, "DATA", here / "photos")
    folder, _ = repaired(here)
    assert read_metadata(folder / "adapter")["data"]["data_dir"] == str(here / "photos")


def test_a_base_knows_how_its_images_were_prepared(here):
    """Another folder is not measured anew, and the order of the classes stays."""
    order = ("prepare.classes=[emu,cat,dog]", "base_ckpt=outputs/base/new.ckpt")
    trained = train(config("train", "stage=pretrain", *FIT, *order, "batches.batch_size=20"))
    take_pictures(here / "others", seed=1)
    other = (order[1], "data.data_dir=others")
    results = evaluated(*other)
    for key in ("mean", "std", "classes"):
        assert results[key] == trained[key]
    repaired = train(config("train", "stage=lora", "target=[emu,dog]", *FIT, *other))
    assert (repaired["targets"], repaired["mean"]) == ([0, 2], trained["mean"])
    assert repaired["base_unchanged"]
    assert evaluated("adapter=latest", order[1], "prepare.mean=0.25")["mean"] == 0.25


@pytest.mark.nightly
def test_the_example_from_the_first_command_to_the_last(tmp_path):
    """As ``scripts/readme.py`` runs its README."""
    for package in ("sklearn", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="the extra all is not installed")
    printed = readme.Runs(tmp_path).example("use_repaired.py")
    results = read_results(only_run(tmp_path / "outputs", "lora"))
    assert (results["targets"], results["base_unchanged"]) == ([0], True)
    after, before = (results[key]["errors_per_class"][0] for key in ("test", "test_base"))
    assert after < before / 2
    assert results["test"]["errors"] < results["test_base"]["errors"]
    assert printed.count(": eight (") == 39 - after
