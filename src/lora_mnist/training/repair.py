"""The trainings of a repair: several attempts, the best of them, and perhaps a refit of that.

Where a class has few images, a training sees each of them dozens of times, and the base's own
validation images hold much of what the base does not know. So each of ``trials`` is a complete
training, the one that gains most on validation images is kept (:mod:`.measure.dial` has the number
that decides), and ``refit=auto`` makes one more that learns these images, too: Kirichenko et al.
2022, "Last Layer Re-Training is Sufficient for Robustness to Spurious Correlations" (DFR),
arXiv:2204.02937. docs/experiments.md has the numbers.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from lora_mnist.choice import AUTO, Choice
from lora_mnist.data.plan import Selection
from lora_mnist.errors import TrainingError, UserError
from lora_mnist.measure.predictions import Predictions
from lora_mnist.show.screen import print_parameters
from lora_mnist.training.attempts import Attempt, Failure, Training, attempted, tensors_of
from lora_mnist.training.reasons import choices_of
from lora_mnist.training.recipe import choose_refit, trials_of
from lora_mnist.training.session import Session
from lora_mnist.training.target import with_validation

log = logging.getLogger(__name__)

#: The rates that optimizer.lr=auto tries: the next if one diverges, or is not ahead of an offset.
RATES = (0.001, 0.0003, 0.0001)


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
    tried: list[Attempt | Failure] = []
    for number, (name, cfg) in enumerate(trials.items(), start=1):
        title, rate = f"training {number} of {planned}", cfg.optimizer.lr
        rates = RATES if rate == AUTO else (rate,)
        images = session.images
        training = Training(name, title, planned == 1, cfg, images, selection, start, rates)
        tried += _at_rates(session, training)
    tried += _at_next_rate(session, _attempts_in(tried))
    attempts = _attempts_in(tried)
    if not attempts:
        raise TrainingError("; ".join(each.why for each in tried if isinstance(each, Failure)))
    kept = best = max(attempts, key=lambda attempt: attempt.score)
    best.put_on(session.net)
    val = session.predictions("val", before)  # now: a refit learns these images
    if refit.value and best.point.scale == 0:
        refit = Choice(False, why="the trial adds nothing that validation images show")
    elif refit.value:
        kept, refit = _refitted(session, best, refit, f"training {planned} of {planned}")
    kept.put_on(session.net)
    if kept.trainer.loggers != session.trainer.loggers:  # these have not seen it
        for logger in session.trainer.loggers:
            logger.log_hyperparams(dict(kept.trainer.lightning_module.hparams))
    choices = choices_of(session, tried, best, refit)
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


def _attempts_in(tried: Sequence[Attempt | Failure]) -> list[Attempt]:
    """Those that have not diverged."""
    return [each for each in tried if isinstance(each, Attempt)]


def _at_rates(session: Session, training: Training) -> list[Attempt | Failure]:
    """Train at one rate after another, up to one that does not diverge."""
    tried: list[Attempt | Failure] = []
    for rate in training.rates:
        tried.append(attempted(session, training, rate))
        if isinstance(tried[-1], Attempt):
            break
    return tried


def _at_next_rate(session: Session, attempts: Sequence[Attempt]) -> list[Attempt | Failure]:
    """Train once more, at the next rate, where no training is ahead of the offset alone."""
    # A rate that is too large can ruin an adapter without divergence.
    if any(attempt.is_ahead_of_an_offset for attempt in attempts):
        return []
    for attempt in attempts:
        smaller = [rate for rate in attempt.training.rates if rate < attempt.rate]
        if smaller and attempt.steps:
            line = "no training is ahead of an offset without one; the rate %g is tried"
            log.info(line, smaller[0])
            return [attempted(session, attempt.training, smaller[0])]
    return []


def _refitted(session: Session, best: Attempt, refit: Choice, title: str) -> tuple[Attempt, Choice]:
    """Train the best once more, with the validation images; if that is behind the base, keep it."""
    unseen = ""
    if session.images.held_out.get("val") == "test":
        unseen = ", which are part of test/; only the other test images are still unseen"
    log.info("refit: once more, with the validation images%s", unseen)
    images, selection = with_validation(session, best.training.selection)
    plan = replace(best.training, name="refit", title=title, images=images, selection=selection)
    again = attempted(session, replace(plan, refit_at=best.point), best.rate)
    if isinstance(again, Failure):
        why, seen = again.why, 0
    else:
        assert again.curve is not None  # there are images, which it has learnt
        of_base, seen = again.curve["base"]["score"], again.images
        if again.score >= of_base:
            return again, refit
        why = f"its score is {again.score:.3f} on the validation images that it has learnt, and "
        why += f"{of_base:.3f} of the base"
    log.warning("refit: %s; the trial is kept", why)
    return best, Choice(False, [True, False], seen, why)
