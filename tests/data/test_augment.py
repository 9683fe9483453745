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
    assert moved.shape == IMAGES.shape
    assert moved.is_contiguous()
    down, right = (round(share * side) for side in (9, 7))
    padded = torch.nn.functional.pad(IMAGES.double(), (right, right, down, down), mode="replicate")
    windows = padded.long().unfold(2, 9, 1).unfold(3, 7, 1)  # (N, 3, offsets, offsets, 9, 7)
    matches = (windows == moved[:, :, None, None]).all(dim=(1, 4, 5)).flatten(1).any(1)
    assert matches.all()


def test_all_distances_are_alike() -> None:
    images = torch.zeros(9000, 1, 9, 9)
    images[:, :, 4, 4] = 1
    moved = Shift(0.1)(images)
    counts = moved.sum((0, 1))[3:6, 3:6]
    assert counts.sum() == 9000
    assert counts.min() > 850


def test_a_flip_mirrors_some() -> None:
    flipped = augmented(IMAGES, Flip(), "0")
    same = (flipped == IMAGES).flatten(1).all(1)
    mirrored = (flipped == IMAGES.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 10 < mirrored.sum() < 40
    assert torch.equal(Flip(0)(IMAGES), IMAGES)
    assert torch.equal(Flip(1)(IMAGES), IMAGES.flip(-1))


def test_draws_depend_on_their_name_alone_and_disturb_no_others() -> None:
    torch.manual_seed(5)
    first, after = augmented(IMAGES, Flip(), "0 7 0"), torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)
    assert torch.equal(augmented(IMAGES, Flip(), "0 7 0"), first)
    assert not torch.equal(augmented(IMAGES, Flip(), "0 8 0"), first)


@pytest.mark.parametrize("value", [-0.1, 1.5, "x", None, True])
def test_refuses_bad_arguments(value: Any) -> None:
    with pytest.raises(ValueError, match=f"share={value}: expected a number from 0 to 1"):
        Shift(value)
    with pytest.raises(ValueError, match=f"p={value}: expected a number from 0 to 1"):
        Flip(value)
    with pytest.raises(ValueError, match="augment=5: expected null or a transform of a batch"):
        MNISTDataModule(augment=5)  # type: ignore[arg-type]


def trainer(training: bool, step: int = 0) -> Any:
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=step))
    return SimpleNamespace(training=training, fit_loop=loop, global_rank=0, world_size=1)


@pytest.mark.parametrize("augment", [Shift(), Flip(), v2.RandomInvert()])
def test_only_training_batches_are_augmented(augment: Any) -> None:
    plain, data = (MNISTDataModule(data_dir=ROOT / "data", augment=a) for a in (None, augment))
    data.setup("fit")
    batch = data.train_set.__getitems__(list(range(20)))
    expected, _ = plain.on_after_batch_transfer(batch, 0)
    assert torch.equal(data.on_after_batch_transfer(batch, 0)[0], expected)
    data.trainer = trainer(training=False)
    assert torch.equal(data.on_after_batch_transfer(batch, 0)[0], expected)
    changed = []
    for step in range(8):
        data.trainer = trainer(training=True, step=step)
        images, labels = data.on_after_batch_transfer(batch, 0)
        assert torch.equal(images, data.on_after_batch_transfer(batch, 0)[0])
        assert torch.equal(labels, batch[1])
        changed.append(not torch.equal(images, expected))
    assert any(changed)
