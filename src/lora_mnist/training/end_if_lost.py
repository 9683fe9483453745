"""Ends a training of a repair that has lost, which saves its other steps."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lora_mnist.classifier.choose_point import PointSearch
from lora_mnist.lora.point import TRAINED
from lora_mnist.measure.significance import CERTAIN


class EndIfLost(Callback):
    """Ends a training that is behind another one beyond chance, and whose score does not rise.

    At each validation the adapter at scale 1, with the best offset, is compared with the best
    training before it. To be behind is not enough: a slow training rises until its last step.

    Args:
        search: the validation images, and the measure.
        offset: of the adapter; ``auto``: the best one.
        best: the name of the best training, and its image scores (:mod:`.measure.score`).
    """

    def __init__(self, search: PointSearch, offset: float | str, best: tuple[str, Tensor]) -> None:
        self.search, self.offset, (self.best, self.best_scores) = search, offset, best
        self.score: float | None = None  # at the validation before
        self.lost: dict[str, Any] = {}  # the facts of the end; empty: it has not lost

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.global_step >= trainer.max_steps:
            return
        score, scores = self.search.score_images(TRAINED, self.offset)
        change = scores - self.best_scores
        is_behind = bool(change.sum() < -CERTAIN * change.square().sum().sqrt())
        rises = self.score is None or score > self.score
        # Each process sees all of these images; where rounding differs, the first one decides.
        if trainer.strategy.broadcast(is_behind and not rises):
            self.lost = {"step": trainer.global_step, "score": score, "best": self.best}
            trainer.should_stop = True
        self.score = score
