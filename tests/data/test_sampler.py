import hashlib
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.commands import ROOT
from helpers.trainers import trainer_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lora_mnist.data import DrawWeights, ImageTensors, MNISTDataModule
from lora_mnist.data.sampler import TrainingLoader, TrainingSampler, split_by_class, weigh

LABELS = torch.arange(203) % 5


def mnist(**changes: Any) -> MNISTDataModule:
    data = MNISTDataModule(data_dir=ROOT / "data", **changes)
    data.prepare_data()
    data.setup("fit")
    return data


# (target, replay, seed, weighted, rank, processes): SHA-256 of the first thirty batches. Recorded
# once: whoever trains with a seed may rely on its batches.
RECORDED: dict[tuple[Any, int, int | None, bool, int, int], str] = {
    (None, 0, 0, False, 0, 1): "1180ff0c08e71c17",
    (None, 0, None, False, 0, 1): "1af03cfeab3d9690",
    (None, 0, None, True, 1, 2): "992b098ddb302d31",
    (9, 0, 0, False, 0, 1): "abec7450034ef3c9",
    (9, 90, 0, False, 0, 1): "b5f11fce6e2c6fb8",
    ((3, 5), 90, 0, True, 0, 1): "b392c59c30401768",
    ((3, 5), 90, 0, False, 1, 2): "d6bfb3157c9f6064",
    ((3, 5), 90, None, True, 0, 1): "8ee6eaa780088fef",
}


@pytest.mark.parametrize("way", RECORDED, ids=str)
def test_images_come_in_the_recorded_order(
    way: tuple[Any, int, int | None, bool, int, int],
) -> None:
    target, replay, seed, weighted, rank, processes = way
    data = mnist(target=target, replay=replay, seed=seed)
    if weighted:
        images = data.train_set.__getitems__(list(range(len(data.train_set))))[0]
        brightness = 1 + (images.flatten(1).sum(1) % 97).double()
        chosen, others = split_by_class(data.train_set.labels, data.targets)
        data.draw_weights = DrawWeights(brightness[chosen], brightness[others] if replay else None)
    if processes > 1:
        data.trainer = trainer_of(rank, processes)
    torch.manual_seed(3)
    digest = hashlib.sha256()
    for images, labels in islice(data.train_dataloader(), 30):
        digest.update(images.numpy().tobytes())
        digest.update(labels.numpy().tobytes())
    assert digest.hexdigest()[:16] == RECORDED[way]


def test_without_a_seed_every_epoch_has_the_order_of_a_plain_dataloader() -> None:
    indices = torch.arange(30)
    sampler = TrainingSampler(torch.zeros(30), indices, indices[:0], 10, seed=3)
    loader = TrainingLoader(ImageTensors(indices, indices), sampler, None, 0)
    generator = torch.Generator().manual_seed(3)
    plain: Any = torch.utils.data.RandomSampler(range(30), generator=generator)
    for _ in range(3):
        assert torch.cat([images for images, _ in loader]).tolist() == list(plain)


def test_without_a_seed_the_order_is_drawn_from_torchs_generator() -> None:
    data = mnist(target=9, seed=None)
    chosen, _ = split_by_class(data.train_set.labels, [9])
    nines = TensorDataset(chosen, chosen)
    torch.manual_seed(3)
    expected = torch.cat([indices for indices, _ in DataLoader(nines, 10, shuffle=True)])
    torch.manual_seed(3)
    assert [i for batch in data.train_dataloader().sampler for i in batch] == expected.tolist()


@given(
    targets=st.sampled_from([[0], [1, 4], None]),
    weighted=st.booleans(),
    processes=st.integers(1, 2),
    limit=st.sampled_from([None, 3]),
    cut=st.integers(0, 40),
)
def test_a_loader_goes_on_from_any_place(
    targets: Any, weighted: bool, processes: int, limit: Any, cut: int
) -> None:
    replay = 0 if targets is None else 6
    chosen, others = split_by_class(LABELS, targets)
    weights = DrawWeights(1.0 + chosen, 1.0 + others) if weighted else None
    per_epoch = limit or 10**9

    def loader() -> TrainingLoader:
        sampler = TrainingSampler(
            LABELS,
            chosen,
            others,
            10,
            replay,
            seed=5,
            weights=weights,
            rank=processes - 1,
            processes=processes,
        )
        trainer: Any = SimpleNamespace(num_training_batches=min(len(sampler), per_epoch))
        images = ImageTensors(torch.arange(203), LABELS)
        return TrainingLoader(images, sampler, trainer, 0)

    def draw(loader: TrainingLoader, count: int, first: int = 0) -> list[list[int]]:
        """Batches as Lightning takes them: an epoch ends where the trainer says."""
        batches: list[list[int]] = []
        while len(batches) < count:
            epoch = islice(loader, loader.trainer.num_training_batches - first)  # type: ignore[union-attr]
            batches += [images.tolist() for images, _ in islice(epoch, count - len(batches))]
            first = 0
        return batches

    whole = draw(loader(), cut + 25)
    begun, resumed = loader(), loader()
    assert draw(begun, cut) == whole[:cut]
    state = begun.state_dict()
    resumed.load_state_dict(state)
    assert draw(resumed, 25, state["batch"]) == whole[cut:]


