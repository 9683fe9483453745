"""What comes of a training of a repair at one rate: an attempt, or a failure."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lora_mnist.config.objects import with_settings
from lora_mnist.errors import TrainingError
from lora_mnist.lora.base_state import lora_state_dict
from lora_mnist.lora.model import set_lora_point
from lora_mnist.lora.point import BASE, TRAINED, Point
from lora_mnist.lora.weight import lora_adapters
from lora_mnist.measure.dial import row_at
from lora_mnist.training.adapter import dial_of
from lora_mnist.training.fit import data_of, fit
from lora_mnist.training.session import Session
from lora_mnist.training.trainer import make_trainer
from lora_mnist.training.trials import Training

log = logging.getLogger(__name__)


class Failure(NamedTuple):
    """A training that diverged at a rate."""

    training: Training
    rate: float
    why: str


@dataclass(frozen=True)
class Attempt:
    """What came of a training at a rate."""

    training: Training  # with the rate in its cfg
    trainer: Trainer
    steps: int
    validation_errors: Sequence[tuple[int, int]]  # a step, and how many there were
    learnt: Tensor  # the digests of the images that it has learnt
    tensors: Mapping[str, Tensor]  # the adapter's
    point: Point  # which validation images advise, or lora sets
    curve: Mapping[str, Any] | None  # of the dial; None: there are no validation images

    @property
    def rate(self) -> float:
        return float(self.training.cfg.optimizer.lr)

    @property
    def score(self) -> float:
        """What decides, at its point: see :mod:`.measure.score`."""
        return 0.0 if self.row is None else float(self.row["score"])

    @property
    def row(self) -> Mapping[str, Any] | None:
        """The curve's row of its scale; ``None``: there are no validation images."""
        return None if self.curve is None else row_at(self.curve, self.point.scale)

    @property
    def images(self) -> int:
        """How many validation images the dial saw."""
        return 0 if self.curve is None else int(self.curve["images"])

    @property
    def is_ahead_of_an_offset(self) -> bool:
        """Whether it is better than the best offset without it, as far as that is known."""
        return self.curve is None or self.score > row_at(self.curve, 0)["score"]

    def put_on(self, net: nn.Module) -> None:
        """Put its adapter on the network, at its point."""
        put_tensors(net, self.tensors, self.training.cfg.lora.dropout)
        set_lora_point(net, self.point)


#: What comes of a training.
Tried = Attempt | Failure


def attempted(session: Session, training: Training, rate: float, title: str) -> Tried:
    """Train at a rate, and turn the dial; ``title``, as training 1 of 3, "" of the only one."""
    cfg = training.at(rate)
    goes_on = not title and rate == training.rates[0]
    if not goes_on:
        cfg = with_settings(cfg, {"ckpt_path": None})
    training = replace(training, cfg=cfg)
    trainer = _trainer_of(session, training, title, goes_on)
    put_tensors(session.net, training.start, cfg.lora.dropout)
    steps, validation_errors = 0, list[tuple[int, int]]()
    learnt = torch.empty(0, dtype=torch.int64)
    try:
        if lora_adapters(session.net):
            if title:
                log.info("%s: %s", title, training.name)
            data = data_of(session, training)
            module = fit(session, cfg, trainer, data)
            steps, validation_errors = module.global_step, list(module.errors_by_step.items())
            learnt = data.learnt
        tensors = copy.deepcopy(lora_state_dict(session.net))
        point, curve = session.of_first_process(_advised(session, training))
    except TrainingError as error:
        log.warning("%s: %s", training.name, error)
        return Failure(training, rate, str(error))
    return Attempt(training, trainer, steps, validation_errors, learnt, tensors, point, curve)


def _trainer_of(session: Session, training: Training, title: str, goes_on: bool) -> Trainer:
    """The Trainer of a training; the run's only one has its loggers, and keeps checkpoints."""
    if goes_on:
        return make_trainer(training.cfg, session.run, loggers=session.trainer.loggers)
    cfg = training.cfg
    own: dict[str, Any] = {
        "run_name": f"{cfg.run_name},training={training.name}_{cfg.optimizer.lr:g}"
    }
    for logger in cfg.get("logger") or {}:
        if logger not in ("tensorboard", "csv"):  # in W&B or MLflow it would be another run
            own[f"logger.{logger}"] = None
    logged = with_settings(cfg, own)
    return make_trainer(logged, session.run, title or "this training", keeps_checkpoints=False)


def _advised(session: Session, training: Training) -> tuple[Point, dict[str, Any] | None]:
    """The point that ``lora`` sets or validation images advise, or a refit's, and the curve."""
    dial, lora = dial_of(session, training.selection), training.cfg.lora
    if not len(dial.images):
        return Point(float(lora.scale), float(lora.offset)), None
    log.info("dial: the adapter at several scales on validation images")
    session.evaluating()
    if training.refit_at is not None:
        return dial.advise(training.refit_at._asdict(), beside=())
    return dial.advise({"scale": lora.scale, "offset": lora.offset})


def put_tensors(net: nn.Module, tensors: Mapping[str, Tensor], dropout: float) -> None:
    """Put these tensors into the adapters, to be trained with dropout."""
    net.load_state_dict(tensors, strict=False)  # the base stays
    net.zero_grad()
    for adapter in lora_adapters(net):
        adapter.dropout = dropout
    set_lora_point(net, TRAINED if lora_adapters(net) else BASE)  # an offset alone has no scale
