"""Runs one training of a repair at one learning rate, and returns its result or its failure."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from lora_mnist.choice import AUTO, Reason
from lora_mnist.classifier.choose_point import PointSearch
from lora_mnist.config.make import with_values
from lora_mnist.errors import TrainingError
from lora_mnist.lora.base_state import lora_state_dict
from lora_mnist.lora.model import set_lora_point
from lora_mnist.lora.point import BASE, TRAINED, Point
from lora_mnist.lora.weight import lora_adapters
from lora_mnist.measure.scale_curve import row_at
from lora_mnist.project import expand_path
from lora_mnist.show.reasons import format_reason
from lora_mnist.training.adapter import add_adapter
from lora_mnist.training.callbacks import LogDuration
from lora_mnist.training.end_if_lost import EndIfLost
from lora_mnist.training.features import use_features
from lora_mnist.training.finished import load_finished, save_finished
from lora_mnist.training.fit import build_datamodule, fit
from lora_mnist.training.session import Session
from lora_mnist.training.trainer import make_trainer
from lora_mnist.training.trials import Training

log = logging.getLogger(__name__)


class Failure(NamedTuple):
    """A training that diverged, or that ended since it had lost."""

    training: Training  # at its learning rate
    reason: Reason

    @property
    def is_lost(self) -> bool:
        return self.reason.code == "lost"


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training at one learning rate."""

    training: Training  # at its learning rate
    steps: int
    max_steps: int  # the limit
    hparams: Mapping[str, Any] | None  # None: the run's loggers have them
    validation_errors: Sequence[tuple[int, int]]  # pairs of a step and the errors after it
    train_digests: Tensor  # the digests of its training images
    tensors: Mapping[str, Tensor]  # the adapter's
    point: Point  # set by lora, or advised by validation images
    curve: Mapping[str, Any] | None  # the scale curve; None without validation images
    image_scores: Tensor  # at the point, to compare other trainings with; may be empty

    @property
    def is_trained(self) -> bool:
        """True if the adapter was trained: an offset alone takes no step."""
        return self.steps > 0

    @property
    def score(self) -> float:
        """The score at its point, which decides: see :mod:`.measure.score`."""
        return 0.0 if self.row is None else float(self.row["score"])

    @property
    def row(self) -> Mapping[str, Any] | None:
        """The curve's row of its scale; ``None``: there are no validation images."""
        return None if self.curve is None else row_at(self.curve, self.point.scale)

    @property
    def num_val_images(self) -> int:
        """The number of validation images that chose its point."""
        return 0 if self.curve is None else int(self.curve["images"])

    @property
    def beats_offset(self) -> bool:
        """True if it is better than the best offset alone, or if nothing can tell."""
        return self.curve is None or self.score > row_at(self.curve, 0)["score"]

    def about(self) -> dict[str, Any]:
        """Return its entries in results.json."""
        return {
            "steps": self.steps,
            "max_steps": self.max_steps,
            "scale_curve": self.curve,
            "validation_errors": self.validation_errors,
        }

    def load_into(self, session: Session) -> None:
        """Put its adapter on the network, at its point."""
        load_tensors(session, self.training, self.tensors)
        set_lora_point(session.net, self.point)


def run_training(
    session: Session, planned: Training, best: TrainingResult | None = None
) -> TrainingResult | Failure:
    """Train as ``planned`` and search for the operating point, or take the finished training.

    Of several trainings each is kept in the run's folder. The training may end early if it has lost
    to the ``best`` one before it.
    """
    trained: dict[str, Any] | Reason
    try:
        trained = load_finished(session, planned) or _train(session, planned, best)
    except TrainingError as error:
        trained = Reason("diverged", trial=planned.name, learning_rate=planned.lr, error=str(error))
    if isinstance(trained, Reason):
        level = logging.INFO if trained.code == "lost" else logging.WARNING
        log.log(level, "%s", format_reason(trained.record))
        return Failure(planned, trained)
    if not planned.is_only:
        save_finished(session, planned, trained)
    return TrainingResult(planned, **trained)


