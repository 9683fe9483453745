import subprocess

import numpy
import pytest
import torch
from PIL import EpsImagePlugin, Image

from lora_mnist.data import ImageDataset, Images, Shift
from lora_mnist.data.images import measured_pixels, open_picture


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_takes_what_measured_pixels_gives(channels):
    """Where they are: the meta device mixes with the CPU as little as a GPU does."""
    pixels = torch.randint(256, (12, channels, 3, 2), dtype=torch.uint8)
    pixels[:, 1:2] = 17  # the same everywhere, which is no division by zero
    images = Images(pixels, torch.arange(12) % 3)
    dataset = ImageDataset("noise", ["cat", "dog", "owl"], channels)
    dataset.normalise_by(*measured_pixels(images))
    normalised = dataset.normalise(pixels)
    assert normalised.dtype == torch.float32
    for number, channel in enumerate(normalised.unbind(1)):
        assert channel.mean().item() == pytest.approx(0, abs=1e-2)
        assert channel.std(correction=0).item() == pytest.approx(float(number != 1), abs=1e-2)
    ((batch, labels),) = dataset.batches(images, "meta", torch.tensor([7, 0, 11]))
    assert batch.device.type == labels.device.type == "meta"
    assert batch.shape == (3, channels, 3, 2)


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


def test_stacked_joins_pictures_as_far_as_they_are_of_one_size():
    dataset = ImageDataset("greys", ["cat", "dog"], 1, eval_batch_size=2)
    dataset.mean, dataset.std = 0, 1
    sides = [4, 4, 4, 5, 6, 6]
    pictures = [(torch.full((1, side, side), 255), n) for n, side in enumerate(sides)]
    batches = list(dataset.stacked(pictures))
    assert [labels.tolist() for _, labels in batches] == [[0, 1], [2], [3], [4, 5]]
    assert [images.shape[2] for images, _ in batches] == [4, 4, 5, 6]
    assert all((images == 1).all() for images, _ in batches)


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
