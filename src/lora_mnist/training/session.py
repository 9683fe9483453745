"""A session: what all trainings and tests of one run share, made once."""

import logging
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig
from torch import nn

from lora_mnist.choice import Reason
from lora_mnist.classifier.classifier import Classifier
from lora_mnist.config.run import Run
from lora_mnist.data import Images, ImageSets
from lora_mnist.data.mistakes import Mistakes
from lora_mnist.lora.base_state import base_state_dict, changed_tensors
from lora_mnist.measure.predictions import Predictions, compute_predictions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """The objects that a run works with. Each training of a repair has its own cfg and Trainer."""

    cfg: DictConfig  # of the run
    run: Run
    trainer: Trainer  # of a repair: for its device, processes and loggers alone
    classifier: Classifier
    images: ImageSets  # :attr:`mistakes_start` says which of those to train on are mistakes
    mistakes: Mistakes | None
    started: float  # seconds, as time.perf_counter has them

    @property
    def net(self) -> nn.Module:
        return self.classifier.net

    @property
    def trains(self) -> bool:
        """True unless only an offset is asked for."""
        return bool(self.cfg.stage != "lora" or self.cfg.lora.scale != 0)

    @property
    def mistakes_start(self) -> int:
        """The number of the data set's training images: training mistakes follow them."""
        return len(self.images.train) - len(self.mistakes.train if self.mistakes else ())

    @property
    def splits(self) -> dict[str, Images]:
        """The images to predict, by the names of their splits."""
        splits = {"val": self.images.val, "test": self.images.test}
        if self.mistakes is not None:
            splits |= {"mistakes": self.mistakes.train, "mistakes_test": self.mistakes.test}
        return splits

    def predict_split(self, split: str, before: Predictions | None = None) -> Predictions | None:
        """Return the predictions for a split, or None without images; ``before`` is the base's."""
        images, dataset = self.splits[split], self.classifier.dataset
        if not len(images):
            return None
        batches = dataset.batches(images, self.switch_to_eval(), name=split)
        return compute_predictions(self.net, batches, before)

    def switch_to_eval(self) -> torch.device:
        """Put the network into eval mode on the Trainer's device, where it stays; return that."""
        device = self.trainer.strategy.root_device
        self.net.eval().to(device)
        return device

    def predict_splits(self, with_val: bool = False) -> dict[str, Predictions]:
        """Return the predictions for each split that has images, without ``val`` by default."""
        tables = {}
        for split in self.splits:
            if split == "val" and not with_val:
                continue
            if (table := self.predict_split(split)) is not None:
                tables[split] = table
        return tables

    def explain_setting(self, key: str) -> Reason:
        """Return the reason of a value that the command line or the configuration has."""
        others = {"target": "digit", "batches.augment": "augment"}
        names = {key, others.get(key, key)}
        where = "configuration" if names.isdisjoint(self.run.keys) else "command line"
        return Reason("set", key=key, where=where)


def is_quick(cfg: DictConfig) -> bool:
    """Return whether a run is a quick check, which writes no file for other commands."""
    return bool(cfg.debug or cfg.trainer.get("fast_dev_run"))


def prove_unchanged(session: Session) -> None:
    """Raise RuntimeError unless the base in the network is unchanged, bit for bit."""
    base = session.classifier.base
    assert base is not None
    if changed := changed_tensors(base.tensors, base_state_dict(session.net)):
        raise RuntimeError(f"training the adapter changed the base: {', '.join(changed)}")
    log.info("base unchanged: %d tensors, bit for bit", len(base.tensors))
