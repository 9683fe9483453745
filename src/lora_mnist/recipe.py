"""What a repair decides: class, adapter, learning rate, dropout, scale, and whether to refit.

Validation images decide what is ``auto`` or ``weakest``; each decision is a ``Choice``.

Where a class has few images, a training sees each of them dozens of times, and the base's own
validation images hold much of what the base does not know. So ``lora.dropout=auto`` makes one
complete training for each of :data:`DROPOUTS` and takes the one with the fewest validation errors,
and ``refit=auto`` makes one more, with the validation images among those to learn from. The base
was not trained on these: Kirichenko et al. 2022, "Last Layer Re-Training is Sufficient for
Robustness to Spurious Correlations" (DFR), arXiv:2204.02937. docs/worth.md has the numbers.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from lora_mnist.choice import Choice
from lora_mnist.data.plan import ImageDataModule, Selection, select
from lora_mnist.disk.run_paths import TRIALS_FOLDER
from lora_mnist.errors import UserError, config_group
from lora_mnist.lora.layer import LoRAParametrization
from lora_mnist.lora.model import INITS, add_lora, set_lora_scale
from lora_mnist.lora.weight import layers_to_adapt, lora_adapters, lora_weights
from lora_mnist.repair.dial import measure_dial, scale_of_refit
from lora_mnist.repair.networks import evaluating
from lora_mnist.repair.predictions import Predictions, counts_of, evaluate
from lora_mnist.repair.significance import weakest
from lora_mnist.session import Session

log = logging.getLogger(__name__)

#: lora.rank=auto is this, or a layer's full rank where that is smaller: docs/experiments.md.
_AUTO_RANK = 64
#: A class has few images if there are fewer than these: experiment=repair then sees each of them
#: ten times or more, and a larger step generalises better. docs/experiments.md has the numbers.
FEW_IMAGES = 400
#: The rates that optimizer.lr=auto tries; the first one is for few images.
RATES = (0.003, 0.001, 0.0003, 0.0001)
#: The steps of each probe of a rate, and the validation images that are counted after it, at most.
_PROBE_STEPS, _PROBE_IMAGES = 25, 1000
#: A rate does harm if it leaves more than this many times the errors, beyond chance.
_MAX_HARM = 1.3
#: What lora.dropout=auto tries; 0.1 beside these gains nothing.
DROPOUTS = (0.0, 0.05)


class Repair(NamedTuple):
    """What was measured of an adapter after its training, at the chosen scale."""

    tables: dict[str, Predictions]  # val, if there are such images
    choices: dict[str, Choice]
    dial: dict[str, Any] | None
    errors_by_step: dict[int, int]  # on validation images, while it was trained


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
    settings: Any = OmegaConf.to_container(session.cfg.lora, resolve=True)
    del settings["scale"]  # of the finished adapter
    if settings["dropout"] == "auto":  # each training sets its own
        settings["dropout"] = 0.0
    is_auto = settings["rank"] == "auto"
    if is_auto:
        settings["rank"] = _AUTO_RANK
    with config_group("lora"):
        kind = INITS.get(settings["init"], LoRAParametrization)  # add_lora refuses another
        ranks = settings["rank_pattern"] = dict(settings["rank_pattern"] or {})
        for name, weight in layers_to_adapt(net, settings["target_modules"]).items():
            full = min(weight.base.flatten(1).shape)
            most = full if is_auto else kind.highest_rank(weight.base)
            if most is not None and type(settings["rank"]) is int and most < settings["rank"]:
                ranks.setdefault(f"^{name}", most)  # the user's own patterns come first
        add_lora(net, **settings)


def choose_rate(session: Session, data: ImageDataModule, before: Predictions | None) -> Choice:
    """``optimizer.lr=auto``: 0.003 for fewer than 400 images to learn, else 0.001.

    A rate that suits three layers ruins a network of twenty. So a smaller one of :data:`RATES` is
    taken where 25 steps do harm on validation images. Each probe begins at the same start, with the
    first images of the plan. Nothing of it stays, neither weights nor random numbers drawn.
    """
    rate = session.cfg.optimizer.lr
    if rate != "auto":
        return session.as_set("optimizer.lr", rate)
    learnt = len(data.plan.selection.target_indices)
    rates = RATES if learnt < FEW_IMAGES else RATES[1:]
    assert before is not None  # open_session has looked for validation images
    log.info("optimizer.lr=auto: %d steps at each rate that is tried", _PROBE_STEPS)
    count = min(len(before), _PROBE_IMAGES)
    rows = torch.linspace(0, len(before) - 1, count).long()
    some = before.at(rows)
    errors_before = int(counts_of(some)["before"]["errors"])
    most = _MAX_HARM * errors_before + 2 * max(1, errors_before) ** 0.5
    for rate in rates:
        errors_after, seconds = probe(session, data, rate, some, rows)
        if errors_after <= most:
            break
    tell_duration(session, data, seconds)
    why = f"for {learnt:,} images to learn; {_PROBE_STEPS} steps change {errors_before} validation "
    why += f"errors to {errors_after}, and up to {most:.0f} are no harm"
    if errors_after > most:
        tried = ", ".join(map(str, rates))
        log.warning("optimizer.lr=auto: each of %s does harm on validation images", tried)
    return Choice(rate, list(rates), count, why)


def probe(
    session: Session, data: ImageDataModule, rate: float, before: Predictions, rows: Tensor
) -> tuple[int, float]:
    """The errors in validation images, of these ``rows``, after a few steps; a step's seconds."""
    net, dataset, trainer = session.net, session.classifier.dataset, session.trainer
    device, precision = trainer.strategy.root_device, cast(Any, trainer.precision_plugin)
    loss, optimizer, start = session.make_loss(), session.make_optimizer(rate), start_of(net)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), evaluating(net, device):
        net.train()
        started = time.perf_counter()
        for images, labels in data.read(islice(data.plan.batches(), _PROBE_STEPS)):
            with precision.forward_context():
                logits = net(dataset.normalise(images.to(device)))
                value = loss(logits, labels.to(device), data.plan.replay)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        value.item()  # a GPU is waited for
        seconds = time.perf_counter() - started
        batches = dataset.batches(session.images.val, device, rows, "optimizer.lr=auto")
        table = evaluate(net.eval(), batches, before)
    start_again(net, start)
    return int(counts_of(table)["after"]["errors"]), seconds / _PROBE_STEPS


