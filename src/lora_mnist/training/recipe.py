"""What a repair decides: class, augmentation, rate, trial, scale and offset, and whether to refit.

Validation images decide what is ``auto``, by the measure that ``choose_by`` names (:mod:`.gain`),
and what is ``weakest`` or ``weak`` (:mod:`.significance`); each decision is a ``Choice``.

Where a class has few images, a training sees each of them dozens of times, and the base's own
validation images hold much of what the base does not know. So each of ``trials`` is a complete
training, the one that gains most on validation images is kept, and ``refit=auto`` makes one more
that learns these images, too: Kirichenko et al. 2022, "Last Layer Re-Training is Sufficient for
Robustness to Spurious Correlations" (DFR), arXiv:2204.02937. docs/worth.md has the numbers.
"""

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from lora_mnist.choice import AUTO, WEAK, Choice
from lora_mnist.config.run import is_in, key_of
from lora_mnist.config.values import check_values
from lora_mnist.data.plan import Selection, select
from lora_mnist.errors import TrainingError, UserError, config_group
from lora_mnist.lora.base_state import lora_state_dict
from lora_mnist.lora.layer import LoRAParametrization
from lora_mnist.lora.model import KINDS, add_lora, add_offset, set_lora_offset, set_lora_scale
from lora_mnist.lora.offset import last_layer
from lora_mnist.lora.weight import layers_to_adapt, lora_adapters, lora_weights
from lora_mnist.measure.dial import (
    SCALES,
    Collapse,
    dial_curve,
    images_of_dial,
    offset_for,
    offset_of,
    offsets_of,
)
from lora_mnist.measure.gain import least_measure
from lora_mnist.measure.predictions import Predictions, counts_of
from lora_mnist.measure.significance import chance_text, weak, weakest
from lora_mnist.run_paths import TRIALS_FOLDER
from lora_mnist.show.reading import number_of
from lora_mnist.training.checkpoint import hyperparameters_of
from lora_mnist.training.module import ClassifierModule
from lora_mnist.training.session import Session
from lora_mnist.training.trainer import TimeOfAll

log = logging.getLogger(__name__)

#: lora.rank=auto is this, or a layer's full rank where that is smaller: docs/experiments.md.
_AUTO_RANK = 64
#: A class has few images if there are fewer than these: experiment=repair then sees each of them
#: ten times or more, and tries more. docs/experiments.md has the numbers.
FEW_IMAGES = 400
#: The rates that optimizer.lr=auto tries, each where the one before collapses.
RATES = (0.001, 0.0003, 0.0001)
#: Why a network has no offset.
_NO_LAYER = "no nn.Linear of the network has a bias that is added to the logits as it is"
#: The keys that a trial may set.
_OF_TRIALS = re.compile(r"(optimizer|loss)\..+|scheduler(\..+)?|batches\.augment|lora\.dropout")


class Repair(NamedTuple):
    """What was measured of an adapter after its training, at the chosen scale and offset."""

    tables: dict[str, Predictions]  # val, if there are such images
    choices: dict[str, Choice]
    dial: dict[str, Any] | None
    training: ClassifierModule
    factors: dict[str, Tensor]  # as the training left them
    measure: float  # on validation images, as choose_by says


def choose_target(
    session: Session, before: Predictions | None = None
) -> tuple[Selection, dict[str, Choice]]:
    """The images to learn and to replay, as ``target`` says: perhaps those of weak classes."""
    cfg, images, classes = session.cfg, session.images, session.classifier.classes
    labels, target = images.train.labels, cfg.target
    if session.mistakes is not None:  # they stand at the end
        indices = torch.arange(len(labels))
        first = len(labels) - len(session.mistakes.train)
        return Selection([], indices[first:], indices[:first]), {}
    if target in WEAK:
        assert before is not None  # open_session has looked for validation images
        names, why = _weak_ones(target, before, classes)
        if not names:
            expected = "a class"
            if images.held_out.get("val") != "test" and "test" not in images.held_out:
                expected += ", or data.val_from=test if the base was trained on these images"
            raise UserError(f"target={target}: {why}; expected {expected}")
        choice = Choice(names, None, len(before), why)
        return select(labels, classes, names), {"target": choice}
    selection = select(labels, classes, target)
    if target is None:
        return selection, {}
    names = [classes[c] for c in selection.targets]
    return selection, {"target": session.as_set("target", names)}


