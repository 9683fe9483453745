import pytest
import torch

from lora_mnist.data import ImageDataset, Images
from lora_mnist.data.dataset import measure_pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_takes_what_measured_pixels_gives(channels):
    """Where they are: the meta device mixes with the CPU as little as a GPU does."""
    pixels = torch.randint(256, (12, channels, 3, 2), dtype=torch.uint8)
    pixels[:, 1:2] = 17  # the same everywhere, which is no division by zero
    images = Images(pixels, torch.arange(12) % 3)
    mean, std = measure_pixels(images)
    dataset = ImageDataset("noise", ["cat", "dog", "owl"], channels, mean=mean, std=std)
    normalized = dataset.normalize(pixels)
    assert normalized.dtype == torch.float32
    for number, channel in enumerate(normalized.unbind(1)):
        assert channel.mean().item() == pytest.approx(0, abs=1e-2)
        assert channel.std(correction=0).item() == pytest.approx(float(number != 1), abs=1e-2)
    ((batch, labels),) = dataset.batches(images, "meta", torch.tensor([7, 0, 11]))
    assert batch.device.type == labels.device.type == "meta"
    assert batch.shape == (3, channels, 3, 2)


def test_stacked_joins_pictures_as_far_as_they_are_of_one_size():
    dataset = ImageDataset("grays", ["cat", "dog"], 1, mean=0, std=1, eval_batch_size=2)
    sides = [4, 4, 4, 5, 6, 6]
    pictures = [(torch.full((1, side, side), 255), n) for n, side in enumerate(sides)]
    batches = list(dataset.stack_pictures(pictures))
    assert [labels.tolist() for _, labels in batches] == [[0, 1], [2], [3], [4, 5]]
    assert [images.shape[2] for images, _ in batches] == [4, 4, 5, 6]
    assert all((images == 1).all() for images, _ in batches)
