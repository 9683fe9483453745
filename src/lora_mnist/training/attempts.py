"""A training of a repair, and what comes of it at one rate: an attempt, or a failure."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig
from torch import Tensor, nn

from lora_mnist.config.objects import with_settings
from lora_mnist.data import ImageSets
from lora_mnist.data.plan import Selection
from lora_mnist.errors import TrainingError
from lora_mnist.lora.base_state import lora_state_dict
from lora_mnist.lora.model import set_lora_point
from lora_mnist.lora.point import TRAINED, Point
from lora_mnist.lora.weight import lora_adapters
from lora_mnist.measure.dial import row_at
from lora_mnist.training.fit import data_of, fit
from lora_mnist.training.recipe import dial_of, trains
from lora_mnist.training.session import Session
from lora_mnist.training.trainer import make_trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """A training of a repair as it is planned."""

    name: str  # of its trial, or refit
    title: str  # training 1 of 3
    is_only: bool  # whether no other is planned
    cfg: DictConfig  # of its trial
    images: ImageSets
    selection: Selection
    start: Mapping[str, Tensor]  # the adapter's tensors before it
    rates: Sequence[float]  # the one that is set, or those of auto: the next where one diverges
    refit_at: Point | None = None  # of a refit: the point of the training that it repeats


class Failure(NamedTuple):
    """A training that diverged at a rate."""

    training: Training
    rate: float
    why: str


@dataclass(frozen=True)
class Attempt:
    """What came of a training at a rate."""

    training: Training
    cfg: DictConfig  # with the rate
    trainer: Trainer
    steps: int
    validation_errors: Sequence[tuple[int, int]]  # a step, and how many there were
    learnt: Tensor  # the digests of the images that it has learnt
    tensors: Mapping[str, Tensor]  # the adapter's
    point: Point  # which validation images advise, or lora sets
    curve: Mapping[str, Any] | None  # of the dial; None: there are no validation images

    @property
    def rate(self) -> float:
        return float(self.cfg.optimizer.lr)

    @property
    def score(self) -> float:
        """What decides, at its point: see :mod:`.measure.dial`."""
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
        put_tensors(net, self.tensors, self.cfg.lora.dropout)
        set_lora_point(net, self.point)


def attempted(session: Session, training: Training, rate: float) -> Attempt | Failure:
    """Train at a rate, and turn the dial where there are validation images."""
    cfg, trainer = _cfg_and_trainer(session, training, rate)
    put_tensors(session.net, training.start, cfg.lora.dropout)
    steps, validation_errors = 0, list[tuple[int, int]]()
    learnt = torch.empty(0, dtype=torch.int64)
    try:
        if trains(cfg):
            if not training.is_only:
                log.info("%s: %s", training.title, training.name)
            data = data_of(session, cfg, training.images, training.selection)
            module = fit(session, cfg, trainer, data)
            steps, validation_errors = module.global_step, list(module.errors_by_step.items())
            learnt = data.learnt
        tensors = tensors_of(session.net)
        point, curve = session.of_first_process(_advised(session, training))
    except TrainingError as error:
        log.warning("%s: %s", training.name, error)
        return Failure(training, rate, str(error))
    return Attempt(training, cfg, trainer, steps, validation_errors, learnt, tensors, point, curve)


def _cfg_and_trainer(
    session: Session, training: Training, rate: float
) -> tuple[DictConfig, Trainer]:
    """The configuration of a training at a rate, and a Trainer of its own."""
    cfg = with_settings(training.cfg, {"optimizer.lr": rate})
    if training.is_only and rate == training.rates[0]:
        # The run's own: it has its loggers, keeps checkpoints, and may go on from one.
        return cfg, make_trainer(cfg, session.run, loggers=session.trainer.loggers)
    cfg = with_settings(cfg, {"ckpt_path": None})
    own: dict[str, Any] = {"run_name": f"{cfg.run_name},training={training.name}_{rate:g}"}
    for logger in cfg.get("logger") or {}:
        if logger not in ("tensorboard", "csv"):  # in W&B or MLflow it would be another run
            own[f"logger.{logger}"] = None
    logged = with_settings(cfg, own)
    return cfg, make_trainer(logged, session.run, training.title, keeps_checkpoints=False)


def _advised(session: Session, training: Training) -> tuple[Point, dict[str, Any] | None]:
    """The point that ``lora`` sets or validation images advise, or a refit's, and the curve."""
    dial, lora = dial_of(session, training.selection), training.cfg.lora
    asked = {knob: lora[knob] for knob in Point._fields}
    if not len(dial.images):
        return Point(**{knob: float(value) for knob, value in asked.items()}), None
    log.info("dial: the adapter at several scales on validation images")
    session.evaluating()
    if training.refit_at is not None:
        return dial.advise(training.refit_at._asdict(), beside=())
    return dial.advise(asked)


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    """A copy of all tensors of the adapters on ``net``."""
    return copy.deepcopy(lora_state_dict(net))


def put_tensors(net: nn.Module, tensors: Mapping[str, Tensor], dropout: float) -> None:
    """Put these tensors into the adapters, to be trained with dropout."""
    net.load_state_dict(tensors, strict=False)  # the base stays
    net.zero_grad()
    for adapter in lora_adapters(net):
        adapter.dropout = dropout
    set_lora_point(net, TRAINED)
