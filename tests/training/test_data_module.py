"""The batches of a plan in a training: shared among processes, gone on with, augmented."""

import multiprocessing
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torchvision.transforms import v2

from lora_mnist.data import ImageDataset, Images, ImageSets
from lora_mnist.data.plan import Plan
from lora_mnist.training.data_module import ImageDataModule
from lora_mnist.training.target import select_images

ON_CPU = SimpleNamespace(root_device=torch.device("cpu"))


def read_numbers(paths, augment):
    """Images of one pixel, from files of these names."""
    images = [torch.tensor([[[int(path.name)]]], dtype=torch.uint8) for path in paths]
    return [augment(image) for image in images] if augment else images


def numbered(count):
    """Images of one pixel that are their own numbers."""
    labels = torch.zeros(count, dtype=torch.int64)
    paths = [Path(str(number)) for number in range(count)]
    return Images(paths, labels, reader=read_numbers, digests=torch.arange(count))


def build_datamodule(trainer=None, val=0, augment=None, num_workers=0):
    """93 images to learn in batches of ten."""
    options = {"mean": 0, "std": 1, "eval_batch_size": 2, "num_workers": num_workers}
    dataset = ImageDataset("toy", ["cat"], 1, **options)
    images = ImageSets(numbered(93), numbered(val), numbered(1), {}, {})
    processes = trainer.world_size if trainer else 1
    labels = images.train.labels
    plan = Plan(select_images(labels, dataset.classes, None), labels, seed=1, processes=processes)
    data = ImageDataModule(dataset, images, plan, augment)
    data.trainer = trainer
    return data


def seen(batches):
    """The numbers of the images in each batch."""
    return [images.flatten().tolist() for images, _ in batches]


def test_data_module_shares_training_and_validation_among_processes():
    """Each image of a batch is in one of them; in training, of an odd number one is drawn twice."""
    shares, validated, drawn = [], [], set()
    for rank in (0, 1):
        place = {"global_rank": rank, "world_size": 2, "current_epoch": 0, "strategy": ON_CPU}
        limits = {"max_steps": -1, "max_epochs": 1}
        trainer = SimpleNamespace(**place, **limits, overfit_batches=0)
        data = build_datamodule(trainer, val=9)
        shares.append(seen(data.train_dataloader()))
        validated.append(seen(data.val_dataloader()))
    assert validated == [[[0, 2], [4, 6], [8]], [[1, 3], [5, 7]]]
    for whole, first, second in zip(islice(data.plan.batches(), 10), *shares, strict=True):
        assert (first, second) == (whole[::2], whole[1::2])
        assert len(first) == len(second)
        drawn |= {*whole}
    assert len(drawn) == 93
    assert build_datamodule(trainer).val_dataloader() == []  # Lightning's word for no validation


def test_workers_read_for_all_validations_of_a_training_and_end_with_it(tmp_path):
    class Net(LightningModule):
        def on_train_start(self):
            self.by_validation = []

        def training_step(self, batch, batch_idx):
            return self.layer(batch[0].flatten(1)).sum()

        def validation_step(self, batch, batch_idx):
            pids = {process.pid for process in multiprocessing.active_children()}
            self.by_validation.append(pids)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module, data = Net(), build_datamodule(None, val=2, num_workers=1)
    module.layer = torch.nn.Linear(1, 1)
    parts = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    options = {"max_steps": 4, "val_check_interval": 2, "num_sanity_val_steps": 0}
    options |= {"default_root_dir": tmp_path, "accelerator": "cpu"}
    trainer = Trainer(**options, **dict.fromkeys(parts, False))
    trainer.fit(module, datamodule=data)
    first, second = module.by_validation
    assert first == second
    assert len(first) == 2  # one reads for the training
    assert not multiprocessing.active_children()


def test_planned_batches_go_on_at_the_place_that_was_saved():
    """In the epoch that Lightning names; with overfit_batches each epoch is the first one."""
    trainer = SimpleNamespace(
        **{"global_rank": 0, "world_size": 1, "current_epoch": 1},
        strategy=ON_CPU,
        **{"overfit_batches": 0, "max_steps": -1, "max_epochs": 3, "accumulate_grad_batches": 2},
    )
    data = build_datamodule(trainer)
    plan = list(islice(data.plan.batches(), 40))
    cut, goes_on = data.train_dataloader(), data.train_dataloader()
    assert seen(islice(cut, 3)) == plan[10:13]
    goes_on.load_state_dict(cut.state_dict())
    assert seen(goes_on) == plan[13:20]
    trainer.current_epoch = 2
    assert seen(islice(goes_on, 2)) == plan[20:22]  # Lightning ends an epoch at its limit
    trainer.current_epoch = 3
    assert seen(goes_on) == plan[30:]
    trainer.overfit_batches = 4
    assert seen(goes_on) == seen(goes_on) == plan[:10]
    for max_steps, max_epochs, length in ((-1, 3, 10), (7, 3, 10), (7, -1, 14), (-1, -1, 10)):
        trainer.max_steps, trainer.max_epochs = max_steps, max_epochs
        assert len(goes_on) == length


def test_an_evaluation_draws_no_random_number():
    """A training would depend on what is evaluated before it, and how often it is validated."""
    data = build_datamodule(SimpleNamespace(global_rank=0, world_size=1, strategy=ON_CPU), val=9)
    state = torch.get_rng_state()
    assert len(seen(data.val_dataloader())) == 5
    assert len(seen(data.dataset.batches(data.images.val))) == 5
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_data_module_augments_each_image_by_itself(workers, monkeypatch):
    """Some are inverted; which ones, differs from batch to batch, and follows from the seed.

    The workers of several processes, which have one seed, draw other numbers in each of them.
    """

    def augmented(seed, rank=0):
        monkeypatch.setattr(rank_zero_only, "rank", rank)
        one = SimpleNamespace(global_rank=0, world_size=1, strategy=ON_CPU)
        data = build_datamodule(one, augment=v2.RandomInvert(), num_workers=workers)
        torch.manual_seed(seed)
        return seen(data.loader(islice(data.plan.batches(), 4)))

    first, patterns = augmented(0), set()
    plan = build_datamodule().plan
    for batch, original in zip(first, plan.batches(), strict=False):
        is_inverted = [new != old for new, old in zip(batch, original, strict=True)]
        expected = zip(original, is_inverted, strict=True)
        assert batch == [255 - number if flag else number for number, flag in expected]
        patterns.add(tuple(is_inverted))
    assert len(patterns) == 4
    assert augmented(0) == first != augmented(1)
    if workers:
        assert augmented(0, rank=1) != first
