"""The trainings of a repair: several attempts, the best of them, and perhaps a refit of that.

Where a class has few images, a training sees each of them dozens of times, and the base's own
validation images hold much of what the base does not know. So each of ``trials`` is a complete
training, the one that gains most on validation images is kept (:mod:`.measure.dial` has the number
that decides), and ``refit=auto`` makes one more that learns these images, too: Kirichenko et al.
2022, "Last Layer Re-Training is Sufficient for Robustness to Spurious Correlations" (DFR),
arXiv:2204.02937. docs/experiments.md has the numbers.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_mnist.choice import AUTO, Choice
from lora_mnist.data.plan import Selection
from lora_mnist.errors import TrainingError, UserError
from lora_mnist.lora.base_state import lora_state_dict
from lora_mnist.lora.model import set_lora_point
from lora_mnist.lora.point import BASE, TRAINED, Point
from lora_mnist.lora.weight import lora_adapters, offset_of
from lora_mnist.measure.dial import row_at
from lora_mnist.measure.predictions import Predictions
from lora_mnist.measure.significance import name_of_measure
from lora_mnist.show.screen import print_parameters
from lora_mnist.training.fit import data_of, fit
from lora_mnist.training.recipe import NO_LAYER, choose_refit, dial_of, trials_of
from lora_mnist.training.session import Session
from lora_mnist.training.trainer import make_trainer

log = logging.getLogger(__name__)

#: The rates that optimizer.lr=auto tries: the next if one diverges, or is not ahead of an offset.
RATES = (0.001, 0.0003, 0.0001)


@dataclass(frozen=True)
class Training:
    """A training of a repair as it is planned, at one rate or, where one diverges, at the next."""

    name: str  # of its trial, or refit
    number: int  # of so many that are planned
    planned: int
    session: Session  # with the configuration of its trial
    selection: Selection
    start: Mapping[str, Tensor]  # the adapter's tensors before it
    rates: Sequence[float]  # the one that is set, or those of auto
    refit_at: Point | None = None  # of a refit, which learns the validation images, too

    def is_of_run(self, rate: float) -> bool:
        """Whether it has the run's loggers, keeps checkpoints and may go on from ``ckpt_path``."""
        # Any other has loggers of its own: curves of two trainings in one could not be read.
        return self.planned == 1 and rate == self.rates[0]


@dataclass(frozen=True)
class Attempt:
    """What came of a training at one rate."""

    training: Training
    session: Session  # with the rate, and a Trainer of its own
    failure: str = ""  # why it failed: nothing that follows has a meaning then
    steps: int = 0
    validation_errors: Sequence[tuple[int, int]] = ()  # a step, and how many there were
    learnt: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # digests
    tensors: Mapping[str, Tensor] = field(default_factory=dict)  # the adapter's
    point: Point = BASE  # which validation images advise, or lora sets
    curve: Mapping[str, Any] | None = None  # of the dial; None: there are no validation images

    @property
    def rate(self) -> float:
        return float(self.session.cfg.optimizer.lr)

    @property
    def smoothed(self) -> float:
        """What decides, at its point: see :mod:`.measure.dial`."""
        if self.curve is None:
            return 0.0
        return float(row_at(self.curve, self.point.scale)["smoothed"])

    @property
    def images(self) -> int:
        """How many validation images the dial saw."""
        return 0 if self.curve is None else int(self.curve["images"])

    @property
    def is_ahead_of_an_offset(self) -> bool:
        """Whether it is better than the best offset without it, as far as that is known."""
        return self.curve is None or self.smoothed > row_at(self.curve, 0)["smoothed"]

    def put_back(self) -> None:
        """Put its adapter on the network, at its point."""
        put_tensors(self.session.net, self.tensors, self.session.cfg.lora.dropout)
        set_lora_point(self.session.net, self.point)


class Repair(NamedTuple):
    """What a repair leaves, with its adapter on the network."""

    kept: Attempt  # whose adapter it is: the best one, or its refit
    best: Attempt  # which decided; a refit has no images to decide by
    tables: dict[str, Predictions]  # val, if there are such images
    choices: dict[str, Choice]


