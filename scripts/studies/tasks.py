"""Classifiers with a weak class: pictures made from what is there, small networks, their bases.

``net=custom net._target_=tasks.ResNet`` finds a network here, ``my_nets.Net`` in the example.
Fashion-MNIST is downloaded, or the four files of Debian's package dataset-fashion-mnist lie in
data/FashionMNIST/raw, gunzipped; scikit-learn has the photographs, matplotlib the letters.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy
from jobs import OUTPUT, PROJECT, composed, run
from PIL import Image, ImageDraw, ImageFont
from rival import Case, load_case
from torch import Tensor, nn

from lora_mnist.config.command import classifier_of, make
from lora_mnist.data import MNIST
from lora_mnist.measure.predictions import counts_of, predictions_of
from lora_mnist.measure.significance import weakest
from lora_mnist.training.session import augment_of

EXAMPLE = PROJECT / "examples" / "own_classifier"
sys.path.append(str(EXAMPLE))


class ResNet(nn.Module):
    """Three residual blocks with batch normalisation, and dropout before the last layer."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.down = nn.ModuleList()
        self.blocks = nn.ModuleList()
        for level in range(3):
            channels = 8 * 2**level
            self.down.append(nn.Conv2d(channels // (2 if level else 1), channels, 2, 2))
            block = []
            for _ in range(2):
                convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
                block += [nn.BatchNorm2d(channels), nn.ReLU(), convolution]
            self.blocks.append(nn.Sequential(*block))
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for down, block in zip(self.down, self.blocks, strict=True):
            x = down(x)
            x = x + block(x)
        logits: Tensor = self.head(self.dropout(x.relu().mean((2, 3))))
        return logits


# --- pictures: FOLDER/train, val and test, a folder a class --------------------------------------


def fashion(folder: Path, first: int, count: int) -> None:
    """Some pictures of Fashion-MNIST that no other task has."""
    images, labels = MNIST("FashionMNIST", PROJECT / "data").load(train=True)
    some = slice(first, first + count)
    write(folder, images[some, 0].numpy() / 255, labels[some].tolist())


def letters(folder: Path, characters: str, count: int) -> None:
    """Write :func:`drawn_letters` with noise."""
    write(folder, *drawn_letters(characters, count), 0.15)


def drawn_letters(characters: str, count: int) -> tuple[Any, list[str]]:
    """Letters of 16 x 16 pixels, from 0 to 1, in six fonts, slanted and turned, and which."""
    place = Path(matplotlib.get_data_path(), "fonts", "ttf")
    names = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic", "cmr10", "cmtt10")
    fonts = [ImageFont.truetype(str(place / f"{name}.ttf"), 40) for name in names]
    generator = numpy.random.default_rng(0)
    images, labels = [], []
    for _ in range(count):
        letter = characters[generator.integers(len(characters))]
        image = Image.new("L", (64, 64))
        font = fonts[generator.integers(len(fonts))]
        ImageDraw.Draw(image).text((32, 32), letter, fill=255, font=font, anchor="mm")
        a, b, d, e = generator.normal((1, 0, 0, 1), 0.22)
        c, f = 32 - 32 * (a + b), 32 - 32 * (d + e)  # the middle stays where it is
        image = image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f))
        images.append(numpy.asarray(image.resize((16, 16), Image.Resampling.BOX)) / 255)
        labels.append(letter)
    return numpy.stack(images), labels


def photos(folder: Path) -> None:
    """The 1,797 digits over photographs of examples/own_classifier."""
    folder.mkdir(parents=True)
    subprocess.run([sys.executable, EXAMPLE / "make_images.py"], cwd=folder, check=True)
    for part in (folder / "photos").iterdir():
        part.rename(folder / part.name)
    (folder / "photos").rmdir()


def write(folder: Path, images: Any, labels: list[Any], noise: float = 0.0) -> None:
    """Write pictures, on the scale 0 to 1: 3 of 10 to test on, 1 of 10 to validate."""
    images = images + noise * numpy.random.default_rng(1).normal(size=images.shape)
    images = (255 * images.clip(0, 1)).round().astype("uint8")
    for number, label in enumerate(labels):
        part = "test" if number % 10 < 3 else "val" if number % 10 == 3 else "train"
        path = folder / part / str(label) / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number]).save(path)


PICTURES: dict[str, Callable[[Path], None]] = {
    "fashion": partial(fashion, first=0, count=14_000),
    "clothes": partial(fashion, first=14_000, count=2000),
    "letters": partial(letters, characters="abcdefghijklmnopqrstuvwxyz", count=14_000),
    "capitals": partial(letters, characters="ABCDEFGHIJ", count=1400),
    "photos": photos,
}


