"""Images as Lightning takes them: the batches of a plan, and all images for validation."""

import math
from collections.abc import Iterable, Iterator
from itertools import islice

from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from lora_mnist.data.dataset import ImageDataset, ImageSets
from lora_mnist.data.images import Augment, Batch
from lora_mnist.data.plan import Augmented, Plan


class ImageDataModule(LightningDataModule):
    """Feeds a training by its plan, and its validation.

    Images are uint8 until they are on the device, where each batch is normalised.

    Args:
        dataset: normalises the images, and says how they are loaded.
        images: those to train on, which the plan counts, and those to validate on, if any.
        plan: which images each step has.
        augment: gets a training image as uint8, (channels, height, width), before it is normalised.
    """

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

    def read(self, batches: Iterable[list[int]], first: int = 0) -> DataLoader[Batch]:
        """The images of ``batches`` of the plan, of which the first has the number ``first``.

        Each of several processes reads its share. Images are augmented here, not yet normalised.
        """
        rank = self.trainer.global_rank if self.trainer else 0
        shares = (batch[rank :: self.plan.processes] for batch in batches)
        if self.augment is None:
            return self.dataset.loader(self.images.train, batch_sampler=shares)
        images = Augmented(self.images.train, self.augment, self.plan.seed, rank)
        return self.dataset.loader(images, batch_sampler=enumerate(shares, first))

    def train_dataloader(self) -> "PlannedBatches":
        """The batches of the plan from the Trainer's step on."""
        assert self.trainer is not None
        return PlannedBatches(self, self.trainer)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """All validation images, in each process; nothing where there are none."""
        if not len(self.images.val):
            return []
        return self.dataset.loader(self.images.val, batch_size=self.dataset.eval_batch_size)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise a batch where it is."""
        images, labels = batch
        return self.dataset.normalise(images), labels


def is_one_epoch(trainer: Trainer) -> bool:
    """Whether Lightning runs the whole training as one epoch: if only ``max_steps`` ends it.

    Else an epoch of Lightning's is one pass over the images to learn.
    """
    return trainer.max_steps != -1 and trainer.max_epochs == -1


class PlannedBatches:
    """The batches of the plan from the Trainer's step on, epoch by epoch of Lightning's.

    Which batch comes first follows from ``trainer.global_step`` and nothing else, so that a resumed
    run goes on at its place. This class is no ``DataLoader``, so that Lightning leaves the order as
    it is.
    """

    def __init__(self, data: ImageDataModule, trainer: Trainer) -> None:
        self.data, self.trainer = data, trainer
        self._batches: Iterator[list[int]] = iter(())
        self._next: int | None = None  # the number of the next of these

    def __len__(self) -> int:
        """All batches of an epoch, also of one that is resumed."""
        if is_one_epoch(self.trainer):
            return self.trainer.max_steps * self.trainer.accumulate_grad_batches
        return self.data.plan.batches_a_pass

    def __iter__(self) -> Iterator[Batch]:
        trainer = self.trainer
        batches = int(trainer.num_training_batches)  # Lightning may have been told to take fewer
        steps = math.ceil(batches / trainer.accumulate_grad_batches)
        epoch, step = divmod(trainer.global_step, steps)
        if trainer.overfit_batches:  # type: ignore[attr-defined]
            epoch = 0  # each epoch has the first one's batches
        first = epoch * batches + step * trainer.accumulate_grad_batches
        end = (epoch + 1) * batches
        if first != self._next:
            self._batches = islice(self.data.plan.batches(), first, None)
        self._next = end
        yield from self.data.read(islice(self._batches, end - first), first)