def train_repair(session: Session, selection: Selection, before: Predictions | None) -> Repair:
    """Train the adapter in each trial; keep the best one, or train it again as a refit."""
    trials, refit = trials_of(session, selection), choose_refit(session, selection)
    start, planned = tensors_of(session.net), len(trials) + bool(refit.value)
    _refuse_several(session, planned)
    print_parameters(session.net)
    attempts: list[Attempt] = []
    for number, (name, trial) in enumerate(trials.items(), start=1):
        rate = trial.cfg.optimizer.lr
        rates = RATES if rate == AUTO else (rate,)
        attempts += _at_rates(Training(name, number, planned, trial, selection, start, rates))
    attempts += _at_next_rate(attempts)
    successes = [attempt for attempt in attempts if not attempt.failure]
    if not successes:
        raise TrainingError("; ".join(attempt.failure for attempt in attempts))
    kept = best = max(successes, key=lambda attempt: attempt.smoothed)
    best.put_back()
    val = session.predictions("val", before)  # now: a refit learns these images
    if refit.value and best.point.scale == 0:
        refit = Choice(False, why="the trial adds nothing that validation images show")
    elif refit.value:
        kept, refit = _refitted(best, refit)
    kept.put_back()
    if kept.session.trainer.loggers != session.trainer.loggers:  # these have not seen it
        for logger in session.trainer.loggers:
            logger.log_hyperparams(dict(kept.session.trainer.lightning_module.hparams))
    choices = {}
    if best.steps and session.cfg.trials:
        choices["trial"] = _trial_choice(attempts, best)
        choices["augment"] = _augment_choice(session, best.session)
    if best.steps:
        choices["rate"] = _rate_choice(attempts, best)
    choices["refit"] = refit
    choices["point"] = _point_choice(best)
    return Repair(kept, best, {} if val is None else {"val": val}, choices)


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


def _at_rates(training: Training) -> list[Attempt]:
    """Train at one rate after another, up to one that does not diverge."""
    attempts: list[Attempt] = []
    for rate in training.rates:
        attempts.append(_train(training, rate))
        if not attempts[-1].failure:
            break
        log.warning("%s: %s", training.name, attempts[-1].failure)
    return attempts


