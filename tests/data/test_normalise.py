import pytest
import torch
from torchvision.transforms.functional import normalize

from lora_mnist.data.normalise import mean_and_std, normalise


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (150, 3, 5, 4), dtype=torch.uint8, generator=generator)


def test_equals_torchvision_bit_for_bit(images: torch.Tensor) -> None:
    mean, std = [0.49, 0.48, 0.45], [0.2, 0.21, 0.22]
    expected = normalize(images.float().div(255), mean, std)
    assert torch.equal(normalise(images, mean, std), expected)
    expected = normalize(images.float().div(255), [0.5] * 3, [0.25] * 3)
    assert torch.equal(normalise(images, 0.5, 0.25), expected)


def test_measures_each_channel(images: torch.Tensor) -> None:
    images[:, 2] = 51
    mean, std = mean_and_std(images)
    pixels = images.double().div(255).transpose(0, 1).flatten(1)
    assert mean == [round(value, 4) for value in pixels.mean(1).tolist()]
    assert std == [round(value, 4) for value in pixels.std(1, correction=0).tolist()]
    assert (mean[2], std[2]) == (0.2, 0.0)
    normalised = normalise(images[:, :2], mean[:2], std[:2])
    assert normalised.mean().item() == pytest.approx(0, abs=1e-3)
    assert normalised.std().item() == pytest.approx(1, abs=1e-3)
