"""Which preprocessing a network was trained with, by images of a folder."""

from types import SimpleNamespace

import numpy
import pytest
import torch
from composed import composed, logged
from PIL import Image
from torch.nn.functional import cross_entropy
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lora_mnist import MLP
from lora_mnist.check_preprocessing import warn_of_wrong_settings
from lora_mnist.configuration import classifier_of
from lora_mnist.evaluate import evaluate


def train_plain(folder):
    """Somebody's own script, which stretches pictures and divides them by 255.

    The pictures are wide, with noise and a coloured bar in one of three places, 150 a class.
    """
    generator = numpy.random.default_rng(0)
    for label, name in enumerate(("cat", "dog", "emu")):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(150):
            pixels = generator.normal(90, 80, (12, 20, 3))
            left = 3 * label  # of a cat, cropping leaves nothing
            pixels[:, left : left + 4] += generator.normal([70, 20, 0], 25)
            picture = Image.fromarray(pixels.clip(0, 255).astype("uint8"))
            picture.save(folder / "photos" / name / f"{number}.png")
    (folder / "nets_of_photos.py").write_text("from lora_mnist import MLP")
    steps = [v2.Resize((8, 8)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    pictures = ImageFolder(str(folder / "photos"), v2.Compose(steps))
    images = torch.stack([image for image, _ in pictures])
    labels = torch.tensor(pictures.targets)
    torch.manual_seed(0)
    net = MLP(3 * 8 * 8, [32], 3)
    adam = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(15):
        for batch in torch.randperm(len(images)).split(30):
            adam.zero_grad()
            cross_entropy(net(images[batch]), labels[batch]).backward()
            adam.step()
    torch.save(net.state_dict(), folder / "mine.pt")


OPTIONS = (
    *("data=folder", "data.data_dir=photos", "data.image_size=8", "figures=false", "trainer=cpu"),
    *("net=custom", "net._target_=nets_of_photos.MLP", "base_ckpt=mine.pt"),
    *("net.in_features=192", "net.hidden_sizes=[32]", "net.num_classes=3"),
)


@pytest.mark.slow
def test_eval_says_unasked_how_the_network_was_trained(cli, tmp_path):
    train_plain(tmp_path)
    first = cli("eval.py", *OPTIONS, here=tmp_path)
    assert first.code == 0, first.err
    (line,) = [line for line in first.err.splitlines() if "prepared otherwise" in line]
    assert line.endswith("data.resize=stretch data.mean=0.0 data.std=1.0")
    assert "To repair" not in first.out  # on other images than the network was trained on
    changes = line.partition("paths.outputs=")[2].partition(" ")[2].replace("'", "").split()
    mended = cli("eval.py", *OPTIONS, *changes, here=tmp_path)
    assert "prepared otherwise" not in mended.err
    assert errors(mended.out) < errors(first.out)
    with logged("lora_mnist.check_preprocessing") as text:  # no command line is known
        evaluate(composed("eval", *OPTIONS, f"paths.outputs={tmp_path}/outputs"))
    assert text.getvalue().endswith(": data.resize=stretch data.mean=0.0 data.std=1.0\n")


def errors(table):
    (row,) = [line for line in table.splitlines() if line.startswith("│ all")]
    return int(row.split("│")[2])


@pytest.mark.parametrize(
    ("change", "errors", "said"),
    [
        ("data.classes=[dog,emu,cat]", 70, "right, which is hardly better than guessing: if it wa"),
        ("data.classes=[dog,cat,emu]", 40, "of 200 training images wrong as well: if it was bett"),
        ("data.classes=[cat,dog,emu]", 40, None),  # it knows the training images
        ("data.classes=[dog,cat,emu]", 20, None),
    ],
)
def test_a_base_that_seems_to_be_another_one_is_told_unasked(
    tmp_path, monkeypatch, change, errors, said
):
    train_plain(tmp_path)
    monkeypatch.chdir(tmp_path)
    ways = ("data.resize=stretch", "data.mean=0.0", "data.std=1.0")
    classifier = classifier_of(composed("eval", *OPTIONS, *ways, change))
    trainer = SimpleNamespace(
        is_global_zero=True, strategy=SimpleNamespace(root_device=torch.device("cpu"))
    )
    counts = {"errors_per_class": [errors] * 3, "images_per_class": [100] * 3}
    with logged("lora_mnist.check_preprocessing") as log:
        warn_of_wrong_settings(classifier, counts, trainer)
    assert (said or "") in log.getvalue()
    assert bool(log.getvalue()) == bool(said)
