"""The trainings of a repair: several attempts, the best of them, and perhaps a refit of that.

Where a class has few images, a training sees each of them dozens of times, and the base's own
validation images hold much of what the base does not know. So each of ``trials`` is a complete
training, the one that gains most on validation images is kept (:mod:`.measure.dial` has the number
that decides), and ``refit=auto`` makes one more that learns these images, too: Kirichenko et al.
2022, "Last Layer Re-Training is Sufficient for Robustness to Spurious Correlations" (DFR),
arXiv:2204.02937. docs/worth.md has the numbers.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_mnist.choice import AUTO, Choice
from lora_mnist.data.plan import Selection
from lora_mnist.errors import TrainingError, UserError
from lora_mnist.lora.model import set_lora_point
from lora_mnist.lora.point import BASE, Point
from lora_mnist.measure.predictions import Predictions
from lora_mnist.training.checkpoint import hyperparameters_of
from lora_mnist.training.recipe import (
    factors_of,
    name_of_measure,
    point_choice,
    set_factors,
    turn_dial,
)
from lora_mnist.training.session import Session
from lora_mnist.training.trainer import make_trainer
from lora_mnist.training.trials import choose_refit

log = logging.getLogger(__name__)

#: The rates that optimizer.lr=auto tries, each where the one before diverges.
RATES = (0.001, 0.0003, 0.0001)


class Training(NamedTuple):
    """One of a repair's trainings, before it is made."""

    name: str  # of the trial, or refit
    number: int
    planned: int  # how many there are; another rate of one of them is no further one
    trial: Session  # with its configuration
    start: Mapping[str, Tensor]  # the adapter's tensors
    refit_at: Point | None = None  # of a refit, which learns the validation images, too


@dataclass(frozen=True)
class Attempt:
    """A training of a repair at one rate, and what came of it; or why it failed."""

    session: Session  # with the configuration of its trial, at its rate
    training: Training
    failure: str = ""  # nothing that follows has a meaning then
    factors: Mapping[str, Tensor] = field(default_factory=dict)  # as the training left them
    steps: int = 0
    validation_errors: Sequence[tuple[int, int]] = ()  # a step, and how many there were
    learnt: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # digests
    point: Point = BASE  # which validation images advise, or lora sets
    dial: Mapping[str, Any] | None = None  # None: there are no validation images

    @property
    def rate(self) -> float:
        return float(self.session.cfg.optimizer.lr)

    @property
    def measure(self) -> float:
        """What decides, at its point: see :mod:`.measure.dial`."""
        if self.dial is None:
            return 0.0
        return float(self.dial["smoothed"][self.dial["scales"].index(self.point.scale)])

    @property
    def is_ahead_of_an_offset(self) -> bool:
        """Whether it is better than the best offset without it, as far as that is known."""
        return self.dial is None or self.measure > self.dial["smoothed"][0]

    def put_back(self) -> None:
        """Put its adapter on the network, at its point."""
        set_factors(self.session.net, self.factors, self.session.cfg.lora.dropout)
        set_lora_point(self.session.net, self.point)


class Repair(NamedTuple):
    """What a repair leaves, with its adapter on the network."""

    tables: dict[str, Predictions]  # val, if there are such images
    choices: dict[str, Choice]
    best: Attempt  # which decided; a refit has no images to decide by
    learnt: Tensor  # the digests of the images that the adapter has learnt


