"""What a repair decides: class, augmentation, learning rate, trial, scale, and whether to refit.

Validation images decide what is ``auto`` or ``weakest``; each decision is a ``Choice``.

Where a class has few images, a training sees each of them dozens of times, and the base's own
validation images hold much of what the base does not know. So each of ``trials`` is a complete
training, the one with the fewest validation errors is kept, and ``refit=auto`` makes one more that
learns the validation images, too: Kirichenko et al. 2022, "Last Layer Re-Training is Sufficient for
Robustness to Spurious Correlations" (DFR), arXiv:2204.02937. docs/worth.md has the numbers.
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from lora_mnist.choice import AUTO, Choice
from lora_mnist.config.command import key_of
from lora_mnist.config.values import check_values
from lora_mnist.data.plan import Selection, select
from lora_mnist.errors import TrainingError, UserError, config_group
from lora_mnist.lora.layer import LoRAParametrization
from lora_mnist.lora.model import INITS, add_lora, set_lora_scale
from lora_mnist.lora.weight import layers_to_adapt, lora_adapters, lora_weights
from lora_mnist.measure.dial import measure_dial, scale_of_refit
from lora_mnist.measure.predictions import Predictions, counts_of
from lora_mnist.measure.significance import weakest
from lora_mnist.run_paths import TRIALS_FOLDER
from lora_mnist.training.module import ClassifierModule
from lora_mnist.training.session import Session

log = logging.getLogger(__name__)

#: lora.rank=auto is this, or a layer's full rank where that is smaller: docs/experiments.md.
_AUTO_RANK = 64
#: A class has few images if there are fewer than these: experiment=repair then sees each of them
#: ten times or more, and a larger step generalises better. docs/experiments.md has the numbers.
FEW_IMAGES = 400
#: A training has collapsed if it leaves more than this many times the errors, beyond chance.
_MAX_HARM = 1.5
#: The rates that optimizer.lr=auto tries, each where the one before collapses; the first is for
#: few images.
RATES = (0.003, 0.001, 0.0003, 0.0001)
#: The keys that a trial may set.
_OF_TRIALS = re.compile(r"(optimizer|loss)\..+|scheduler(\..+)?|batches\.augment|lora\.dropout")


class Repair(NamedTuple):
    """What was measured of an adapter after its training, at the chosen scale."""

    tables: dict[str, Predictions]  # val, if there are such images
    choices: dict[str, Choice]
    dial: dict[str, Any] | None
    training: ClassifierModule
    adapter: list[dict[str, Tensor]]  # as the training left it


def choose_target(
    session: Session, before: Predictions | None = None
) -> tuple[Selection, dict[str, Choice]]:
    """The images to learn and to replay, as ``target`` says: perhaps those of the weakest class."""
    cfg, images, classes = session.cfg, session.images, session.classifier.classes
    labels, target = images.train.labels, cfg.target
    if session.mistakes is not None:  # they stand at the end
        indices = torch.arange(len(labels))
        first = len(labels) - len(session.mistakes.learnt)
        return Selection([], indices[first:], indices[:first]), {}
    if target == "weakest":
        assert before is not None  # open_session has looked for validation images
        counts = counts_of(before)["before"]
        errors, numbers = counts["errors_per_class"], counts["images_per_class"]
        if not any(errors):
            expected = "a class"
            if images.held_out.get("val") != "test" and "test" not in images.held_out:
                expected += ", or data.val_from=test if the base was trained on these images"
            raise UserError(
                f"target=weakest: the base has all {len(before)} validation images right; "
                f"expected {expected}"
            )
        worst = weakest(errors, numbers)
        wrong, count = errors[worst], numbers[worst]
        share = f"{wrong} of its {count} validation images are wrong ({wrong / count:.1%})"
        choice = Choice([classes[worst]], None, len(before), f"the weakest class, {share}")
        return select(labels, classes, classes[worst]), {"target": choice}
    selection = select(labels, classes, target)
    if target is None:
        return selection, {}
    names = [classes[c] for c in selection.targets]
    return selection, {"target": session.as_set("target", names)}


def put_adapter(session: Session) -> None:
    """Put a new adapter on the network, as ``lora`` says."""
    net = session.net
    arguments: Any = OmegaConf.to_container(session.cfg.lora, resolve=True)
    del arguments["scale"]  # of the finished adapter
    is_auto = arguments["rank"] == AUTO
    if is_auto:
        arguments["rank"] = _AUTO_RANK
    with config_group("lora"):
        kind = INITS.get(arguments["init"], LoRAParametrization)  # add_lora refuses another
        ranks = arguments["rank_pattern"] = dict(arguments["rank_pattern"] or {})
        for name, weight in layers_to_adapt(net, arguments["target_modules"]).items():
            full = min(weight.base.flatten(1).shape)
            most = full if is_auto else kind.highest_rank(weight.base)
            if most is not None and type(arguments["rank"]) is int and most < arguments["rank"]:
                ranks.setdefault(f"^{name}", most)  # the user's own patterns come first
        add_lora(net, **arguments)


def trials_of(session: Session, selection: Selection) -> dict[str, Session]:
    """A session for each of ``trials``; the first alone where validation images cannot choose.

    A key that is typed counts for all of them. Trials that say the same are one.
    """
    trials: dict[str, Session] = {}
    # augment= and batches.augment= are the same.
    typed = [f"{key_of(text)}.".removeprefix("batches.") for text in session.run.typed or ()]
    takes_dropout = any(weight.factored_forward for weight in lora_weights(session.net).values())
    for name, values in (session.cfg.trials or {"lora": {}}).items():
        cfg = session.cfg.copy()
        for key, value in (values or {}).items():
            if not _OF_TRIALS.fullmatch(key):
                raise UserError(
                    f"trials.{name}: {key}: expected keys of optimizer, scheduler and loss, "
                    "batches.augment, or lora.dropout"
                )
            own = f"{key}.".removeprefix("batches.")
            is_typed = any(own.startswith(each) or each.startswith(own) for each in typed)
            if not is_typed and (takes_dropout or key != "lora.dropout"):
                OmegaConf.update(cfg, key, value, merge=False, force_add=True)
        check_values(cfg)
        trial = replace(session, cfg=cfg)
        cfg.batches.augment = trial.augment
        if any(cfg == other.cfg for other in trials.values()):
            continue
        # What does not fit is refused before anything is computed.
        trial.refuse_parts()
        trial.data(selection)
        trials[name] = trial
    if not _has_few(session, selection):
        trials = dict(islice(trials.items(), 1))
    return trials


def _has_few(session: Session, selection: Selection) -> bool:
    """Whether the classes to repair have few training images, and validation images can decide."""
    few = bool(selection.targets) and len(selection.target_indices) < FEW_IMAGES
    return few and len(session.images.val) > 0


def train_repair(
    session: Session,
    trials: Mapping[str, Session],
    selection: Selection,
    before: Predictions | None,
) -> tuple[Session, Repair]:
    """Train the adapter in each of ``trials``; keep the best one, or train it again as a refit.

    Each training begins at the same start. The tables, the dial and the scale are those of the
    best trial, which had not learnt the validation images. The loggers of the session that is
    returned have seen no training that was given up.
    """
    net, start, count = session.net, start_of(session.net), len(selection.target_indices)
    refit = choose_refit(session, selection)
    has_several = len(trials) > 1 or bool(refit.value)
    if has_several and session.cfg.ckpt_path is not None:
        raise UserError(
            f"ckpt_path={session.cfg.ckpt_path}: expected null, since this repair has several "
            "trainings; start it again: same seed, same numbers"
        )
    most = None if before is None else most_errors(counts_of(before)["before"]["errors"])
    repairs: dict[str, Repair] = {}
    collapses: dict[float, str] = {}  # what was seen, by the rate that is not tried again
    diverged: dict[str, str] = {}  # trials without a result
    for name, trial in trials.items():
        if len(trials) > 1:
            log.info("trial %d of %d: %s", len(repairs) + 1, len(trials), name)
        rates = [trial.cfg.optimizer.lr]
        if rates == [AUTO]:
            rates = list(RATES if count < FEW_IMAGES else RATES[1:])
        for rate in rates:
            is_last = rate == rates[-1]
            if rate in collapses and not is_last:
                continue
            one, folder = trial.at_rate(rate), f"{TRIALS_FOLDER}/{name}_{rate:g}"
            if has_several:
                one = one.in_folder(folder)
            start_again(net, start, trial.cfg.lora.dropout)
            try:
                training = one.fit(trial.data(selection), None if is_last else most)
            except TrainingError as error:
                if len(trials) == 1:
                    raise
                diverged[name] = str(error)
                break
            if not training.has_collapsed:
                break
            step, errors = list(training.errors_by_step.items())[-1]
            collapses[rate] = f"at {rate:g} it collapses, with {errors:,} errors at step {step}"
            log.warning("training: %s; the next rate is tried", collapses[rate])
            if not has_several:
                trial = trial.set_aside(folder)
        if name in diverged:
            log.warning("trial %s collapses: %s", name, diverged[name])
            continue
        choices = {"refit": refit, "rate": trial.as_set("optimizer.lr", rate)}
        if len(rates) > 1:
            reasons = [f"for {count:,} images", *collapses.values()]
            choices["rate"] = Choice(rate, rates, len(session.images.val), "; ".join(reasons))
        repairs[name] = _measured(trial, selection, before, training, choices)
        if not has_several:
            session = replace(session, trainer=trial.trainer)
    if not repairs:
        reasons = [f"{name}: {why}" for name, why in diverged.items()]
        raise TrainingError(f"trials: each of them collapses; {'; '.join(reasons)}")
    best = choose_trial(session, repairs)
    if diverged:
        best = best._replace(why=f"{best.why}; {', '.join(diverged)} collapsed")
    repair, trial = repairs[best.value], trials[best.value]
    if refit.value:
        repair = _refit(trial, selection, before, repair, start)
        if not repair.choices["refit"].value:
            session = session.set_aside(f"{TRIALS_FOLDER}/refit")
    else:
        start_again(net, repair.adapter, trial.cfg.lora.dropout)
    choices = repair.choices
    if not choices["refit"].value and repair.training.trainer is not session.trainer:
        for logger in session.trainer.loggers:  # they have not seen this training
            logger.log_hyperparams(dict(repair.training.hparams))
    if session.cfg.trials:
        choices = {"trial": best, "augment": choose_augment(session, trial), **choices}
    set_lora_scale(net, choices["scale"].value)
    return session, repair._replace(choices=choices)


def _refit(
    session: Session,
    selection: Selection,
    before: Predictions | None,
    trial: Repair,
    start: Sequence[Mapping[str, Tensor]],
) -> Repair:
    """Train once more, with the validation images; if that collapses, keep the trial's adapter."""
    net, dropout = session.net, session.cfg.lora.dropout
    unseen = ""
    if session.images.held_out.get("val") == "test":
        unseen = ", which are part of test/; only the other test images are still unseen"
    log.info("refit: once more, with the validation images%s", unseen)
    start_again(net, start, dropout)
    rate = trial.choices["rate"]
    try:
        session.at_rate(rate.value).fit(session.data(selection, with_validation=True))
    except TrainingError as error:
        why = f"it collapses: {error}"
    else:
        set_lora_scale(net, trial.choices["scale"].value)
        refitted = session.predictions("val", before)
        assert refitted is not None
        after = counts_of(refitted)["after"]["errors"]
        errors = counts_of(trial.tables["val"])["after"]["errors"]
        if not session.of_first_process(after > most_errors(errors)):
            return trial
        why = f"it leaves {after:,} errors in the validation images that it has learnt, and "
        why += f"{errors:,} are left by the trial, which had not learnt them"
    log.warning("refit: %s; the trial is kept", why)
    start_again(net, trial.adapter, dropout)
    choices = {"refit": Choice(False, [True, False], len(session.images.val), why), "rate": rate}
    return _measured(session, selection, before, trial.training, choices)