def _weak_ones(target: str, before: Predictions, classes: Sequence[str]) -> tuple[list[str], str]:
    """The names of the weakest class, or of all weak ones, and why; none, and why."""
    counts = counts_of(before)["before"]
    errors, numbers = counts["errors_per_class"], counts["images_per_class"]
    if not any(errors):
        return [], f"the base has all {len(before)} validation images right"
    if target == "weakest":
        worst = weakest(errors, numbers)
        share = f"{errors[worst]} of its {numbers[worst]} validation images are wrong"
        share += f" ({errors[worst] / numbers[worst]:.1%})"
        if unseen := [name for name, number in zip(classes, numbers, strict=True) if not number]:
            share += f"; without any, nothing is known of {', '.join(unseen)}"
        return [classes[worst]], f"the weakest class, {share}"
    found = weak(errors, numbers)
    if not found:
        return [], "no class has more errors on validation images than the rest beyond chance"
    each = []
    for c, p_value in found.items():
        each.append(f"{classes[c]} {errors[c]} of {numbers[c]} ({chance_text(p_value)})")
    why = f"weaker than the rest beyond chance, errors of validation images: {', '.join(each)}"
    return [classes[c] for c in found], why


def put_adapter(session: Session, selection: Selection) -> None:
    """Put a new adapter on the network, as ``lora`` says."""
    net = session.net
    arguments: Any = OmegaConf.to_container(session.cfg.lora, resolve=True)
    del arguments["scale"]  # of the finished adapter
    offset, layer = arguments.pop("offset"), None
    if offset and selection.targets:
        layer = _layer_of_offset(session)
    if layer is None and offset not in (0, AUTO):
        why = "there is no class to move"
        if selection.targets:
            why = _NO_LAYER
        raise UserError(f"lora.offset={offset}: expected 0 or auto; {why}")
    is_auto = arguments["rank"] == AUTO
    if is_auto:
        arguments["rank"] = _AUTO_RANK
    with config_group("lora"):
        kind = KINDS.get(arguments["init"], LoRAParametrization)  # add_lora refuses another
        ranks = arguments["rank_pattern"] = dict(arguments["rank_pattern"] or {})
        for name, weight in layers_to_adapt(net, arguments["target_modules"]).items():
            full = min(weight.base.flatten(1).shape)
            is_limited = is_auto or kind.limits_rank
            if is_limited and type(arguments["rank"]) is int and full < arguments["rank"]:
                ranks.setdefault(f"^{name}", full)  # the user's own patterns come first
        # There it draws its first values: the same on every machine.
        add_lora(net.cpu(), **arguments)
    if layer is not None:
        labels, classes = session.images.train.labels, session.classifier.classes
        counts = labels.bincount(minlength=len(classes)).float()
        own = offset_for(counts, selection.targets)
        add_offset(net, layer, own.direction, own.most)


def _layer_of_offset(session: Session) -> str | None:
    """The layer whose bias moves the logits, which the network shows on some images."""
    images, dataset = session.images.train, session.classifier.dataset
    some = torch.linspace(0, len(images) - 1, 4).long().tolist()
    pixels = images.take(some)[0].to(session.evaluating())
    return last_layer(session.net, dataset.normalise(pixels))


def trials_of(session: Session, selection: Selection) -> dict[str, Session]:
    """A session for each of ``trials``; the first alone where validation images cannot choose.

    A key that is typed counts for all of them. Trials that say the same are one.
    """
    lora, counted = session.cfg.lora, session.images.val.labels
    asked = [f"lora.{key}=auto" for key in ("scale", "offset") if lora[key] == AUTO]
    for c in selection.targets if asked else ():
        name, count = session.classifier.classes[c], int((counted == c).sum())
        if not count:
            raise UserError(
                f"{', '.join(asked)}: {name} has no validation images, which decide; expected some "
                "in val/, a larger data.val_size, or lora.scale=1 lora.offset=0"
            )
        if count < 5:
            few = "%s: %s has only %s, so chance decides"
            log.warning(few, ", ".join(asked), name, number_of(count, "validation image"))
    trials: dict[str, Session] = {}
    # augment= and batches.augment= are the same.
    typed = [key_of(text).removeprefix("batches.") for text in session.run.typed or ()]
    takes_dropout = any(weight.factored_forward for weight in lora_weights(session.net).values())
    for name, values in (session.cfg.trials or {"lora": {}}).items():
        cfg = session.cfg.copy()
        for key, value in (values or {}).items():
            if not _OF_TRIALS.fullmatch(key):
                raise UserError(
                    f"trials.{name}: {key}: expected keys of optimizer, scheduler and loss, "
                    "batches.augment, or lora.dropout"
                )
            own = key.removeprefix("batches.")
            is_typed = any(is_in(own, each) or is_in(each, own) for each in typed)
            if not is_typed and (takes_dropout or key != "lora.dropout"):
                OmegaConf.update(cfg, key, value, merge=False, force_add=True)
        check_values(cfg)
        trial = replace(session, cfg=cfg)
        cfg.batches.augment = trial.augment
        if any(cfg == other.cfg for other in trials.values()):
            continue
        # What does not fit is refused before anything is computed.
        trial.check_training()
        trial.data(selection)
        trials[name] = trial
    if not _has_few(session, selection):
        trials = dict(islice(trials.items(), 1))
    return trials


