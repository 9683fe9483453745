import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from helpers.commands import ROOT
from helpers.trainers import trainer_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset, WeightedRandomSampler

from lora_mnist.data import DrawWeights, ImageTensors, MNISTDataModule
from lora_mnist.data.sampler import Order, Place, WithReplay, weigh


def fitted(**changes: Any) -> MNISTDataModule:
    data = MNISTDataModule(data_dir=ROOT / "data", **changes)
    data.prepare_data()
    data.setup("fit")
    return data


def labels_of_epoch(data: MNISTDataModule) -> list[int]:
    return torch.cat([labels for _, labels in data.train_dataloader()]).tolist()


# (target, replay, seed, weighted, rank, processes): SHA-256 of the first thirty batches. Recorded
# once: whoever trains with a seed may rely on its batches.
Way = tuple[Any, int, int | None, bool, int, int]
RECORDED: dict[Way, str] = {
    (None, 0, 0, False, 0, 1): "1180ff0c08e71c17",
    (None, 0, 0, False, 1, 2): "c218e44fe2310c98",
    (None, 0, 0, True, 0, 1): "8396d1f64196cd07",
    (None, 0, 0, True, 1, 2): "03d956a371a41dbb",
    (None, 0, None, False, 0, 1): "1af03cfeab3d9690",
    (None, 0, None, False, 1, 2): "8aa28d7dc2c8776a",
    (None, 0, None, True, 0, 1): "8656ab33c5bb221c",
    (None, 0, None, True, 1, 2): "992b098ddb302d31",
    (9, 0, 0, False, 0, 1): "abec7450034ef3c9",
    (9, 0, 7, True, 1, 2): "2cef220f987f05af",
    (9, 90, 0, False, 0, 1): "b5f11fce6e2c6fb8",
    (9, 90, 7, False, 0, 1): "2c54708d321c8f89",
    ((3, 5), 90, 0, False, 0, 1): "20c645dd3cb54505",
    ((3, 5), 90, 0, False, 1, 2): "d6bfb3157c9f6064",
    ((3, 5), 90, 0, True, 0, 1): "b392c59c30401768",
    ((3, 5), 90, 0, True, 1, 2): "1abdcbc9efba4c0d",
    ((3, 5), 90, None, False, 0, 1): "6c0e367b6d775b1f",
    ((3, 5), 90, None, False, 1, 2): "5186fef418fd47a6",
    ((3, 5), 90, None, True, 0, 1): "8ee6eaa780088fef",
    ((3, 5), 90, None, True, 1, 2): "3b9b47c35d20a7e6",
}


def digest(*tensors: Tensor) -> str:
    content = hashlib.sha256()
    for tensor in tensors:
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()[:16]


def by_brightness(images: ImageTensors) -> Tensor:
    return 1 + (images.images.flatten(1).sum(1) % 97).double()


@pytest.mark.parametrize("way", RECORDED, ids=str)
def test_images_come_in_the_recorded_order(
    way: tuple[Any, int, int | None, bool, int, int],
) -> None:
    target, replay, seed, is_weighted, rank, processes = way
    drawn = torch.empty(5000, dtype=torch.float64)
    drawn.exponential_(generator=torch.Generator().manual_seed(0))
    if is_weighted and digest(drawn) != "4c13ff206f14cb94":
        pytest.skip("weights make use of exponential numbers, and this torch draws others")
    data = fitted(target=target, replay=replay, seed=seed)
    if is_weighted:
        weights_of_replay = by_brightness(data.replay_set) if replay else None
        data.draw_weights = DrawWeights(by_brightness(data.train_set), weights_of_replay)
    if processes > 1:
        data.trainer = trainer_of(rank, processes)
    torch.manual_seed(3)
    batches = list(islice(data.train_dataloader(), 30))
    assert digest(*[tensor for batch in batches for tensor in batch]) == RECORDED[way]


def test_order_depends_on_the_seed_alone() -> None:
    first = labels_of_epoch(fitted(target=[3, 5]))
    torch.rand(7)
    assert labels_of_epoch(fitted(target=[3, 5])) == first
    assert labels_of_epoch(fitted(target=[3, 5], seed=1)) != first
    assert sorted(first) == sorted(labels_of_epoch(fitted(target=[3, 5], seed=1)))


def test_without_a_seed_the_order_is_that_of_a_plain_dataloader() -> None:
    data = fitted(target=9, seed=None)
    torch.manual_seed(3)
    images_and_labels = TensorDataset(data.train_set.images, data.train_set.labels)
    plain = DataLoader(images_and_labels, batch_size=10, shuffle=True)
    expected = [images for images, _ in plain]
    torch.manual_seed(3)
    ours = [images for images, _ in data.train_dataloader()]
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_replay_goes_evenly_over_the_other_classes() -> None:
    data = fitted(target=9, replay=90)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (100, 1, 28, 28)
    assert labels[:10].tolist() == [9] * 10
    assert torch.bincount(labels[10:]).tolist() == [10] * 9
    again = next(iter(fitted(target=9, replay=90).train_dataloader()))
    assert torch.equal(images, again[0])
    other = next(iter(fitted(target=9, replay=90, seed=1).train_dataloader()))
    assert not torch.equal(images, other[0])