def _measured(
    session: Session,
    selection: Selection,
    before: Predictions | None,
    training: ClassifierModule,
    choices: Mapping[str, Choice],
) -> Repair:
    """What validation images say of the adapter that was trained, at the scale that they advise."""
    adapter = start_of(session.net)
    val = session.predictions("val", before)
    dial = try_scales(session, selection, val)
    scale = choose_scale(session, dial, choices["refit"])
    set_lora_scale(session.net, scale.value)
    if scale.value != 1:
        val = session.predictions("val", before)
    tables = {} if val is None else {"val": val}
    return Repair(tables, {"scale": scale, **choices}, dial, training, adapter)


def most_errors(errors: int) -> float:
    """With more validation errors than these, where there were ``errors``, it has collapsed."""
    return _MAX_HARM * errors + 4 * math.sqrt(max(1, errors))


def choose_trial(session: Session, repairs: Mapping[str, Repair]) -> Choice:
    """The trial with the fewest validation errors."""
    if len(repairs) == 1:
        (name,) = repairs
        return Choice(name, why="others are tried only for a class of few images")
    errors: dict[str, int] = {}
    for name, repair in repairs.items():
        errors[name] = counts_of(repair.tables["val"])["after"]["errors"]
    best = session.of_first_process(min(errors, key=lambda name: errors[name]))
    counts = [f"{count:,} with {name}" for name, count in errors.items()]
    why = f"the fewest validation errors: {', '.join(counts)}"
    return Choice(best, list(errors), len(session.images.val), why)