def test_workers_that_read_ahead_change_nothing() -> None:
    def batches(workers: int) -> list[Tensor]:
        sampler = TrainingSampler(LABELS, *split_by_class(LABELS, [0]), 10, 6)
        loader = TrainingLoader(ImageTensors(torch.arange(203), LABELS), sampler, None, workers)
        drawn = [images for images, _ in islice(loader, 2)]  # given up in the middle
        return [*drawn, *(images for images, _ in loader)]

    assert all(map(torch.equal, batches(0), batches(2)))


def test_overfitting_sees_the_same_batches_in_every_epoch() -> None:
    sampler = TrainingSampler(LABELS, *split_by_class(LABELS, [0]), 10, 6, repeat=True)
    loader = TrainingLoader(ImageTensors(torch.arange(203), LABELS), sampler, None, 0)
    first, second = ([images for images, _ in loader] for _ in range(2))
    assert all(map(torch.equal, first, second))


@given(counts=st.lists(st.integers(1, 7), min_size=1, max_size=4), count=st.integers(1, 9))
def test_replay_exhausts_a_class_before_it_repeats(counts: list[int], count: int) -> None:
    others = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = torch.cat([torch.full((60,), 9), others])
    parts = split_by_class(labels, [9])
    shares = [TrainingSampler(labels, *parts, 2, 2 * count, rank=r, processes=2) for r in (0, 1)]
    drawn: list[int] = []
    for whole, *halves in zip(TrainingSampler(labels, *parts, 2, 2 * count), *shares, strict=True):
        dealt = torch.tensor([half[1:] for half in halves]).t().flatten()
        assert dealt.tolist() == whole[2:]
        drawn += whole[2:]
    assert (labels[drawn]).tolist() == [i % len(counts) for i in range(len(drawn))]
    for c, size in enumerate(counts):
        of_class = [i for i in drawn if labels[i] == c]
        for k in range(0, len(of_class), size):
            once = of_class[k : k + size]
            assert len(set(once)) == len(once)


class KnowsTheDark(nn.Module):
    """The darker the image, the surer that it is a three."""

    def forward(self, images: Tensor) -> Tensor:
        dark, zero = -20 * images.mean(dim=(1, 2, 3)), images.new_zeros(len(images))
        return torch.stack([zero, zero, zero, dark, *[zero] * 6], dim=1)


@pytest.mark.parametrize("hardness", [0.3, 0.8])
def test_weights_follow_the_probability_of_an_error(hardness: float) -> None:
    data, net = mnist(target=[0, 9], replay=16, hardness=hardness), KnowsTheDark()
    weights = data.rate(net, torch.device("cpu"))
    assert data.draw_weights is None
    labels = data.train_set.labels
    images, _ = data.train_set.__getitems__(list(range(len(labels))))
    outputs = net(data.normalise(images)).double().softmax(dim=1)
    errors = 1 - outputs.gather(1, labels[:, None])[:, 0]
    groups = [(torch.isin(labels, torch.tensor([0, 9])), weights.target)]
    others = labels[~groups[0][0]]
    assert weights.replay is not None
    for c in range(1, 9):  # each class is drawn from by itself
        groups.append((labels == c, weights.replay[others == c]))
    for chosen, drawn in groups:
        share = errors[chosen] / errors[chosen].sum()
        torch.testing.assert_close(drawn, (1 - hardness) / chosen.sum() + hardness * share)


def test_hard_images_come_first_and_every_image_once() -> None:
    data, net = mnist(target=3, hardness=0.9), KnowsTheDark()
    data.draw_weights = data.rate(net, torch.device("cpu"))
    drawn = torch.tensor([i for batch in data.train_dataloader().sampler for i in batch])
    chosen, _ = split_by_class(data.train_set.labels, [3])
    assert sorted(drawn.tolist()) == chosen.tolist()
    weight = torch.zeros(len(data.train_set), dtype=torch.float64)
    weight[chosen] = data.draw_weights.target
    assert weight[drawn[:500]].mean() > 1.2 * weight[drawn[-500:]].mean()


def test_a_network_that_never_errs_draws_all_alike() -> None:
    weights = weigh(torch.zeros(50, dtype=torch.float64), 0.8)
    assert torch.equal(weights, weights[:1].expand(len(weights)))