# --- tasks ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A classifier with a weak class; ``target``: the class to repair, or classes in brackets."""

    name: str
    seed: int
    settings: str  # of every run: the network, and the images where ``pictures`` is empty
    pictures: str = ""  # of PICTURES
    epochs: int = 1  # of pretraining, with 50 images a step
    target: str = "weakest"
    starved: float = 1.0  # the share of its training images that are there
    pretrain: str = ""  # further settings of pretraining
    augment: str = "augment=none"  # of pretraining
    runs: int = 2  # of a method on a base, at most

    def folder(self) -> Path:
        """The folder of its pictures, which are made now, if they were not yet."""
        name = f"{self.pictures} {self.target} {self.starved}"
        folder = OUTPUT / "pictures" / name
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            PICTURES[self.pictures](unfinished)
            if self.starved < 1:
                files = sorted((unfinished / "train" / self.target).iterdir())
                for file in files[int(self.starved * len(files)) :]:
                    file.unlink()
            unfinished.rename(folder)
        return folder

    def common(self) -> list[str]:
        """Settings of every run: images and network."""
        if not self.pictures:
            return self.settings.split()
        return ["data=folder", f"data.data_dir='{self.folder()}'", *self.settings.split()]

    def base(self) -> Path:
        """The file of its base; it is pretrained now, if it was not yet."""
        file = OUTPUT / "bases" / f"{self.name}{self.seed}.ckpt"
        if not file.exists():  # it is written last, and whole
            own = ["stage=pretrain", f"seed={self.seed}", f"base_ckpt='{file}'"]
            own += ["batches.batch_size=50", f"trainer.max_epochs={self.epochs}"]
            run([*self.common(), *own, self.augment, *self.pretrain.split()])
        return file

    def run(self, settings: str) -> tuple[Path, dict[str, Any]]:
        """A run on its base."""
        own = [f"base_ckpt='{self.base()}'", f"target={self.target}"]
        return run([*self.common(), *own, *settings.split()])

    def load(self) -> Case:
        """Its base and its images in memory."""
        base = f"base_ckpt='{self.base()}'"
        cfg = composed([*self.common(), "stage=lora", base, self.augment])
        classifier = classifier_of(cfg)
        net, dataset = classifier.net, classifier.dataset
        if self.target == "weakest":
            counts = counts_of(predictions_of(net, dataset.batches(dataset.sets.val)))["before"]
            targets = [weakest(counts["errors_per_class"], counts["images_per_class"])]
        else:
            named = self.target.strip("[]").split(",")
            targets = [dataset.classes.index(name) for name in named]
        augment = augment_of(cfg, classifier)
        augment = augment and make("batches.augment", augment)
        return load_case(net, dataset, dataset.sets, targets, augment)


_FASHION = "prepare.channels=1"
_LETTERS = "prepare.channels=1 net.num_classes=26"
_CAPITALS = "prepare.channels=1 net.num_classes=10"
_LETTERS_CNN = "net=cnn net.channels=[12,24] net.image_size=16"
_LETTERS_MLP = "net=mlp net.in_features=256 net.hidden_sizes=[200]"
_RESNET = "net=custom net._target_=tasks.ResNet"
_OWN = "net=custom net._target_=my_nets.Net"

_CROP = "{_target_:torchvision.transforms.v2.RandomResizedCrop,size:[16,16],scale:[0.6,1.0]}"
#: How images are changed at random in the trainings of bases, by the pictures.
AUGMENTS = {
    **dict.fromkeys(("letters", "capitals", "chess"), ("shifted", "augment=shift")),
    **dict.fromkeys(("fashion", "clothes", "pictograms"), ("mirrored", "augment=flip")),
    "photos": ("cropped", f"batches.augment={_CROP}"),
}


def with_augmented(*tasks: Task) -> list[Task]:
    """Each task, and after it the same with bases that were trained with augmentation."""
    both = []
    for task in tasks:
        name, augment = AUGMENTS[task.pictures]
        both += [task, replace(task, name=f"{task.name}, {name}", augment=augment)]
    return both


#: No search has seen these.
TASKS = with_augmented(
    Task("letters, CNN", 101, f"{_LETTERS} {_LETTERS_CNN}", "letters", 8, "h", 0.3),
    Task("letters, MLP", 102, f"{_LETTERS} {_LETTERS_MLP}", "letters", 10),
    Task("Fashion, MLP", 103, f"{_FASHION} net=mlp net.hidden_sizes=[256]", "fashion", 6, "3", 0.3),
    Task("Fashion, ResNet", 105, f"{_FASHION} {_RESNET}", "fashion", 6, "5", 0.35),
    Task("photos, CNN", 107, _OWN, "photos", 8, "eight", 0.3, "optimizer.lr=0.003"),
    Task("letters, ResNet", 108, f"{_LETTERS} {_RESNET}", "letters", 14, "n", 0.5),
    Task("pullovers, CNN", 109, f"{_FASHION} net=cnn net.channels=[8,16]", "fashion", 5, "2"),
    Task("capitals, CNN", 110, f"{_CAPITALS} {_LETTERS_CNN}", "capitals", 30, "C", 0.35),
    # Trained to the end: no training image is wrong.
    Task("clothes, CNN", 111, f"{_FASHION} net=cnn net.channels=[16,32]", "clothes", 60),
)