def choose_augment(session: Session, trial: Session) -> Choice:
    """How the kept trial changed its images: ``auto`` is as in the base's training."""
    base, why = session.classifier.base, "as in the base's training"
    if trial.augment != session.augment:
        why = "as the trial has it"
    elif session.cfg.batches.augment != AUTO:
        return session.as_set("batches.augment", trial.augment)
    elif base is None or "augment" not in base.record.get("made", {}):
        why = "the base's file does not say how it was; augment= takes what its training had"
    return Choice(trial.augment, why=why)


def choose_refit(session: Session, selection: Selection) -> Choice:
    """Whether one more training learns the validation images as well, as ``refit`` says."""
    refit = session.cfg.refit
    if refit != AUTO:
        return session.as_set("refit", refit)
    if session.mistakes is not None:
        return Choice(False, why="mistakes are learnt")
    if not len(session.images.val):
        return Choice(False, why="there are no validation images")
    count, few = len(selection.target_indices), _has_few(session, selection)
    why = f"{count:,} images to learn, {'fewer' if few else 'no fewer'} than {FEW_IMAGES}"
    return Choice(few, [True, False], why=why)


def try_scales(
    session: Session, selection: Selection, val: Predictions | None
) -> dict[str, Any] | None:
    """The dial of the adapter on validation images; ``None`` if it is not wanted."""
    cfg, images = session.cfg, session.images.val
    wants_dial = cfg.dial or (cfg.dial is None and not session.run.is_sweep)
    if val is None or not (wants_dial or cfg.lora.scale == AUTO):
        return None
    log.info("dial: the adapter at several scales on validation images")
    with session.evaluating() as device:
        batches = partial(session.classifier.dataset.batches, images, device, name="dial")
        return measure_dial(session.net, batches, val, selection.targets, cfg.seed)