def tell_duration(session: Session, data: ImageDataModule, seconds: float) -> None:
    """Log how long all trainings take, at so many ``seconds`` a step, and how to have fewer."""
    count, steps = number_of_trainings(session, data), session.trainer.max_steps
    if steps <= 0:  # -1: max_epochs ends them
        return
    minutes = max(1, round(count * steps * seconds / 60))
    advice = ""
    if count > 1:
        key = "lora.dropout=0" if len(dropouts_to_try(session, data)) > 1 else "refit=false"
        advice = f"; {key} saves one of them"
    log.info("trainings: %d of %d steps, some %d min in all%s", count, steps, minutes, advice)


def refuse_to_go_on(session: Session, data: ImageDataModule) -> None:
    """Refuse a checkpoint for a repair of several trainings."""
    path = session.cfg.ckpt_path
    if path is not None and number_of_trainings(session, data) > 1:
        raise UserError(
            f"ckpt_path={path}: expected null, since this repair has several trainings; start it "
            "again: same seed, same numbers"
        )


def number_of_trainings(session: Session, data: ImageDataModule) -> int:
    """How often an adapter is trained: trials that decide, and then the one that is kept."""
    trials = len(dropouts_to_try(session, data))
    if trials == 1 and not choose_refit(session, data).value:
        return 1
    return trials + 1


def train_repair(
    session: Session, data: ImageDataModule, rate: float, before: Predictions | None
) -> Repair:
    """Train the adapter: once, or after trials that decide its dropout and its scale.

    Each training begins at the same start. The tables, the dial and the scale are those of the
    chosen trial, which had not learnt the validation images.
    """
    start, dropouts = start_of(session.net), dropouts_to_try(session, data)
    refit = choose_refit(session, data)
    has_trials = number_of_trainings(session, data) > 1
    trials: dict[float, Repair] = {}
    for tried in dropouts:
        session_of_trial = session
        if has_trials:
            log.info("trial %d of %d: lora.dropout=%g", len(trials) + 1, len(dropouts), tried)
            session_of_trial = session.in_folder(f"{TRIALS_FOLDER}/dropout={tried}")
        start_again(session.net, start, tried)
        trials[tried] = _train_and_measure(session_of_trial, data, rate, before, refit)
    dropout = choose_dropout(session, trials)
    chosen = trials[dropout.value]
    choices = {"dropout": dropout, **chosen.choices, "refit": refit}
    if has_trials:
        if refit.value:
            unseen = ""
            if session.images.held_out.get("val") == "test":
                unseen = ", which are part of test/; only the other test images are still unseen"
            log.info("refit: once more, with the validation images%s", unseen)
            data = session.data(data.plan.selection, with_validation=True)
        # Without a refit the chosen training is repeated, for the files in the run's own folder.
        start_again(session.net, start, dropout.value)
        session.fit(data, rate)
        set_lora_scale(session.net, choices["scale"].value)
    return chosen._replace(choices=choices)


