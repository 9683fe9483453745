import subprocess

import numpy
import pytest
import torch
import torch.nn.functional as F
from helpers.commands import ROOT
from PIL import EpsImagePlugin, Image

from lora_mnist.data import load_images
from lora_mnist.data.images import open_picture
from lora_mnist.data.mnist import prepare

DIGITS = load_images("MNIST", ROOT / "data", train=False)[0][:8, 0].float()


def enlarge(digit, size=150):
    large = F.interpolate(digit[None, None], (size, size), mode="bicubic", align_corners=False)
    return large[0, 0].clamp(0, 255)


def picture_of(levels):
    return Image.fromarray(levels.round().byte().numpy())


def likeness(ours, original):
    """Correlation, give or take a pixel: a centre of mass between two pixels may go to either."""
    moved = [ours.float().roll((y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    rows = torch.stack([original, *moved]).flatten(1)
    return torch.corrcoef(rows)[0, 1:].max().item()


WAYS = {
    "faint": lambda digit: picture_of(200 + 0.1 * enlarge(digit)),
    "cut close": lambda digit: picture_of(255 - enlarge(digit)[12:138, 12:138]),
    "off the centre": lambda digit: picture_of(F.pad(enlarge(digit), (300, 10, 5, 120))),
    "on nothing": lambda digit: Image.merge(
        "LA", [Image.new("L", (150, 150), 0), picture_of(enlarge(digit))]
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_brings_back_mnists_own_image(tmp_path, way):
    for digit in DIGITS:
        WAYS[way](digit).save(tmp_path / "digit.png")
        ours = prepare(open_picture(tmp_path / "digit.png"))
        assert (ours.shape, ours.dtype) == ((1, 28, 28), torch.uint8)
        assert likeness(ours[0], digit) > 0.9


@pytest.mark.parametrize("shape", [(90, 30), (5, 200)])
def test_the_box_and_the_centre_of_mass(shape):
    height, width = shape
    page = torch.zeros(height + 60, width + 100)
    page[10 : 10 + height, 80 : 80 + width] = torch.linspace(180, 255, width)
    field = prepare(picture_of(page))[0].double()
    sides = [int(field.amax(axis).count_nonzero()) for axis in (0, 1)]
    assert max(sides) == 20
    assert min(sides) == pytest.approx(20 * min(shape) / max(shape), abs=1)
    index = torch.arange(28.0, dtype=torch.float64)
    for axis in (0, 1):
        centre = (field.sum(1 - axis) * index).sum() / field.sum()
        assert centre.item() == pytest.approx(14, abs=0.51)
    with pytest.raises(ValueError, match="^nothing on it$"):
        prepare(picture_of(0 * page))


def test_a_file_that_is_no_picture_is_refused_and_no_program_runs(tmp_path, monkeypatch):
    """Pillow would give PostScript to Ghostscript."""
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("it ran"))
    monkeypatch.setattr(EpsImagePlugin, "has_ghostscript", lambda: True)
    path = tmp_path / "x.png"
    for content in ("text", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"^no readable picture \(\w+\)$"):
            open_picture(path)


def test_sixteen_bits_are_not_clipped(tmp_path):
    levels = torch.linspace(0, 65535, 81).view(9, 9).int().numpy().astype(numpy.uint16)
    Image.fromarray(levels).save(tmp_path / "x.png")
    assert numpy.array_equal(numpy.asarray(open_picture(tmp_path / "x.png")), levels >> 8)