def _has_few(session: Session, selection: Selection) -> bool:
    """Whether a class to repair has few training images, and validation images can decide."""
    few = bool(selection.targets) and rarest_of(session, selection) < FEW_IMAGES
    return few and len(session.images.val) > 0


def rarest_of(session: Session, selection: Selection) -> int:
    """The number of images to learn: of several classes, those of the rarest."""
    if not selection.targets:
        return len(selection.target_indices)
    counts = session.images.train.labels.bincount(minlength=len(session.classifier.classes))
    return int(counts[selection.targets].min())


@dataclass
class Ladder:
    """How each training of a repair begins, and goes on at a smaller rate where it collapses."""

    start: dict[str, Tensor]
    limit: Collapse | None
    time_of_all: TimeOfAll | None  # of several trainings, each with a folder of its own
    collapses: dict[float, str] = field(default_factory=dict)  # what was seen, by the rate

    def train(
        self, trial: Session, name: str, selection: Selection
    ) -> tuple[Session, ClassifierModule, Choice]:
        """Train at the rate that is set or, with ``auto``, at the first that does not collapse."""
        rates, first = [trial.cfg.optimizer.lr], "the first that is tried"
        is_auto = rates == [AUTO]
        if is_auto:
            rates = list(RATES)
            if trial.cfg.ckpt_path is not None:  # of a rate before which others collapsed
                begun = hyperparameters_of(trial.cfg.ckpt_path)["optimizer.lr"]
                rates = rates[rates.index(begun) if begun in rates else 0 :]
                first = "the checkpoint's"
        for rate in rates:
            is_last = rate == rates[-1]
            if rate in self.collapses and not is_last:
                continue
            one, folder = trial.at_rate(rate), f"{TRIALS_FOLDER}/{name}_{rate:g}"
            if self.time_of_all is not None:
                one = one.in_folder(folder)
                one.trainer.callbacks.append(self.time_of_all)  # type: ignore[attr-defined]
            set_factors(trial.net, self.start, trial.cfg.lora.dropout)
            training = one.fit(trial.data(selection), None if is_last else self.limit)
            if not training.has_collapsed:
                break
            step, errors = list(training.errors_by_step.items())[-1]
            seen = f"at {rate:g} it collapses, with {number_of(errors, 'error')} at step {step}"
            self.collapses[rate] = seen  # no other trial tries it again
            log.warning("training: %s; the next rate is tried", seen)
            if self.time_of_all is None:
                trial = trial.set_aside(folder)
        if not is_auto:
            return trial, training, trial.as_set("optimizer.lr", rate)
        why = "; ".join(self.collapses.values()) or first
        return trial, training, Choice(rate, rates, len(trial.images.val), why)


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
    net, start = session.net, factors_of(session.net)
    refit = choose_refit(session, selection)
    has_several = len(trials) > 1 or bool(refit.value)
    if has_several and session.cfg.ckpt_path is not None:
        raise UserError(
            f"ckpt_path={session.cfg.ckpt_path}: expected null, since this repair has several "
            "trainings; start it again: same seed, same numbers"
        )
    is_auto = AUTO in [trial.cfg.optimizer.lr for trial in trials.values()]
    time_of_all = TimeOfAll(len(trials) + bool(refit.value), is_auto * (len(RATES) - 1))
    ladder = Ladder(start, collapse_after(session, before), time_of_all if has_several else None)
    repairs: dict[str, Repair] = {}
    diverged: dict[str, str] = {}  # trials without a result
    for number, (name, trial) in enumerate(trials.items(), start=1):
        if len(trials) > 1:
            log.info("trial %d of %d: %s", number, len(trials), name)
        try:
            trial, training, rate = ladder.train(trial, name, selection)
        except TrainingError as error:
            if len(trials) == 1:
                raise
            diverged[name] = str(error)
            log.warning("trial %s collapses: %s", name, error)
            continue
        dial = try_dial(trial, selection)
        choices = {**choose_dial(trial, selection, dial), "refit": refit, "rate": rate}
        factors = factors_of(net)
        turn(net, choices)
        val, value = trial.predictions("val", before), 0.0
        if val is not None:
            value = counts_of(val)["after"][trial.cfg.choose_by]
        tables = {} if val is None else {"val": val}
        repairs[name] = Repair(tables, choices, dial, training, factors, value)
        if not has_several:
            session = replace(session, trainer=trial.trainer)
    if not repairs:
        reasons = [f"{name}: {why}" for name, why in diverged.items()]
        raise TrainingError(f"trials: each of them collapses; {'; '.join(reasons)}")
    best = choose_trial(session, repairs)
    if len(repairs) == 1 and _has_few(session, selection):
        best = best._replace(why="the only one")
        if len(trials) < len(session.cfg.trials or {}):
            best = best._replace(why="with what is typed, on this network, all trials are the same")
    if diverged:
        best = best._replace(why=f"{best.why}; {', '.join(diverged)} collapsed")
    repair, trial = repairs[best.value], trials[best.value]
    if refit.value:
        repair = _refit(trial, selection, before, repair, start)
        if not repair.choices["refit"].value:
            session = session.set_aside(f"{TRIALS_FOLDER}/refit")
    else:
        set_factors(net, repair.factors, trial.cfg.lora.dropout)
    choices = repair.choices
    if not choices["refit"].value and repair.training.trainer is not session.trainer:
        for logger in session.trainer.loggers:  # they have not seen this training
            logger.log_hyperparams(dict(repair.training.hparams))
    if session.cfg.trials:
        choices = {"trial": best, "augment": choose_augment(session, trial), **choices}
    turn(net, choices)
    return session, repair._replace(choices=choices)


