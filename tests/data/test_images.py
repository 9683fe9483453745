import pytest
import torch

from lora_mnist.data import ImageDataset, Images
from lora_mnist.data.images import measured_pixels


def greys(channels):
    """Twelve images of 3 x 2 pixels; each channel is darker than the one before."""
    levels = torch.arange(0, 120, 10)[:, None, None, None]
    pixels = levels // torch.arange(1, channels + 1)[:, None, None]
    images = pixels.expand(-1, -1, 3, 2).to(torch.uint8).contiguous()
    return Images(images, torch.arange(12) % 3)


def measured(images):
    """A data set with the mean and the deviation of these images."""
    dataset = ImageDataset("greys", ["cat", "dog", "owl"], images.pixels.shape[1])
    dataset.normalise_by(*measured_pixels(images))
    return dataset


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_normalised_by_what_is_measured(channels):
    """Where they are: the meta device mixes with the CPU as little as a GPU does."""
    images = greys(channels)
    normalised = measured(images).normalise(images.pixels)
    assert normalised.dtype == torch.float32
    for channel in normalised.unbind(1):
        assert channel.mean().item() == pytest.approx(0, abs=1e-2)
        assert channel.std(correction=0).item() == pytest.approx(1, abs=1e-2)
    ((batch, labels),) = measured(images).batches(images, "meta", torch.tensor([7, 0, 11]))
    assert batch.device.type == labels.device.type == "meta"
    assert batch.shape == (3, channels, 3, 2)


def test_a_channel_that_is_the_same_everywhere_is_no_division_by_zero():
    images = greys(3)
    images.pixels[:, 2] = 17
    normalised = measured(images).normalise(images.pixels)
    assert normalised[:, 2].unique().tolist() == pytest.approx([0], abs=1e-4)