def _train(
    session: Session, planned: Training, best: TrainingResult | None
) -> dict[str, Any] | Reason:
    """Train as ``planned``; return the fields of the result, or the reason of an early end.

    Raise TrainingError if the training diverges.
    """
    path = planned.cfg.ckpt_path
    goes_on = planned.is_only and path is not None and expand_path(path).is_file()
    cfg = with_values(planned.cfg, {"ckpt_path": path if goes_on else None})
    training = replace(planned, cfg=cfg)
    trainer = _build_trainer(session, training)
    if training.total > 1 and training.number == 1 and not training.last_layer:
        trainer.callbacks.append(LogDuration(training.total))  # type: ignore[attr-defined]
    end = _end_if_lost(session, training, best)
    if end is not None:
        trainer.callbacks.append(end)  # type: ignore[attr-defined]
    load_tensors(session, training, training.start)
    set_lora_point(session.net, TRAINED if session.trains else BASE)
    if training.last_layer:
        session, training = use_features(session, training)
    steps, validation_errors = 0, list[tuple[int, int]]()
    hparams, train_digests = None, torch.empty(0, dtype=torch.int64)
    if session.trains:
        if training.total > 1:
            log.info("%s: %s", training.title, training.name)
        data = build_datamodule(session, training)
        module = fit(session, cfg, trainer, data)
        if end is not None and end.lost:
            return Reason("lost", trial=planned.name, learning_rate=planned.lr, **end.lost)
        steps, validation_errors = module.global_step, list(module.errors_by_step.items())
        hparams = None if training.is_only else dict(module.hparams)
        train_digests = data.train_digests
    tensors = copy.deepcopy(lora_state_dict(session.net))
    # What the first of several processes has chosen.
    point, curve = session.trainer.strategy.broadcast(_choose_point(session, training))
    return {
        "steps": steps,
        "max_steps": trainer.max_steps,
        "hparams": hparams,
        "validation_errors": validation_errors,
        "train_digests": train_digests,
        "tensors": tensors,
        "point": point,
        "curve": curve,
        "image_scores": _score_images(session, training, point),
    }


def _build_trainer(session: Session, training: Training) -> Trainer:
    """Make the Trainer of a training; the only one has the run's loggers and keeps checkpoints."""
    if training.is_only:
        return make_trainer(training.cfg, session.run, loggers=session.trainer.loggers)
    cfg = training.cfg
    own: dict[str, Any] = {
        "run_name": f"{cfg.run_name},training={training.name}_{cfg.optimizer.lr:g}"
    }
    has_own = False
    for name, logger in (cfg.get("logger") or {}).items():
        if name in ("tensorboard", "csv"):
            has_own = has_own or logger is not None
        else:  # in W&B or MLflow it would be another run
            own[f"logger.{name}"] = None
    loggers = None
    if session.trainer.loggers and not has_own:  # callbacks may ask for one: LearningRateMonitor
        loggers = [DummyLogger()]
    logged = with_values(cfg, own)
    run, title = session.run, training.title
    return make_trainer(logged, run, title, keeps_checkpoints=False, loggers=loggers)


def _end_if_lost(
    session: Session, training: Training, best: TrainingResult | None
) -> EndIfLost | None:
    """Return the callback that ends a lost training, or None if it may not end early."""
    lora = training.cfg.lora
    if best is None or training.total <= 1 or training.refit_point or lora.scale != AUTO:
        return None
    search = _build_search(session, training)
    return EndIfLost(search, lora.offset, (best.training.name, best.image_scores))


def _score_images(session: Session, training: Training, point: Point) -> Tensor:
    """Return the image scores at a point, by which later trainings are compared."""
    if not len(session.images.val) or training.total == 1 or training.refit_point:
        return torch.empty(0)
    _, scores = _build_search(session, training).score_images(point, point.offset)
    return scores


def _build_search(session: Session, training: Training) -> PointSearch:
    """Return the search for the operating point of a training."""
    cfg, targets = training.cfg, training.selection.targets
    return PointSearch(session.classifier, session.images.val, targets, cfg.seed, cfg.choose_by)


def _choose_point(session: Session, training: Training) -> tuple[Point, dict[str, Any] | None]:
    """Return the operating point (set, advised, or of a refit's trial), and the scale curve."""
    lora, search = training.cfg.lora, _build_search(session, training)
    if not len(session.images.val):
        return Point(float(lora.scale), float(lora.offset)), None
    log.info("evaluating the adapter at several scales on validation images")
    session.switch_to_eval()
    if training.refit_point is not None:
        return search.advise(training.refit_point._asdict(), scales=())
    return search.advise({"scale": lora.scale, "offset": lora.offset})


def load_tensors(session: Session, training: Training, tensors: Mapping[str, Tensor]) -> None:
    """Load these tensors into the adapter of a training, which is added if it is missing."""
    net = session.net
    if lora_state_dict(net).keys() != tensors.keys():  # on other layers
        add_adapter(replace(session, cfg=training.cfg), training.selection)
    net.load_state_dict(tensors, strict=False)  # the base stays
    net.zero_grad()
    for adapter in lora_adapters(net):
        adapter.dropout = training.cfg.lora.dropout