def _refit(
    session: Session,
    selection: Selection,
    before: Predictions | None,
    trial: Repair,
    start: Mapping[str, Tensor],
) -> Repair:
    """Train once more, with the validation images; if that collapses, keep the trial's adapter."""
    net, dropout = session.net, session.cfg.lora.dropout
    unseen = ""
    if session.images.held_out.get("val") == "test":
        unseen = ", which are part of test/; only the other test images are still unseen"
    log.info("refit: once more, with the validation images%s", unseen)
    set_factors(net, start, dropout)
    rate = trial.choices["rate"]
    try:
        session.at_rate(rate.value).fit(session.data(selection, with_validation=True))
    except TrainingError as error:
        why = f"it collapses: {error}"
    else:
        turn(net, trial.choices)
        refitted = session.predictions("val", before)
        limit = collapse_after(session, trial.tables["val"])
        assert refitted is not None
        assert limit is not None
        value = counts_of(refitted)["after"][session.cfg.choose_by]
        if not session.of_first_process(value < limit.least):
            return trial
        why = f"{name_of_measure(session)} {value:.1%} on the validation images that it has "
        why += f"learnt, and {trial.measure:.1%} of the trial, which had not learnt them"
    log.warning("refit: %s; the trial is kept", why)
    set_factors(net, trial.factors, dropout)
    refit = Choice(False, [True, False], len(session.images.val), why)
    turn(net, trial.choices)
    return trial._replace(choices=trial.choices | {"refit": refit})


def collapse_after(session: Session, table: Predictions | None) -> Collapse | None:
    """When a training has collapsed, beside the last predictions of a table."""
    if table is None:
        return None
    counts = counts_of(table)
    last = counts.get("after", counts["before"])
    least = least_measure(last["errors_per_class"], last["images_per_class"], session.cfg.choose_by)
    offset = offset_of(session.net)
    direction = None if offset is None else offset.direction.cpu()
    return Collapse(least, session.cfg.choose_by, direction, offsets_of(offset))