def _train_and_measure(
    session: Session,
    data: ImageDataModule,
    rate: float,
    before: Predictions | None,
    refit: Choice,
) -> Repair:
    """Train the adapter that is on the network, and turn it to the scale that is chosen."""
    errors_by_step = session.fit(data, rate)
    val = session.predictions("val", before)
    dial = try_scales(session, data, val)
    scale = choose_scale(session, dial, refit)
    set_lora_scale(session.net, scale.value)
    if scale.value != 1:
        val = session.predictions("val", before)
    tables = {} if val is None else {"val": val}
    return Repair(tables, {"scale": scale}, dial, errors_by_step)


def dropouts_to_try(session: Session, data: ImageDataModule) -> Sequence[float]:
    """The values of ``lora.dropout`` to train with: one where nothing is to be chosen."""
    dropout = session.cfg.lora.dropout
    if dropout != "auto":
        return [dropout]
    takes_dropout = any(weight.factored_forward for weight in lora_weights(session.net).values())
    return DROPOUTS if _has_few(data) and takes_dropout else DROPOUTS[:1]


def choose_dropout(session: Session, trials: Mapping[float, Repair]) -> Choice:
    """The dropout of the trial with the fewest validation errors."""
    if len(trials) == 1:
        (dropout,) = trials
        if session.cfg.lora.dropout != "auto":
            return session.as_set("lora.dropout", dropout)
        why = "others are tried only for a class of few images, in layers that take dropout"
        return Choice(dropout, why=why)
    errors = {}
    for dropout, trial in trials.items():
        errors[dropout] = int(counts_of(trial.tables["val"])["after"]["errors"])
    best = session.of_first_process(min(errors, key=lambda dropout: errors[dropout]))
    counts = [f"{count:,} with {dropout:g}" for dropout, count in errors.items()]
    why = f"the fewest validation errors: {', '.join(counts)}"
    return Choice(best, list(errors), len(session.images.val), why)


def choose_refit(session: Session, data: ImageDataModule) -> Choice:
    """Whether one more training learns the validation images as well, as ``refit`` says."""
    refit = session.cfg.refit
    if refit != "auto":
        return session.as_set("refit", refit)
    if session.mistakes is not None:
        return Choice(False, why="mistakes are learnt")
    if not len(session.images.val):
        return Choice(False, why="there are no validation images")
    count, few = len(data.plan.selection.target_indices), _has_few(data)
    why = f"{count:,} images to learn, {'fewer' if few else 'no fewer'} than {FEW_IMAGES}"
    return Choice(few, [True, False], why=why)


def _has_few(data: ImageDataModule) -> bool:
    """Whether the classes to repair have few training images, and validation images can decide."""
    targets, target_indices, _ = data.plan.selection
    return bool(targets) and len(target_indices) < FEW_IMAGES and len(data.images.val) > 0


def try_scales(
    session: Session, data: ImageDataModule, val: Predictions | None
) -> dict[str, Any] | None:
    """The dial of the adapter on validation images; ``None`` if it is not wanted."""
    cfg, images = session.cfg, session.images.val
    wants_dial = cfg.dial or (cfg.dial is None and not session.run.is_sweep)
    if val is None or not (wants_dial or cfg.lora.scale == "auto"):
        return None
    log.info("dial: the adapter at several scales on validation images")
    with session.evaluating() as device:
        batches = partial(session.classifier.dataset.batches, images, device, name="dial")
        return measure_dial(session.net, batches, val, data.plan.selection.targets, cfg.seed)


def choose_scale(session: Session, dial: Mapping[str, Any] | None, refit: Choice) -> Choice:
    """The scale at which the adapter is saved: ``lora.scale``, or what the dial advises."""
    scale = session.cfg.lora.scale
    if scale != "auto":
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


def start_again(
    net: nn.Module, start: Sequence[Mapping[str, Tensor]], dropout: float | None = None
) -> None:
    """Put the adapters on ``net`` back to their start; ``dropout`` is for the next training."""
    for adapter, state in zip(lora_adapters(net), start, strict=True):
        adapter.load_state_dict(state)
        for parameter in adapter.parameters():
            parameter.grad = None
        adapter.scale = 1.0
        if dropout is not None:
            adapter.dropout = dropout
