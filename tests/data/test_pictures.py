import os
import struct
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.commands import ROOT
from PIL import EpsImagePlugin, Image
from torch import Tensor

from lora_mnist.data import load_images, pictures
from lora_mnist.data.pictures import picture_size, prepare, read_image

DIGITS = load_images("MNIST", ROOT / "data", train=False)[0][:8, 0].float()


def enlarge(digit: Tensor, size: int = 150) -> Tensor:
    large = F.interpolate(digit[None, None], (size, size), mode="bicubic", align_corners=False)
    return large[0, 0].clamp(0, 255)


def photograph(digit: Tensor) -> Tensor:
    """Pen on grey paper, lit from one side, off the centre, with the noise of a sensor."""
    ink = F.pad(enlarge(digit), (20, 90, 70, 10)) / 255
    height, width = ink.shape
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    noise = 3 * torch.randn(height, width, generator=torch.Generator().manual_seed(0))
    return ((120 + 90 * x + 40 * y - 50 * x * y) * (1 - 0.65 * ink) + noise).clamp(0, 255)


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda digit: digit,
    "enlarged": enlarge,
    "dark on light": lambda digit: 255 - enlarge(digit),
    "faint": lambda digit: 200 + 0.1 * enlarge(digit),
    "cut close": lambda digit: 255 - enlarge(digit)[12:138, 12:138],
    "off the centre": lambda digit: F.pad(enlarge(digit), (300, 10, 5, 120)),
    "black and white": lambda digit: 255.0 * (enlarge(digit) > 127),
    "photographed": photograph,
    "with specks": lambda digit: F.pad(enlarge(digit), (0, 40, 0, 40)).index_put(
        (torch.tensor([3, 180, 181]), torch.tensor([5, 180, 180])), torch.tensor(255.0)
    ),
}


def likeness(ours: Tensor, original: Tensor) -> float:
    """Correlation, give or take a pixel: a centre of mass between two pixels may go to either."""
    moved = [ours.float().roll((y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    rows = torch.stack([original, *moved]).flatten(1)
    return torch.corrcoef(rows)[0, 1:].max().item()


@pytest.mark.parametrize("way", WAYS)
def test_brings_back_mnists_own_image(way: str) -> None:
    prepared = torch.stack([prepare(WAYS[way](digit)) for digit in DIGITS])[:, 0]
    assert prepared.dtype == torch.uint8
    assert prepared.shape == DIGITS.shape
    for ours, original in zip(prepared, DIGITS, strict=True):
        assert likeness(ours, original) > 0.9


@pytest.mark.parametrize("shape", [(90, 30), (30, 90), (5, 200), (700, 500), (9, 7)])
def test_the_box_and_the_centre_of_mass(shape: tuple[int, int]) -> None:
    height, width = shape
    page = torch.zeros(height + 60, width + 100)
    page[10 : 10 + height, 80 : 80 + width] = torch.linspace(180, 255, width)
    field = prepare(page)[0].double()
    rows, columns = field.amax(1).nonzero(), field.amax(0).nonzero()
    sides = [int(index.max() - index.min()) + 1 for index in (rows, columns)]
    assert max(sides) == 20
    assert min(sides) == pytest.approx(20 * min(shape) / max(shape), abs=1)
    assert field.max() == 255
    index = torch.arange(28.0, dtype=torch.float64)
    for axis in (0, 1):
        centre = (field.sum(1 - axis) * index).sum() / field.sum()
        assert centre.item() == pytest.approx(14, abs=0.51)


@pytest.mark.parametrize("page", [torch.zeros(40, 30), torch.full((40, 30), 200.0)])
def test_an_empty_page_is_refused(page: Tensor) -> None:
    with pytest.raises(ValueError, match="nothing on it"):
        prepare(page)


def save(path: Path, digit: Tensor, mode: str) -> Path:
    ink = Image.fromarray(enlarge(digit).byte().numpy())
    if mode == "16 bits":
        Image.fromarray((enlarge(digit) * 200).to(torch.uint16).numpy()).save(path)
    elif mode == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
        ink.rotate(90, expand=True).save(path, exif=exif)
    elif mode == "colour":
        Image.merge("RGB", [ink, ink.point(lambda level: level // 2), ink]).save(path)
    elif mode == "palette":
        ink.convert("P").save(path)
    else:  # strokes of one colour on nothing
        drawn = Image.new("RGBA", ink.size, mode)
        drawn.putalpha(ink)
        drawn.save(path)
    return path


@pytest.mark.parametrize("mode", ["16 bits", "turned", "colour", "palette", "black", "white"])
def test_reads_every_kind_of_picture(tmp_path: Path, mode: str) -> None:
    digit = DIGITS[0]
    found = prepare(read_image(save(tmp_path / "digit.png", digit, mode)))
    assert likeness(found[0], digit) > 0.9


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n cut off"])
def test_an_unreadable_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match="no readable picture"):
        read_image(tmp_path / "x.png")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    tracemalloc.start()
    for size in [(9_000, 9_000), (20_000, 20_000)]:  # Pillow itself refuses the second
        Image.new("1", (8, 8)).save(tmp_path / "x.png")
        content = bytearray((tmp_path / "x.png").read_bytes())
        content[16:24] = struct.pack(">2I", *size)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(ValueError, match="81,000,000 pixels; expected at most|too many pixels"):
            read_image(tmp_path / "x.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def test_only_a_file_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path):
        for read in (read_image, picture_size):
            with pytest.raises(ValueError, match=r"no readable picture \(not a file\)"):
                read(path)


def test_no_picture_is_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would give PostScript to Ghostscript."""
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("it ran"))
    monkeypatch.setattr(EpsImagePlugin, "has_ghostscript", lambda: True)
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(ValueError, match=r"no readable picture \(UnidentifiedImageError\)"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["L", "RGBA", "I", "I;16"])
def test_a_large_picture_is_reduced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(pictures, "_MANY_PIXELS", 5_000)
    ink = Image.fromarray(enlarge(DIGITS[0]).byte().numpy())
    picture = Image.merge("RGBA", [ink] * 4) if mode == "RGBA" else ink.convert(mode)
    picture.save(tmp_path / "x.tiff")
    grey = read_image(tmp_path / "x.tiff")
    assert grey.shape == (50, 50)
    assert likeness(prepare(grey)[0], DIGITS[0]) > 0.9


@pytest.mark.parametrize("level", [float("nan"), float("inf"), -float("inf")])
def test_levels_that_are_no_numbers_are_refused(tmp_path: Path, level: float) -> None:
    levels = enlarge(DIGITS[0])
    levels[30, 30] = level
    Image.fromarray(levels.numpy()).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match="not every pixel is a finite number"):
        prepare(read_image(tmp_path / "x.tiff"))


@pytest.mark.parametrize("scale", [1e-2, 1e9, 1e30, 1e35])
def test_levels_on_any_scale(scale: float) -> None:
    assert likeness(prepare(enlarge(DIGITS[0]) * scale)[0], DIGITS[0]) > 0.9


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (3, 2)])
def test_tiny_pages(shape: tuple[int, int]) -> None:
    page = torch.zeros(shape)
    page[-1, -1] = 255
    assert prepare(page).shape == (1, 28, 28)


@pytest.mark.parametrize("shape", [(1, 1), (0, 5), (5, 0)])
def test_pages_without_room_for_ink(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="nothing on it"):
        prepare(torch.full(shape, 255.0))