def train_repair(
    session: Session,
    trials: Mapping[str, Session],
    selection: Selection,
    before: Predictions | None,
) -> Repair:
    """Train the adapter in each of ``trials``; keep the best one, or train it again as a refit.

    Each training begins at the same start. Tables, dial and point are those of the best trial,
    which had not learnt the validation images.
    """
    refit = choose_refit(session, selection)
    start, planned = factors_of(session.net), len(trials) + bool(refit.value)
    _refuse_several(session, planned)
    attempts: list[Attempt] = []
    for number, (name, trial) in enumerate(trials.items(), start=1):
        attempts += _at_rates(Training(name, number, planned, trial, start), selection)
    attempts += _at_next_rate(attempts, selection)
    successes = [attempt for attempt in attempts if not attempt.failure]
    if not successes:
        raise TrainingError("; ".join(attempt.failure for attempt in attempts))
    kept = best = max(successes, key=lambda attempt: attempt.measure)
    best.put_back()
    val = session.predictions("val", before)
    if refit.value and best.point.scale == 0:
        refit = Choice(False, why="the trial adds nothing that validation images show")
    elif refit.value:
        kept, refit = _refitted(best, selection, refit)
    kept.put_back()
    if planned > 1:
        for logger in session.trainer.loggers:  # they have seen no training
            logger.log_hyperparams(dict(kept.session.trainer.lightning_module.hparams))
    choices = {}
    if best.steps and session.cfg.trials:
        choices["trial"] = _trial_choice(session, attempts, best)
        choices["augment"] = _augment_choice(session, best.session)
    if best.steps:
        choices["rate"] = _rate_choice(attempts, best)
    choices["refit"] = refit
    choices["point"] = point_choice(session, selection, best.point, best.dial)
    return Repair({} if val is None else {"val": val}, choices, best, kept.learnt)


def _refuse_several(session: Session, planned: int) -> None:
    """Refuse, or say, what is for a single training, where several are planned."""
    if planned == 1:
        return
    if session.cfg.ckpt_path is not None:
        raise UserError(
            f"ckpt_path={session.cfg.ckpt_path}: expected null, since this repair has several "
            "trainings; start it again: same seed, same numbers"
        )
    is_usual = bool((session.cfg.get("callbacks") or {}).get("checkpoint"))
    if len(session.trainer.checkpoint_callbacks) > is_usual:
        line = "callbacks: no checkpoint is kept, since this repair has %d trainings"
        log.warning(line, planned)


# --- one training -------------------------------------------------------------------------------


def _at_rates(training: Training, selection: Selection) -> list[Attempt]:
    """Train at the rate that is set or, with ``auto``, up to one that does not diverge."""
    cfg = training.trial.cfg
    rates = [cfg.optimizer.lr]
    if rates == [AUTO]:
        rates = list(RATES)
        if cfg.ckpt_path is not None:  # of a rate before which others diverged
            begun = hyperparameters_of(cfg.ckpt_path)["optimizer.lr"]
            rates = rates[rates.index(begun) if begun in rates else 0 :]
    attempts: list[Attempt] = []
    for rate in rates:
        one = training.trial.with_settings({"optimizer.lr": rate})
        if training.planned > 1 or rate != rates[0]:
            one = _with_own_trainer(one, training)
        else:  # its curves are the run's, and it may go on from ckpt_path
            trainer = make_trainer(one.cfg, one.run, loggers=one.trainer.loggers)
            one = replace(one, trainer=trainer)
        attempts.append(_attempt(one, selection, training))
        if not attempts[-1].failure:
            break
        log.warning("%s: %s", training.name, attempts[-1].failure)
    return attempts


def _at_next_rate(attempts: Sequence[Attempt], selection: Selection) -> list[Attempt]:
    """Train once more, at the next rate, where no training is ahead of the offset alone."""
    if any(attempt.failure or attempt.is_ahead_of_an_offset for attempt in attempts):
        return []
    for attempt in attempts:
        training, smaller = attempt.training, [rate for rate in RATES if rate < attempt.rate]
        if training.trial.cfg.optimizer.lr == AUTO and smaller and attempt.steps:
            line = "no training is ahead of an offset without one; the rate %g is tried"
            log.info(line, smaller[0])
            one = training.trial.with_settings({"optimizer.lr": smaller[0]})
            return [_attempt(_with_own_trainer(one, training), selection, training)]
    return []


def _with_own_trainer(session: Session, training: Training) -> Session:
    """The session with a new Trainer, whose loggers have a version of their own.

    Of W&B's and MLflow's one would be another run. Checkpoints are kept of a single training.
    """
    session = session.with_settings({"ckpt_path": None})
    cfg = session.cfg.copy()
    cfg.run_name = f"{cfg.run_name},training={training.name}_{cfg.optimizer.lr:g}"
    for logger in cfg.get("logger") or {}:
        if logger not in ("tensorboard", "csv"):
            cfg.logger[logger] = None
    name = f"training {training.number} of {training.planned}"
    trainer = make_trainer(cfg, session.run, name, keeps_checkpoints=training.planned == 1)
    return replace(session, trainer=trainer)


