"""Turns pictures into images: opens, decodes, resizes, crops and augments them."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, ImageOps, TiffImagePlugin
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import (
    center_crop,
    crop,
    get_size,
    pad,
    pil_to_tensor,
    resize,
)

from lora_mnist.data.digests import compute_digests
from lora_mnist.data.images import Augment
from lora_mnist.errors import (
    PictureError,
    UserError,
    printable,
    require,
    require_choice,
    require_number,
)

#: Other formats are not read: EPS, for one, is a program that Ghostscript would run.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def open_picture(
    picture: Path | Image.Image,
    upright: bool = False,
    draft: bool = False,
    keeps_alpha: bool = False,  # False: a picture that loses all without alpha is refused
) -> Image.Image:
    """Decode a picture to eight bits a channel; a JPEG's ``draft`` is small and quickly read."""
    source: AbstractContextManager[Image.Image]
    if isinstance(picture, Path):
        _refuse_pipe(picture)
    try:
        if isinstance(picture, Path):
            source = Image.open(picture, formats=_FORMATS)
        else:
            source = nullcontext(picture)
        with source as image:  # which closes a damaged file, too
            file_format, bits = image.format, 16
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                (bits, *_) = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, [bits])
            if upright:
                image = ImageOps.exif_transpose(image)
            if draft:
                image.draft("L", (1, 1))
            image.load()
    except Exception as error:  # Pillow has no common class for damaged files
        raise PictureError(f"no readable picture ({type(error).__name__})") from error
    # Pillow's mode I is of any range, but it scales these formats to 16 bits.
    if image.mode == "F" or (image.mode == "I" and file_format not in ("PNG", "PPM")):
        raise PictureError(f"no readable picture (pixels of mode {image.mode}: no known range)")
    if image.mode.startswith("I"):  # of 12 or 16 bits the upper eight: Pillow would clip at 255
        return Image.fromarray((numpy.asarray(image) >> (bits - 8)).astype(numpy.uint8))
    if image.has_transparency_data and not keeps_alpha:
        extrema: Any = image.convert("RGBA").getextrema()
        *colors, (least, most) = extrema
        if least < most and all(low == high for low, high in colors):
            raise PictureError("blank without its transparency; flatten it onto a background")
    try:
        image.crop((0, 0, 1, 1)).convert("L")
    except ValueError as error:  # LAB is one
        raise PictureError(f"no readable picture (pixels of mode {image.mode})") from error
    return image


def _refuse_pipe(path: Path) -> None:
    """Raise if the path is no regular file: reading a named pipe would wait forever."""
    if path.exists() and not path.is_file():
        raise PictureError("no readable picture (it is no file)")


def examine(path: Path) -> tuple[int, int, int]:
    """Decode a picture's file; return its digest, height and width.

    PictureError, if it cannot be read.
    """
    open_picture(path, draft=True)
    content = path.read_bytes()
    with Image.open(BytesIO(content), formats=_FORMATS) as picture:  # a draft has another size
        return int(compute_digests([content])), picture.height, picture.width


@dataclass(frozen=True)
class Preprocessing:
    """A function from a picture to an image: a ``transform``, or torchvision's transforms."""

    channels: int
    size: tuple[int, int]  # height and width; a transform does not ask for it
    resize: str = "crop"
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    transform: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        require_choice("channels", self.channels, [1, 3])
        require_choice("resize", self.resize, ["crop", "stretch"])
        require_number("crop_pct", self.crop_pct, 0.1, 1)
        require_choice("interpolation", self.interpolation, [m.value for m in InterpolationMode])

    @property
    def sizing(self) -> dict[str, Any]:
        """The keys of ``prepare`` that resize a picture."""
        return {
            "image_size": list(self.size),
            "resize": self.resize,
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation,
        }

    def __call__(self, picture: Image.Image, augment: Augment | None = None) -> Tensor:
        """Return the image, uint8, (channels, height, width), or the output of ``transform``."""
        picture = picture.convert("RGB" if self.channels == 3 else "L")
        if self.transform is not None:
            image = self.transform(augment(picture) if augment else picture)
            if not isinstance(image, Tensor):
                kind = type(image).__name__
                raise UserError(f"prepare.transform: returned a {kind}; expected a tensor")
            return image
        height, width = size_before_crop(self.size, self.crop_pct)
        if self.resize == "crop":
            # The picture keeps its shape. Its longer side is rounded down, as in torchvision.
            whole_height = width * picture.height // picture.width
            width = max(width, height * picture.width // picture.height)
            height = max(height, whole_height)
        resized: Any = resize(picture, [height, width], InterpolationMode(self.interpolation))
        cropped: Any = center_crop(resized, list(self.size))
        pixels: Tensor = pil_to_tensor(cropped)
        return augment(pixels) if augment else pixels.contiguous()

    def read(self, paths: Sequence[Path], augment: Augment | None = None) -> list[Tensor]:
        """Return the images of files; raise PictureError, with the name, if one is broken."""
        images = []
        for path in paths:
            try:
                picture = open_picture(path)
            except PictureError as error:
                raise PictureError(f"{printable(path)}: {error}") from error
            images.append(self(picture, augment))
        return images


def size_before_crop(size: Iterable[int], crop_pct: float) -> list[int]:
    """Return the height and width to which a picture is resized before the crop to ``size``."""
    # Rounded down, as in timm; 0.02 is for a rounded crop_pct: 32 / 0.889 is 35.996, for 36.
    return [math.floor(side / crop_pct + 0.02) for side in size]


class Shift:
    """Moves an image by a random distance in whole pixels; free pixels become ``fill``.

    It does what torchvision's ``RandomAffine`` does, in a seventh of the time.

    Args:
        share: the largest distances, as a share of height and width.
        pixels: these distances in pixels, in place of ``share``.
        fill: the value of each channel there, from 0, which is black, to 255.
    """

    def __init__(self, share: float = 0.1, pixels: int | None = None, fill: int = 0) -> None:
        require_number("share", share, 0, 1)
        is_distance = pixels is None or (type(pixels) is int and pixels >= 0)
        require(is_distance, "pixels", pixels, "an integer >= 0, or null")
        require(type(fill) is int and 0 <= fill <= 255, "fill", fill, "an integer from 0 to 255")
        self.share, self.pixels, self.fill = share, pixels, fill

    def __call__(self, image: Any) -> Any:
        border, corner, sides = [], [], get_size(image)
        for side in sides:
            most = round(self.share * side) if self.pixels is None else self.pixels
            border.append(most)
            corner.append(int(torch.randint(2 * most + 1, ())))
        bordered = pad(image, border[::-1], fill=self.fill)
        return crop(bordered, *corner, *sides)