def choose_scale(session: Session, dial: Mapping[str, Any] | None, refit: Choice) -> Choice:
    """The scale at which the adapter is saved: ``lora.scale``, or what the dial advises."""
    scale = session.cfg.lora.scale
    if scale != AUTO:
        return session.as_set("lora.scale", float(scale))
    assert dial is not None  # open_session has looked for validation images
    advised = dial["advised"]
    errors = dict(zip(dial["scales"], dial["errors"], strict=True))
    chosen = session.of_first_process(scale_of_refit(dial) if refit.value else advised)
    why = f"advised by validation images: {errors[advised]:,} errors, {errors[0]:,} of the base"
    if chosen != advised:
        why = f"a refit learns these images; before it, they advise {advised:g}"
    return Choice(chosen, dial["scales"], dial["images"], why)


def start_of(net: nn.Module) -> list[dict[str, Tensor]]:
    """A copy of what the adapters on ``net`` start from."""
    states = []
    for adapter in lora_adapters(net):
        states.append({name: value.clone() for name, value in adapter.state_dict().items()})
    return states


def start_again(net: nn.Module, start: Sequence[Mapping[str, Tensor]], dropout: float) -> None:
    """Put the adapters on ``net`` back to their start; ``dropout`` is for the next training."""
    for adapter, state in zip(lora_adapters(net), start, strict=True):
        adapter.load_state_dict(state)
        for parameter in adapter.parameters():
            parameter.grad = None
        adapter.scale, adapter.dropout = 1.0, dropout