def _attempt(session: Session, selection: Selection, training: Training) -> Attempt:
    """Train once, and turn the dial where there are validation images."""
    net, refit_at = session.net, training.refit_at
    attempt = Attempt(session, training)
    set_factors(net, training.start, session.cfg.lora.dropout)
    try:
        if session.cfg.lora.scale != 0:  # 0: the offset alone
            if training.planned > 1:
                log.info("training %d of %d: %s", training.number, training.planned, training.name)
            data = session.data(selection, with_validation=refit_at is not None)
            module = session.fit(data)
            attempt = replace(
                attempt,
                steps=module.global_step,
                validation_errors=list(module.errors_by_step.items()),
                learnt=data.learnt,
            )
        attempt = replace(attempt, factors=factors_of(net))
        point, dial = session.of_first_process(turn_dial(session, selection, refit_at))
    except TrainingError as error:
        return replace(attempt, failure=str(error))
    return replace(attempt, point=point, dial=dial)


def _refitted(best: Attempt, selection: Selection, refit: Choice) -> tuple[Attempt, Choice]:
    """Train the best once more, with the validation images; if that is behind the base, keep it."""
    session, unseen, images = best.session, "", best.session.images
    if images.held_out.get("val") == "test":
        unseen = ", which are part of test/; only the other test images are still unseen"
    log.info("refit: once more, with the validation images%s", unseen)
    planned = best.training.planned
    training = best.training._replace(name="refit", number=planned, refit_at=best.point)
    again = _attempt(_with_own_trainer(session, training), selection, training)
    why = again.failure
    if again.dial is not None:
        of_base = again.dial["base"]["smoothed"]
        if again.measure >= of_base:
            return again, refit
        why = f"{name_of_measure(session)}, smoothed, is {again.measure:.1%} on the validation "
        why += f"images that it has learnt, and {of_base:.1%} of the base"
    log.warning("refit: %s; the trial is kept", why)
    return best, Choice(False, [True, False], len(images.val), why)


# --- choices ------------------------------------------------------------------------------------


def _rate_choice(attempts: Sequence[Attempt], best: Attempt) -> Choice:
    """The rate of the best training, and why it is that."""
    trial = best.training.trial
    if trial.cfg.optimizer.lr != AUTO:
        return trial.as_set("optimizer.lr", best.rate)
    whys = []
    for attempt in attempts:
        if attempt.training.name == best.training.name and attempt.rate > best.rate:
            whys.append(attempt.failure or f"at {attempt.rate:g} it is behind this one")
    return Choice(best.rate, RATES, why="; ".join(whys) or "the first that is tried")


def _trial_choice(session: Session, attempts: Sequence[Attempt], best: Attempt) -> Choice:
    """The trial that validation images measure best."""
    measures: dict[str, float] = {}
    for attempt in attempts:
        if not attempt.failure:
            name = attempt.training.name
            measures[name] = max(attempt.measure, measures.get(name, 0.0))
    why, images = "the only one", 0
    if len(measures) > 1:
        images = len(session.images.val)
        shares = [f"{measure:.1%} with {name}" for name, measure in measures.items()]
        why = f"the highest {name_of_measure(session)} on validation images, smoothed: "
        why += ", ".join(shares)
    for name in dict.fromkeys(attempt.training.name for attempt in attempts):
        if name not in measures:
            why += f"; {name} diverged"
    return Choice(best.training.name, list(measures), images, why)


def _augment_choice(session: Session, trial: Session) -> Choice:
    """How the kept trial changed its images: ``auto`` is as in the base's training."""
    base = session.classifier.base
    if trial.augment != session.augment:
        return Choice(trial.augment, why="as the trial has it")
    if session.cfg.batches.augment != AUTO:
        return session.as_set("batches.augment", trial.augment)
    if base is None or "augment" not in base.record.get("made", {}):
        why = "the base's file does not say how it was; augment= takes what its training had"
        return Choice(trial.augment, why=why)
    return Choice(trial.augment, why="as in the base's training")
