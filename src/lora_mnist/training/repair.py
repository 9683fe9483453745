"""The trainings of a repair: several trials, the best of them, and perhaps its refit.

If a class has few images, a training sees each of them dozens of times, and validation images show
much that the base does not know. So each of ``trials`` is a complete training, the one with the
highest score on validation images is kept (:mod:`.measure.score`), and ``refit=auto`` trains it
once more with these images among its training images: Kirichenko et al. 2022, "Last Layer
Re-Training is Sufficient for Robustness to Spurious Correlations" (DFR), arXiv:2204.02937.
docs/experiments.md has the numbers.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from lora_mnist.choice import Choice, Reason
from lora_mnist.config.make import with_values
from lora_mnist.data.plan import Selection
from lora_mnist.errors import TrainingError, UserError
from lora_mnist.measure.predictions import Predictions
from lora_mnist.project import expand_path
from lora_mnist.show.reasons import format_reason
from lora_mnist.show.screen import print_parameters
from lora_mnist.training.adapter import NO_HEAD, add_adapter, find_last_linear
from lora_mnist.training.explain_choices import collect_choices, explain_point
from lora_mnist.training.run_training import Failure, TrainingResult, run_training
from lora_mnist.training.session import Session
from lora_mnist.training.trials import (
    LAST_LINEAR,
    Training,
    can_choose,
    choose_refit,
    plan_refit,
    plan_trainings,
    trains_last_layer,
)

log = logging.getLogger(__name__)


class Repair(NamedTuple):
    """The result of a repair, with its adapter on the network."""

    kept: TrainingResult  # the one that is saved: the best one, or its refit
    best: TrainingResult  # has the highest score; a refit has seen the images
    head: TrainingResult | None  # the best of the last layer alone
    tables: dict[str, Predictions]  # val, if there are such images
    choices: dict[str, Choice]

    def about(self) -> dict[str, Any]:
        """Return what results.json has of its trainings."""
        return {**self.best.about(), "head": self.head and self.head.row}


class Outcomes(NamedTuple):
    """The results of several trainings."""

    results: list[TrainingResult]
    failures: list[Failure]


def train_head(session: Session, selection: Selection) -> Outcomes:
    """Train the last layer alone, on stored features, in each trial, if a choice may be made.

    The results can be chosen like a trial's. The adapter of the last training stays on the network.
    """
    cfg = session.cfg
    none = Outcomes([], [])
    is_asked = cfg.head and session.trains and not trains_last_layer(cfg)
    if not (is_asked and can_choose(session, selection)):
        return none
    if find_last_linear(session) is None:
        log.info("the last layer alone: not trained, since %s", NO_HEAD)
        return none
    log.info("the last layer alone, on features that are computed once")
    own = with_values(cfg, {"lora.target_modules": LAST_LINEAR})
    with torch.random.fork_rng(devices=[]):  # other adapters start with the same random numbers
        add_adapter(replace(session, cfg=own), selection)
        trainings = plan_trainings(replace(session, cfg=own), selection)
        heads = [replace(training, name="head") for training in trainings]
        return _train(session, heads, none)


def train_repair(
    session: Session, selection: Selection, before: Predictions | None, head: Outcomes
) -> Repair:
    """Train the adapter in each trial; keep the best one, or train it again as a refit."""
    trainings, refit = plan_trainings(session, selection), choose_refit(session, selection)
    planned = len(trainings) + bool(refit.value)
    _refuse_several(session, planned)
    if session.trains:
        print_parameters(session.net)
    trials = _train(session, [replace(training, total=planned) for training in trainings], head)
    if smaller := _plan_smaller_rate(trials):
        line = "no training is better than an offset alone; trying learning rate %g"
        log.info(line, smaller.lr)
        more = _train(session, [smaller], head)
        trials = Outcomes(trials.results + more.results, trials.failures + more.failures)
    results, failures = head.results + trials.results, head.failures + trials.failures
    if not results:
        raise TrainingError("; ".join(each.reason.facts["error"] for each in failures))
    kept = best = max(results, key=lambda result: result.score)
    best.load_into(session)
    val = session.predict_split("val", before)  # before a refit, which is trained on these images
    if refit.value and best.point.scale == 0:
        refit = Choice(False, [Reason("trial_adds_nothing")])
    elif refit.value:
        kept, refit = _train_refit(session, best, refit, planned)
    kept.load_into(session)
    if kept.hparams is not None:
        for logger in session.trainer.loggers:
            logger.log_hyperparams(dict(kept.hparams))
    choices = collect_choices(session, results, failures, best) | {"refit": refit}
    choices["point"] = explain_point(session, best)
    best_head = max(head.results, key=lambda result: result.score, default=None)
    return Repair(kept, best, best_head, {} if val is None else {"val": val}, choices)


def _train(session: Session, trainings: Sequence[Training], head: Outcomes) -> Outcomes:
    """Run each training at the first of its learning rates that does not diverge.

    A training may end early if it has lost to the best one before it, ``head`` among them.
    """
    trained = Outcomes([], [])
    for training in trainings:
        for lr in training.lrs[training.lrs.index(training.lr) :]:
            before = head.results + trained.results
            best = max(before, key=lambda result: result.score, default=None)
            tried = run_training(session, training.with_lr(lr), best)
            if isinstance(tried, TrainingResult):
                trained.results.append(tried)
                break
            trained.failures.append(tried)
            if tried.is_lost:
                break
    return trained


def _refuse_several(session: Session, planned: int) -> None:
    """Refuse options that only a single training can have, or warn of them."""
    if planned == 1:
        return
    path = session.cfg.ckpt_path
    if path is not None and expand_path(path).is_file():
        raise UserError(
            f"ckpt_path={path}: expected the folder of a run with finished trainings, or null, "
            "since this repair has several trainings"
        )
    is_usual = bool((session.cfg.get("callbacks") or {}).get("checkpoint"))
    if len(session.trainer.checkpoint_callbacks) > is_usual:
        line = "callbacks: no checkpoint is kept, since this repair has %d trainings"
        log.warning(line, planned)


def _plan_smaller_rate(trials: Outcomes) -> Training | None:
    """Plan a training at the next learning rate if none is ahead of the offset alone."""
    # A learning rate that is too large can ruin an adapter without divergence.
    if any(result.beats_offset for result in trials.results):
        return None
    behind = [result.training for result in trials.results if result.is_trained]
    behind += [failure.training for failure in trials.failures if failure.is_lost]
    for training in behind:
        smaller = [lr for lr in training.lrs if lr < training.lr]
        if smaller:
            return training.with_lr(smaller[0])
    return None


def _train_refit(
    session: Session, best: TrainingResult, refit: Choice, planned: int
) -> tuple[TrainingResult, Choice]:
    """Train the best trial again, with the validation images; keep the trial if that is worse."""
    unseen = ""
    if session.images.held_out.get("val") == "test":
        unseen = ", which are part of test/; only the other test images are still unseen"
    log.info("refit: training once more, with the validation images%s", unseen)
    training = plan_refit(session, best.training, best.point, planned)  # the last one
    result = run_training(session, training)
    images = 0
    if isinstance(result, Failure):
        reason = result.reason
    else:
        assert result.curve is not None  # there are images, on which it was trained
        base_score, images = result.curve["base"]["score"], result.num_val_images
        if result.score >= base_score:
            return result, refit
        reason = Reason("refit_behind", score=result.score, base_score=base_score)
    log.warning("refit: %s; the trial is kept", format_reason(reason.record))
    return best, Choice(False, [reason], [True, False], images)
