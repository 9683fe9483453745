from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from lora_mnist.data import ImageTensors
from lora_mnist.data.images import Augmented
from lora_mnist.data.sampler import TrainingLoader

IMAGES = torch.arange(50 * 3 * 9 * 7).view(50, 3, 9, 7).to(torch.uint8)
WHOLE = ImageTensors(IMAGES, torch.arange(50))
FLIP, SHIFT = v2.RandomHorizontalFlip(), v2.RandomAffine(0, (0.2, 0.2))
EVERYTHING, NOTHING = torch.arange(50), torch.arange(0)


def test_each_image_is_augmented_by_itself() -> None:
    images, labels = Augmented(WHOLE, FLIP).__getitems__(("0", list(range(50))))
    same = (images == IMAGES).flatten(1).all(1)
    mirrored = (images == IMAGES.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 10 < mirrored.sum() < 40
    assert labels.tolist() == list(range(50))


@pytest.mark.parametrize("augment", [FLIP, SHIFT])
def test_random_numbers_depend_on_the_name_alone_and_disturb_no_others(augment: Any) -> None:
    images, indices = Augmented(WHOLE, augment), list(range(50))
    torch.manual_seed(5)
    first, after = images.__getitems__(("0 7 0", indices))[0], torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)
    assert torch.equal(images.__getitems__(("0 7 0", indices))[0], first)
    assert not torch.equal(images.__getitems__(("0 8 0", indices))[0], first)


def test_no_device_is_reseeded(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (torch, torch.cuda, torch.mps):
        monkeypatch.setattr(module, "manual_seed", lambda _: pytest.fail("a device is reseeded"))
    Augmented(WHOLE, FLIP).__getitems__(("0", [1, 2]))


def test_a_resumed_run_goes_on_with_the_same_changes() -> None:
    def loader() -> TrainingLoader:
        return TrainingLoader(WHOLE, EVERYTHING, NOTHING, 10, augment=SHIFT)

    whole = loader()
    epochs = [[images for images, _ in whole] for _ in range(2)]
    assert not torch.equal(torch.stack(epochs[0]), torch.stack(epochs[1]))
    resumed = loader()
    resumed.load_state_dict({"epoch": 1, "batch": 2})
    assert all(map(torch.equal, [images for images, _ in resumed], epochs[1][2:]))
