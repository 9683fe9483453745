"""A folder of images, small and made up."""

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from PIL import Image

Maker = Callable[..., Path]


@pytest.fixture
def make_photos(tmp_path: Path) -> Maker:
    """``make_photos({"cat": 5, "dog": 3}, "train", size=(8, 6))``: that many images a class.

    The images are noise; they are cat/0.png, cat/1.png, ... in tmp_path/photos/train.
    """

    def make(counts: dict[str, int], *below: str, size: tuple[int, int] = (8, 8)) -> Path:
        root = tmp_path / "photos"
        generator = numpy.random.default_rng(len(list(root.rglob("*"))))
        for name, count in counts.items():
            folder = root.joinpath(*below, name)
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
        return root

    return make
