"""Which preprocessing a network was trained with, by images of a folder."""

import numpy
import pytest
import torch
from composed import composed, logged
from helpers.commands import only_run, read_results
from PIL import Image
from torch.nn.functional import cross_entropy
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lora_mnist import MLP
from lora_mnist.check_preprocessing import warn_of_wrong_settings
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
    *(
        "data=folder",
        "data.data_dir=photos",
        "prepare.image_size=8",
        "figures=false",
        "trainer=cpu",
    ),
    *("net=custom", "net._target_=nets_of_photos.MLP", "base_ckpt=mine.pt"),
    *("net.in_features=192", "net.hidden_sizes=[32]", "net.num_classes=3"),
)


@pytest.mark.slow
def test_eval_says_unasked_how_the_network_was_trained(cli, tmp_path):
    train_plain(tmp_path)
    done = cli("eval.py", *OPTIONS, here=tmp_path).ok()
    assert "images with: prepare.resize=stretch prepare.mean=0.0 prepare.std=1.0\n" in done.err
    assert "To repair" not in done.out  # on other images than the network was trained on
    results = read_results(only_run(tmp_path / "outputs", "eval"))
    better = results["better_preprocessing"]
    assert " ".join(better) == "prepare.resize=stretch prepare.mean=0.0 prepare.std=1.0"
    with logged("lora_mnist.check_preprocessing") as log:
        mended = evaluate(composed("eval", *OPTIONS, *better, f"paths.outputs={tmp_path}/outputs"))
    assert log.getvalue() == ""
    assert mended["test"]["errors"] < results["test"]["errors"]


@pytest.mark.parametrize(("errors", "is_said"), [(70, True), (50, False)])
def test_a_base_that_guesses_is_told_unasked(errors, is_said):
    with logged("lora_mnist.check_preprocessing") as log:
        warn_of_wrong_settings({"errors_per_class": [errors] * 3, "images_per_class": [100] * 3})
    assert ("90 of 300 images right, which is hardly better" in log.getvalue()) == is_said