def _at_next_rate(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Train once more, at the next rate, where no training is ahead of the offset alone."""
    # A rate that is too large can ruin an adapter without divergence.
    if any(attempt.failure or attempt.is_ahead_of_an_offset for attempt in attempts):
        return []
    for attempt in attempts:
        smaller = [rate for rate in attempt.training.rates if rate < attempt.rate]
        if smaller and attempt.steps:
            line = "no training is ahead of an offset without one; the rate %g is tried"
            log.info(line, smaller[0])
            return [_train(attempt.training, smaller[0])]
    return []


def _session_at(training: Training, rate: float) -> Session:
    """The session of a training at a rate, with a Trainer of its own."""
    session = training.session.with_settings({"optimizer.lr": rate})
    if training.is_of_run(rate):
        trainer = make_trainer(session.cfg, session.run, loggers=session.trainer.loggers)
        return replace(session, trainer=trainer)
    session = session.with_settings({"ckpt_path": None})
    own: dict[str, Any] = {"run_name": f"{session.cfg.run_name},training={training.name}_{rate:g}"}
    for logger in session.cfg.get("logger") or {}:
        if logger not in ("tensorboard", "csv"):  # in W&B or MLflow it would be another run
            own[f"logger.{logger}"] = None
    cfg, title = session.with_settings(own).cfg, f"training {training.number} of {training.planned}"
    return replace(session, trainer=make_trainer(cfg, session.run, title, keeps_checkpoints=False))


def _train(training: Training, rate: float) -> Attempt:
    """Train once, and turn the dial where there are validation images."""
    session, is_refit = _session_at(training, rate), training.refit_at is not None
    attempt = Attempt(training, session)
    put_tensors(session.net, training.start, session.cfg.lora.dropout)
    try:
        if session.cfg.lora.scale != 0:  # 0: the offset alone
            if training.planned > 1:
                title = (training.number, training.planned, training.name)
                log.info("training %d of %d: %s", *title)
            data = data_of(session, training.selection, with_validation=is_refit)
            module = fit(session, data)
            attempt = replace(
                attempt,
                steps=module.global_step,
                validation_errors=list(module.errors_by_step.items()),
                learnt=data.learnt,
            )
        tensors = tensors_of(session.net)
        point, curve = session.of_first_process(_advised(training, session))
    except TrainingError as error:
        return replace(attempt, failure=str(error))
    return replace(attempt, tensors=tensors, point=point, curve=curve)


def _advised(training: Training, session: Session) -> tuple[Point, dict[str, Any] | None]:
    """The point that ``lora`` sets or validation images advise, or a refit's, and the curve."""
    dial = dial_of(session, training.selection)
    asked = {knob: session.cfg.lora[knob] for knob in Point._fields}
    if not len(dial.images):
        return Point(*map(float, asked.values())), None
    log.info("dial: the adapter at several scales on validation images")
    session.evaluating()
    if training.refit_at is not None:
        return dial.advise(training.refit_at._asdict(), beside=())
    return dial.advise(asked)


def _refitted(best: Attempt, refit: Choice) -> tuple[Attempt, Choice]:
    """Train the best once more, with the validation images; if that is behind the base, keep it."""
    unseen = ""
    if best.session.images.held_out.get("val") == "test":
        unseen = ", which are part of test/; only the other test images are still unseen"
    log.info("refit: once more, with the validation images%s", unseen)
    planned = best.training.planned
    training = replace(best.training, name="refit", number=planned, refit_at=best.point)
    again = _train(training, best.rate)
    why = again.failure
    if not why:
        assert again.curve is not None  # there are images, which it has learnt
        of_base = again.curve["base"]["smoothed"]
        if again.smoothed >= of_base:
            return again, refit
        why = f"{name_of_measure(again.curve['choose_by'])}, smoothed, is {again.smoothed:.1%} on "
        why += f"the validation images that it has learnt, and {of_base:.1%} of the base"
    log.warning("refit: %s; the trial is kept", why)
    return best, Choice(False, [True, False], again.images, why)


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


def _rate_choice(attempts: Sequence[Attempt], best: Attempt) -> Choice:
    """The rate of the best training, and why it is that."""
    rates = best.training.rates
    if len(rates) == 1:
        return best.session.as_set("optimizer.lr", best.rate)
    whys, images = [], 0
    for attempt in attempts:
        if attempt.training.name == best.training.name and attempt.rate > best.rate:
            whys.append(attempt.failure or f"at {attempt.rate:g} it is behind this one")
            images = 0 if attempt.failure else best.images
    return Choice(best.rate, rates, images, "; ".join(whys) or "the first that is tried")


def _trial_choice(attempts: Sequence[Attempt], best: Attempt) -> Choice:
    """The trial that validation images measure best."""
    measures: dict[str, float] = {}
    diverged: list[str] = []
    for attempt in attempts:
        name = attempt.training.name
        if attempt.failure:
            diverged.append(name)
        else:
            measures[name] = max(attempt.smoothed, measures.get(name, 0.0))
    why, images = "the only one", 0
    if len(measures) > 1:
        images = best.images
        shares = [f"{measure:.1%} with {name}" for name, measure in measures.items()]
        by = name_of_measure(best.session.cfg.choose_by)
        why = f"the highest {by} on validation images, smoothed: {', '.join(shares)}"
    for name in dict.fromkeys(diverged):
        if name not in measures:
            why += f"; {name} diverged"
    return Choice(best.training.name, list(measures), images, why)


def _augment_choice(session: Session, trial: Session) -> Choice:
    """How the kept trial changed its images: ``auto`` is as in the base's training."""
    base = session.classifier.base
    assert base is not None  # open_session has loaded it
    if trial.augment != session.augment:
        return Choice(trial.augment, why="as the trial has it")
    if session.cfg.batches.augment != AUTO:
        return session.as_set("batches.augment", trial.augment)
    if not base.record.knows_augment:
        why = "the base's file does not say how it was; augment= takes what its training had"
        return Choice(trial.augment, why=why)
    return Choice(trial.augment, why="as in the base's training")


def _point_choice(best: Attempt) -> Choice:
    """The point at which the adapter is saved, and why."""
    session, curve, value = best.session, best.curve, best.point._asdict()
    lora, reasons = session.cfg.lora, {}
    for knob in value:
        if lora[knob] != AUTO:
            reasons[knob] = session.as_set(f"lora.{knob}", lora[knob]).why
    whys = [f"the {knob} is {reason}" for knob, reason in reasons.items()]
    if len(reasons) == len(value):
        is_one = len({*reasons.values()}) == 1
        why = reasons["scale"] if is_one else "; ".join(whys)
        return Choice(value, why=why, is_set=True)
    assert curve is not None  # auto needs validation images
    why = f"the highest {name_of_measure(curve['choose_by'])} on validation images, smoothed: "
    why += f"{best.smoothed:.1%}, and {curve['base']['smoothed']:.1%} of the base"
    if lora.offset == AUTO:
        offset = offset_of(session.net)
        if not best.training.selection.targets:
            whys.append("no offset, since there is no class to move")
        elif offset is None:
            whys.append(f"no offset, since {NO_LAYER}")
        elif not offset.direction.any():
            whys.append("no offset, since no class is rarer than another")
    return Choice(value, None, curve["images"], "; ".join([why, *whys]))
