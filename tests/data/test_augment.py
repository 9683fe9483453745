from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.commands import ROOT
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from lora_mnist.data import MNISTDataModule
from lora_mnist.data.augment import Flip, Shift, augmented

IMAGES = torch.arange(1, 1 + 50 * 3 * 9 * 7).view(50, 3, 9, 7)


@given(share=st.floats(0, 1), seed=st.integers(0, 100))
def test_a_shift_moves_every_image_by_itself(share: float, seed: int) -> None:
    moved = augmented(IMAGES, Shift(share), str(seed))
    down, right = (round(share * side) for side in (9, 7))
    padded = torch.nn.functional.pad(IMAGES.double(), (right, right, down, down), mode="replicate")
    windows = padded.long().unfold(2, 9, 1).unfold(3, 7, 1)  # (N, 3, offsets, offsets, 9, 7)
    matches = (windows == moved[:, :, None, None]).all(dim=(1, 4, 5))
    assert matches.flatten(1).any(1).all()


def test_all_distances_are_alike() -> None:
    images = torch.zeros(9000, 1, 9, 9)
    images[:, :, 4, 4] = 1
    counts = Shift(0.1)(images).sum((0, 1))[3:6, 3:6]
    assert counts.sum() == 9000
    assert counts.min() > 850


def test_a_flip_mirrors_some() -> None:
    flipped = augmented(IMAGES, Flip(), "0")
    same = (flipped == IMAGES).flatten(1).all(1)
    mirrored = (flipped == IMAGES.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 10 < mirrored.sum() < 40


def test_draws_depend_on_their_name_alone_and_disturb_no_others() -> None:
    torch.manual_seed(5)
    first, after = augmented(IMAGES, Flip(), "0 7 0"), torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)
    assert torch.equal(augmented(IMAGES, Flip(), "0 7 0"), first)
    assert not torch.equal(augmented(IMAGES, Flip(), "0 8 0"), first)


@pytest.mark.parametrize("value", [-0.1, 1.5, "x", None])
@pytest.mark.parametrize("transform", [Shift, Flip])
def test_refuses_bad_arguments(transform: Any, value: Any) -> None:
    with pytest.raises(ValueError, match=f"={value}: expected a number from 0 to 1"):
        transform(value)


@pytest.mark.parametrize("augment", [Shift(), v2.RandomInvert()])
def test_only_training_batches_are_augmented(augment: Any) -> None:
    data = MNISTDataModule(data_dir=ROOT / "data", augment=augment)
    batch = data.test_images().take(list(range(20)))
    changed = []
    for step in range(9):
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=step))
        state = {"training": step > 0, "fit_loop": loop, "global_rank": 0, "world_size": 1}
        data.trainer = SimpleNamespace(**state)  # type: ignore[assignment]
        images, labels = data.on_after_batch_transfer(batch, 0)
        assert torch.equal(images, data.on_after_batch_transfer(batch, 0)[0])
        assert torch.equal(labels, batch[1])
        changed.append(not torch.equal(images, data.normalise(batch[0])))
    assert not changed[0]
    assert any(changed)
