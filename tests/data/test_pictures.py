"""Pictures from files, and what becomes of them."""

import struct
import subprocess

import numpy
import pytest
import torch
import torch.nn.functional as F
from PIL import EpsImagePlugin, Image
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from lora_mnist.data import Shift
from lora_mnist.data.pictures import open_picture
from lora_mnist.errors import PictureError


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


def test_of_twelve_bits_the_upper_eight_are_kept(tmp_path):
    """As the file says; Pillow writes none, so the test sets twelve bits on one of sixteen."""
    Image.frombytes("I;16", (2, 1), b"\x12\x3f\xff\x00").save(tmp_path / "x.tif")
    entry = struct.pack("<HHIHH", 258, 3, 1, 16, 0)
    content = (tmp_path / "x.tif").read_bytes()
    assert content.count(entry) == 1
    (tmp_path / "x.tif").write_bytes(content.replace(entry, entry.replace(b"\x10", b"\x0c")))
    assert numpy.asarray(open_picture(tmp_path / "x.tif")).tolist() == [[0x12, 0xFF]]


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_pixels_of_an_unknown_range_are_refused(tmp_path, dtype):
    Image.fromarray(numpy.arange(9, dtype=dtype).reshape(3, 3) * 28).save(tmp_path / "x.tif")
    for upright in (False, True):  # in a folder, and for MNIST
        with pytest.raises(PictureError, match="no readable picture .* no known range"):
            open_picture(tmp_path / "x.tif", upright=upright)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_picture_that_is_all_in_its_alpha_is_refused_where_alpha_is_dropped(tmp_path, mode):
    drawn = Image.new("RGBA", (8, 8))
    drawn.paste((0, 0, 0, 255), (2, 2, 5, 5))
    drawn.convert(mode).save(tmp_path / "x.png")
    with pytest.raises(PictureError, match="blank without its transparency"):
        open_picture(tmp_path / "x.png")
    assert open_picture(tmp_path / "x.png", keeps_alpha=True).has_transparency_data
    for opaque in (Image.new("RGBA", (8, 8), "red"), Image.linear_gradient("L").convert("RGBA")):
        assert open_picture(opaque) is opaque
    drawn.paste((9, 9, 9, 255), (5, 5, 6, 6))  # and another color
    assert open_picture(drawn) is drawn


def test_an_image_is_shifted_by_whole_pixels_and_the_rest_is_black():
    """By each distance up to the share of its sides, as a picture too."""
    image = torch.zeros(1, 20, 10, dtype=torch.uint8)
    image[0, 10, 5] = 9
    seen = set()
    for number in range(300):
        moved = Shift(0.1)(image if number % 2 else Image.fromarray(image[0].numpy()))
        pixels = torch.tensor(numpy.asarray(moved)).view(20, 10)
        assert (pixels.sum(), pixels.dtype) == (9, torch.uint8)
        seen.add(tuple(pixels.nonzero()[0].tolist()))
    assert seen == {(row, column) for row in range(8, 13) for column in range(4, 7)}
    assert torch.equal(Shift(0)(image), image)


@pytest.mark.parametrize("fill", [0, 255])
def test_a_shift_by_pixels_is_a_random_crop_with_a_border(fill):
    """Of a tensor, and of a picture in colors."""
    image = torch.arange(1, 193, dtype=torch.uint8).view(3, 8, 8)
    crops, seen = F.pad(image, (1, 1, 1, 1), value=fill), [set(), set()]
    picture, shift = to_pil_image(image), Shift(pixels=1, fill=fill)
    for _ in range(200):
        for number, moved in enumerate((shift(image), pil_to_tensor(shift(picture)))):
            seen[number].add(tuple(moved.flatten().tolist()))
    corners = [(y, x) for y in range(3) for x in range(3)]
    expected = {tuple(crops[:, y : y + 8, x : x + 8].flatten().tolist()) for y, x in corners}
    assert seen == [expected, expected]


@pytest.mark.parametrize("fill", [256, -1, 0.5, [0, 0, 0]])
def test_a_fill_is_one_value_of_a_pixel(fill):
    with pytest.raises(ValueError, match="^fill=.*: expected an integer from 0 to 255"):
        Shift(fill=fill)


@pytest.mark.parametrize("pixels", [-3, 0.5, True, "a"])
def test_shift_refuses_what_is_no_distance(pixels):
    with pytest.raises(ValueError, match=r"^pixels=.*: expected an integer >= 0, or null$"):
        Shift(pixels=pixels)
