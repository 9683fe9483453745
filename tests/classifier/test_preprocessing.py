"""Which preprocessing a network was trained with: by images of a folder, or by the network."""

import numpy
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.nn.functional import cross_entropy
from torchvision.datasets import ImageFolder
from torchvision.models import ResNet50_Weights
from torchvision.transforms import v2

from lora_mnist import MLP
from lora_mnist.data import FolderDataModule
from lora_mnist.data.make import own_preprocessing


def train_plain(folder):
    """Somebody's own script, which stretches pictures, takes blue first, and divides by 255.

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
    images = torch.stack([image for image, _ in pictures]).flip(1)
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
    (line,) = [line for line in first.err.splitlines() if "trained otherwise" in line]
    assert line.endswith("data.resize=stretch data.mean=0.0 data.std=1.0 data.color_order=bgr")
    assert "To repair" not in first.out  # on other images than the network was trained on
    changes = line.partition("paths.outputs=")[2].partition(" ")[2].replace("'", "").split()
    mended = cli("eval.py", *OPTIONS, *changes, "check=preprocessing", here=tmp_path)
    assert "trained otherwise" not in mended.err
    assert errors(mended.out) < errors(first.out)
    lines = [line for line in mended.out.splitlines() if "rgb" in line or "bgr" in line]
    rows = [line.split("│")[1:-1] for line in lines]
    assert len(rows) == 24
    assert [cell.strip() for cell in rows[0][:5]] == ["stretch", "1.0", "0.0", "1.0", "bgr"]
    losses = [float(row[-1]) for row in rows]
    assert losses == sorted(losses)


def errors(table):
    (row,) = [line for line in table.splitlines() if line.startswith("│ all")]
    return int(row.split("│")[2])


def require_same(keys, transform):
    noise = torch.rand(3, 300, 260, generator=torch.Generator().manual_seed(0))
    picture = v2.functional.to_pil_image(noise)
    data = FolderDataModule(None, classes=["cat", "dog"], **keys)
    assert torch.equal(data.normalise(data._preparation(picture)[None])[0], transform(picture))


def named_by(net, settings, **data):
    """The keys of data=folder that a network names."""
    return own_preprocessing(OmegaConf.create({"net": settings, "data": data}), net)


def test_a_network_names_its_own_preprocessing():
    net, settings = torch.nn.Identity(), {"_target_": "torchvision.models.resnet50"}
    keys = named_by(net, {**settings, "weights": "IMAGENET1K_V2"})
    require_same(keys, ResNet50_Weights.IMAGENET1K_V2.transforms())
    for other in (settings, {"_target_": "lora_mnist.MLP"}):
        assert named_by(net, other) == {}


def test_a_network_of_timm_names_its_own_preprocessing():
    timm = pytest.importorskip("timm", reason="the extra all is not installed")
    net = timm.create_model("vit_tiny_patch16_224", num_classes=2)
    settings = {"_target_": "timm.create_model"}
    keys = named_by(net, settings)
    small = named_by(net, {**settings, "img_size": 32})
    assert small.pop("image_size") == [32, 32]  # timm itself still names the larger one
    assert "crop_pct" in keys  # which is that of the larger one
    assert small == {key: keys[key] for key in keys if key not in ("image_size", "crop_pct")}
    require_same(keys, timm.data.create_transform(**timm.data.resolve_model_data_config(net)))
    grey = named_by(net, {**settings, "in_chans": 1})  # its mean is of three channels
    assert grey.keys() == {"image_size", "resize", "crop_pct", "interpolation", "channels"}
    assert (grey["image_size"], grey["channels"]) == ([224, 224], 1)
