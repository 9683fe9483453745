"""Hands the batches of a plan, and the validation images, to Lightning."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lora_mnist.data.dataset import ImageDataset
from lora_mnist.data.images import Augment, Batch, ImageSets
from lora_mnist.data.plan import Plan


class ImageDataModule(LightningDataModule):
    """The batches of a plan and the validation images, as uint8 until they are on the device."""

    def __init__(
        self,
        dataset: ImageDataset,
        images: ImageSets,
        plan: Plan,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        self.dataset, self.images = dataset, images
        self.plan, self.augment = plan, augment

    @property
    def train_digests(self) -> Tensor:
        """The digests of all images that a batch may have, sorted."""
        _, indices, others = self.plan.selection
        if self.plan.replay:
            indices = torch.cat([indices, others])
        return self.images.train.digests[indices].sort().values

    def loader(self, batches: Iterable[list[int]]) -> DataLoader[Batch]:
        """Return a loader of this process's share of ``batches``."""
        assert self.trainer is not None
        rank, processes = self.trainer.global_rank, self.plan.processes
        return self.dataset.loader(
            replace(self.images.train, augment=self.augment),
            self.trainer.strategy.root_device,
            batch_sampler=(batch[rank::processes] for batch in batches),
            generator=None,  # torch seeds each epoch and worker differently
            worker_init_fn=pl_worker_init_function,
        )

    def train_dataloader(self) -> "PlannedBatches":
        """Return the batches of the plan."""
        assert self.trainer is not None
        return PlannedBatches(self, self.trainer)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return a loader of this process's validation images, or [] if there are none."""
        if not len(self.images.val):
            return []
        assert self.trainer is not None
        places = torch.arange(self.trainer.global_rank, len(self.images.val), self.plan.processes)
        share = self.images.val.subset(places)
        device, size = self.trainer.strategy.root_device, self.dataset.eval_batch_size
        return self.dataset.loader(share, device, batch_size=size)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalize a batch on its device."""
        images, labels = batch
        return self.dataset.normalize(images), labels


class PlannedBatches:
    """The batches of the plan, one after another over all epochs.

    Order, shuffling and each process's share are the plan's. So it is no DataLoader, whose order
    Lightning would change. Lightning saves the place in an epoch, and restores it.
    """

    def __init__(self, data: ImageDataModule, trainer: Trainer) -> None:
        self.data, self.trainer = data, trainer
        self._epoch, self._place = 0, 0  # batches of the epoch that were yielded
        self._batches, self._given = data.plan.batches(), 0  # of the plan, which goes on

    @property
    def _is_one_epoch(self) -> bool:
        """True if only max_steps ends a training, so that it may be resumed with more steps."""
        return self.trainer.max_steps != -1 and self.trainer.max_epochs == -1

    def __len__(self) -> int:
        """Return the batches of a whole epoch, even if a part of it is done."""
        if self._is_one_epoch:
            return self.trainer.max_steps * self.trainer.accumulate_grad_batches
        return self.data.plan.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        epoch, count = 0 if self._is_one_epoch else self.trainer.current_epoch, len(self)
        if epoch != self._epoch or self._place == count:
            self._epoch, self._place = epoch, 0
        # trainer.limit_train_batches skips the rest of an epoch, as with a DataLoader.
        first = epoch * count + self._place
        if self.trainer.overfit_batches:  # type: ignore[attr-defined]
            first = self._place  # the first epoch again
        for batch in self.data.loader(islice(self._from(first), count - self._place)):
            self._place += 1
            yield batch

    def _from(self, first: int) -> Iterator[list[int]]:
        """Yield the batches of the plan from the one with this number on."""
        if self._given > first:  # they begin anew
            self._batches, self._given = self.data.plan.batches(), 0
        for batch in self._batches:
            self._given += 1
            if self._given > first:
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "place": self._place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._epoch, self._place = state["epoch"], state["place"]