def test_replay_leaves_the_targets_order_alone() -> None:
    plain, replayed = fitted(target=9), fitted(target=9, replay=9)
    for (images, _), (both, _) in zip(
        plain.train_dataloader(), replayed.train_dataloader(), strict=True
    ):
        assert torch.equal(images, both[: len(images)])


@given(counts=st.lists(st.integers(1, 7), min_size=1, max_size=4), count=st.integers(1, 9))
def test_replay_exhausts_a_class_before_it_repeats(counts: list[int], count: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    others = ImageTensors(torch.arange(len(labels)), labels)
    target = ImageTensors(torch.tensor([-1]), torch.tensor([-1]))
    shares = [WithReplay(target, others, 2 * count, 0, rank=r, processes=2) for r in (0, 1)]
    whole = WithReplay(target, others, 2 * count, 0)
    drawn: list[int] = []
    for _ in range(6):
        images = whole.__getitems__([0])[0][1:]
        halves = [share.__getitems__([0])[0][1:] for share in shares]
        assert torch.equal(torch.stack(halves, dim=1).flatten(), images)
        drawn += images.tolist()
    assert labels[drawn].tolist() == [i % len(counts) for i in range(len(drawn))]
    for c, size in enumerate(counts):
        of_class = [i for i in drawn if labels[i] == c]
        passes = [of_class[k : k + size] for k in range(0, len(of_class), size)]
        assert all(len(set(one_pass)) == len(one_pass) for one_pass in passes)


class KnowsTheDark(nn.Module):
    """The darker the image, the surer that it is a three."""

    def forward(self, images: Tensor) -> Tensor:
        dark, zero = -20 * images.mean(dim=(1, 2, 3)), images.new_zeros(len(images))
        return torch.stack([zero, zero, zero, dark, *[zero] * 6], dim=1)


def error_probabilities(net: nn.Module, data: MNISTDataModule, images: ImageTensors) -> Tensor:
    pixels, labels = data.on_after_batch_transfer((images.images, images.labels), 0)
    return 1 - net(pixels).double().softmax(dim=1)[torch.arange(len(labels)), labels]


@pytest.mark.parametrize("hardness", [0.3, 0.8])
def test_weights_follow_the_probability_of_an_error(hardness: float) -> None:
    data, net = fitted(target=[0, 9], replay=16, hardness=hardness), KnowsTheDark()
    weights = data.rate(net)
    errors = error_probabilities(net, data, data.train_set)
    expected = (1 - hardness) / len(errors) + hardness * errors / errors.sum()
    torch.testing.assert_close(weights.target, expected)
    errors = error_probabilities(net, data, data.replay_set)
    assert weights.replay is not None
    for c in range(1, 9):  # each class is drawn from by itself
        of_class = data.replay_set.labels == c
        share = errors[of_class] / errors[of_class].sum()
        expected = (1 - hardness) / of_class.sum() + hardness * share
        torch.testing.assert_close(weights.replay[of_class], expected)


def test_hard_images_come_first_and_every_image_once() -> None:
    data, net = fitted(target=3, replay=90, hardness=0.9), KnowsTheDark()
    data.draw_weights = data.rate(net)
    data.setup("fit")  # as the Trainer does
    errors, labels = data.draw_weights.target, data.train_set.labels
    drawn = list(data.train_dataloader().sampler)
    assert sorted(drawn) == list(range(len(labels)))
    assert errors[drawn[:500]].mean() > 1.2 * errors[drawn[-500:]].mean()
    _, labels = next(iter(data.train_dataloader()))
    assert labels[10:].bincount().tolist() == [10, 10, 10, 0, *[10] * 6]


def test_rating_alone_changes_nothing() -> None:
    plain, hard = (fitted(target=9, replay=9, hardness=h) for h in (0, 0.8))
    hard.rate(KnowsTheDark())
    assert hard.draw_weights is None
    loaders = [data.train_dataloader() for data in (plain, hard)]
    for (images, _), (same, _) in islice(zip(*loaders, strict=True), 5):
        assert torch.equal(images, same)


def test_a_rating_that_fails_leaves_nothing_behind() -> None:
    data = fitted(target=9, replay=9, hardness=0.8)

    class FailsOnReplay(KnowsTheDark):
        rated = 0

        def forward(self, images: Tensor) -> Tensor:
            self.rated += len(images)
            if self.rated > len(data.train_set):
                raise MemoryError
            return super().forward(images)

    with pytest.raises(MemoryError):
        data.rate(FailsOnReplay())
    assert data.draw_weights is None


def test_draw_weights_are_immutable() -> None:
    weights = DrawWeights(torch.ones(3), None)
    with pytest.raises(AttributeError):
        weights.target = torch.zeros(3)  # type: ignore[misc]


def test_a_network_that_never_errs_draws_all_alike() -> None:
    weights = weigh(torch.zeros(50, dtype=torch.float64), 0.8)
    assert torch.equal(weights, weights[:1].expand(len(weights)))


def test_weights_of_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="draw_weights: expected 4 weights, one an image, not 3"):
        Order(4, 0, torch.ones(3))
    images = ImageTensors(torch.zeros(4), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="draw_weights: expected 4 weights of replay, not 3"):
        WithReplay(images, images, 1, 0, weights=torch.ones(3))


