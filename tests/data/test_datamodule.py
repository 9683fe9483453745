from functools import cached_property

import pytest
import torch

from lora_mnist.data import ImageDataModule, ImageTensors

DIGITS = ["0", "1", "2", "3"]


class Greys(ImageDataModule):
    """Twelve images of 3 x 2 pixels, four a class; each channel is darker than the one before."""

    @cached_property
    def sets(self):
        greys = torch.arange(0, 120, 10, dtype=torch.uint8)[:, None, None, None]
        images = (greys // torch.arange(1, self.channels + 1)[:, None, None]).expand(-1, -1, 3, 2)
        train = ImageTensors(images.to(torch.uint8), torch.arange(12) % 3)
        return train, ImageTensors(train.images[:0], torch.arange(0)), train


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_normalised_by_what_is_measured(channels):
    data = Greys("greys", ["cat", "dog", "owl"], channels)
    data.setup("fit")
    images, _ = data.train_set.take(list(range(12)))
    by_channel = (images.double() / 255).mean((0, 2, 3)).tolist()
    assert data.mean == pytest.approx(by_channel if channels > 1 else by_channel[0], abs=1e-4)
    normalised = data.normalise(images)
    assert normalised.dtype == torch.float32
    for channel in normalised.unbind(1):
        assert channel.mean().item() == pytest.approx(0, abs=1e-2)
        assert channel.std(correction=0).item() == pytest.approx(1, abs=1e-2)


def test_a_channel_that_is_the_same_everywhere_is_no_division_by_zero():
    data = Greys("greys", ["cat", "dog", "owl"], 3)
    data.sets[0].images[:, 2] = 17
    data.setup("fit")
    images, _ = data.train_set.take(list(range(12)))
    assert data.normalise(images)[:, 2].unique().tolist() == pytest.approx([0], abs=1e-4)


def test_batches_are_normalised_where_they_are():
    """The meta device mixes with the CPU as little as a GPU does."""
    data = Greys("greys", ["cat", "dog", "owl"], 3)
    data.setup("fit")
    batch = torch.empty(5, 3, 3, 2, dtype=torch.uint8, device="meta")
    images, _ = data.on_after_batch_transfer((batch, torch.zeros(5, device="meta")), 0)
    assert images.device.type == "meta"
    (images, labels), *_ = data.batches(data.train_set, "meta")
    assert images.device.type == labels.device.type == "meta"


@pytest.mark.parametrize(
    ("target", "classes", "expected"),
    [
        (3, DIGITS, [3]),
        (["2", 0], DIGITS, [2, 0]),
        (10, ["1", "10", "2"], [1]),  # a name goes before a number
        (0, ["1", "10", "2"], [0]),
    ],
)
def test_classes_go_by_number_and_by_name(target, classes, expected):
    data = ImageDataModule("toy", classes, 1)
    numbers = torch.arange(len(classes))
    data.train_set = ImageTensors(numbers, numbers)
    selection = data.select(target)
    assert selection.targets == expected
    assert selection.target_indices.tolist() == sorted(expected)