def choose_trial(session: Session, repairs: Mapping[str, Repair]) -> Choice:
    """The trial that validation images measure best."""
    if len(repairs) == 1:
        (name,) = repairs
        return Choice(name, why="others are tried only for a class of few images")
    best = session.of_first_process(max(repairs, key=lambda name: repairs[name].measure))
    shares = [f"{repair.measure:.1%} with {name}" for name, repair in repairs.items()]
    why = f"the highest {name_of_measure(session)} on validation images: {', '.join(shares)}"
    return Choice(best, list(repairs), len(session.images.val), why)


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
    count, few = rarest_of(session, selection), _has_few(session, selection)
    why = f"{count:,} images to learn, {'fewer' if few else 'no fewer'} than {FEW_IMAGES}"
    return Choice(few, [True, False], why=why)


def try_dial(session: Session, selection: Selection) -> dict[str, Any] | None:
    """The dial of the adapter on validation images; ``None`` if it is not wanted."""
    cfg, lora, images = session.cfg, session.cfg.lora, session.images.val
    wants_dial = cfg.dial or (cfg.dial is None and not session.run.is_sweep)
    if not len(images) or not (wants_dial or AUTO in (lora.scale, lora.offset)):
        return None
    log.info("dial: the adapter at several scales on validation images")
    scales = SCALES if lora.scale == AUTO else sorted({*SCALES, float(lora.scale)})
    offsets = None if lora.offset == AUTO else [float(lora.offset)]
    some = images_of_dial(images.labels, cfg.seed, cfg.choose_by)
    batches = session.classifier.dataset.batches(images, session.evaluating(), some, "dial")
    return dial_curve(session.net, batches, selection.targets, scales, offsets, cfg.choose_by)


def choose_dial(
    session: Session, selection: Selection, dial: Mapping[str, Any] | None
) -> dict[str, Choice]:
    """The scale and the offset at which the adapter is saved: ``lora``'s, or the dial's."""
    lora, choices = session.cfg.lora, {}
    offset = offset_of(session.net)
    if lora.scale != AUTO:
        choices["scale"] = session.as_set("lora.scale", float(lora.scale))
    if lora.offset != AUTO:
        choices["offset"] = session.as_set("lora.offset", float(lora.offset))
    elif not selection.targets:
        choices["offset"] = Choice(0.0, why="there is no class to move")
    elif offset is None:
        choices["offset"] = Choice(0.0, why=_NO_LAYER)
    elif not offset.direction.any():
        choices["offset"] = Choice(0.0, why="no class is rarer than another, so tau moves none")
    if dial is None:
        return choices
    place = dial["scales"].index(choices["scale"].value if "scale" in choices else dial["advised"])
    of_base, saved = dial["base"]["measure"], dial["saved"][place]
    measures = f"{name_of_measure(session)} {of_base:.1%} -> {of_base + saved:.1%}"
    whys = {"scale": f"advised by validation images, each scale at its best offset: {measures}"}
    of_several = "tau of logit adjustment, " if len(selection.targets) > 1 else ""
    whys["offset"] = f"{of_several}the least cross-entropy of validation images at this scale"
    advised = {"scale": dial["scales"][place], "offset": dial["offsets"][place]}
    if not any(advised.values()):
        whys["offset"] = "alone no offset saves anything"
    for name, value in session.of_first_process(advised).items():
        if name not in choices:
            of = dial["scales"] if name == "scale" else None
            choices[name] = Choice(value, of, dial["images"], whys[name])
    return choices


def name_of_measure(session: Session) -> str:
    """What decides, in a sentence."""
    return str(session.cfg.choose_by).replace("_", " ")


def turn(net: nn.Module, choices: Mapping[str, Choice]) -> None:
    """Turn the dial of the adapter on ``net`` to where it was chosen to be."""
    set_lora_scale(net, choices["scale"].value)
    set_lora_offset(net, choices["offset"].value)


def factors_of(net: nn.Module) -> dict[str, Tensor]:
    """A copy of all tensors of the adapters on ``net``."""
    return copy.deepcopy(lora_state_dict(net))


def set_factors(net: nn.Module, factors: Mapping[str, Tensor], dropout: float) -> None:
    """Put these tensors into the adapters, at scale 1 and offset 0, to be trained with dropout."""
    net.load_state_dict(factors, strict=False)  # the base stays
    net.zero_grad()
    for adapter in lora_adapters(net):
        adapter.dropout = dropout
    set_lora_scale(net, 1.0)
    set_lora_offset(net, 0.0)