def indices_of_epochs(order: Order, epochs: int, size: int) -> list[list[list[int]]]:
    """The batches of each epoch as a loader and Lightning take them: no index too many."""
    found = []
    for _ in range(epochs):
        indices = iter(order)
        batches = -(-len(order) // size)
        found.append([list(islice(indices, size)) for _ in range(batches)])
    return found


@given(
    count=st.integers(1, 40),
    size=st.integers(1, 15),
    weighted=st.booleans(),
    processes=st.integers(1, 3),
    cut=st.tuples(st.integers(0, 3), st.floats(0, 1, exclude_max=True)),
)
def test_an_order_goes_on_from_any_place(
    count: int, size: int, weighted: bool, processes: int, cut: tuple[int, float]
) -> None:
    weights = torch.arange(1, count + 1, dtype=torch.float64) if weighted else None

    def make(**place: int) -> Order:
        return Order(count, 5, weights, rank=processes - 1, processes=processes, **place)

    whole = indices_of_epochs(make(), 5, size)
    epochs, batch = cut[0], int(cut[1] * len(whole[0]))
    order = make()
    indices_of_epochs(order, epochs, size)
    indices = iter(order)
    for _ in range(batch):
        list(islice(indices, size))
    place = order.place(batch, batches=0)
    resumed = make(shuffles=place.shuffles, skip=place.batch * size)
    indices = iter(resumed)
    for drawn in whole[epochs][batch:]:
        assert list(islice(indices, size)) == drawn
    assert indices_of_epochs(resumed, 4 - epochs, size) == whole[epochs + 1 :]


@pytest.mark.parametrize("size", [10, 7])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_every_epoch_has_the_order_of_torchs_own_samplers(size: int, is_weighted: bool) -> None:
    """Whoever trains for several epochs may rely on its batches as well."""
    weights = torch.arange(1, 31, dtype=torch.float64) if is_weighted else None
    generator = torch.Generator().manual_seed(3)
    sampler: Any = RandomSampler(range(30), generator=generator)
    if weights is not None:
        sampler = WeightedRandomSampler(weights.tolist(), 30, False, generator)
    expected = indices_of_epochs(sampler, 4, size)
    assert indices_of_epochs(Order(30, 3, weights), 4, size) == expected
    assert expected[0] != expected[1]


@given(count=st.integers(1, 9), batches=st.integers(0, 20), weighted=st.booleans())
def test_replay_goes_on_from_any_place(count: int, batches: int, weighted: bool) -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
    others, target = ImageTensors(torch.arange(10), labels), ImageTensors(labels[:1], labels[:1])
    weights = torch.arange(1, 11, dtype=torch.float64) if weighted else None
    whole = WithReplay(target, others, count, 4, weights)
    drawn = [whole.__getitems__([0])[0] for _ in range(batches + 5)]
    later = WithReplay(target, others, count, 4, weights, skip=batches)
    for images in drawn[batches:]:
        assert torch.equal(later.__getitems__([0])[0], images)


@pytest.mark.parametrize("seed", [0, None])
def test_a_loader_goes_on_from_any_place(seed: int | None) -> None:
    def loaded(start: Place | None = None) -> tuple[MNISTDataModule, Iterator[Any]]:
        data = fitted(target=9, replay=9, seed=seed)
        data.start = start
        return data, iter(data.train_dataloader())

    torch.manual_seed(3)
    data, batches = loaded()
    for _ in range(20):
        next(batches)
    assert data.order is not None
    place = data.order.place(20, 20)
    data, resumed = loaded(place)
    for (images, labels), (same, too) in islice(zip(batches, resumed, strict=True), 10):
        assert torch.equal(images, same)
        assert torch.equal(labels, too)
    assert len(data.train_dataloader()) == -(-len(data.train_set) // 10)
