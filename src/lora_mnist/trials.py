"""The trainings of a repair: trials of its dropout, and one that learns validation images too.

Where a class has few images, each training sees them dozens of times, and the base's own validation
images hold much of what the base does not know. So ``lora.dropout=auto`` makes one complete
training for each of :data:`DROPOUTS` and takes the one with the fewest validation errors, and
``refit=auto`` makes one more, with the validation images among those to learn from. The base was
not trained on these: Kirichenko et al. 2022, "Last Layer Re-Training is Sufficient for Robustness
to Spurious Correlations" (DFR), arXiv:2204.02937. docs/worth.md has the numbers.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig
from torch import nn

from lora_mnist.classifier import Classifier
from lora_mnist.data.datamodule import ImageDataModule
from lora_mnist.data.plan import Selection
from lora_mnist.disk.checkpoint import load_best_weights
from lora_mnist.disk.results import Clock
from lora_mnist.disk.resume import last_checkpoint
from lora_mnist.lora.model import set_lora_scale
from lora_mnist.lora.weight import lora_adapters, lora_weights
from lora_mnist.recipe import make_module
from lora_mnist.repair.dial import measure_dial, scale_of_refit
from lora_mnist.repair.networks import evaluating
from lora_mnist.repair.predictions import Predictions, counts_of
from lora_mnist.repair.rate import FEW_IMAGES
from lora_mnist.run import Run
from lora_mnist.show.next_steps import choice_text
from lora_mnist.trainer import evaluate_on, fit, make_trainer, monitored_validation

log = logging.getLogger(__name__)

#: What lora.dropout=auto tries; 0.1 beside these gains nothing.
DROPOUTS = (0.0, 0.05)
#: Minutes of a training from which on it is said beforehand how long all will take.
_LONG = 2


@dataclass(frozen=True)
class Trained:
    """What is known of an adapter after its training."""

    dropout: float
    best: dict[str, Any] | None  # the monitor, its value and its step, where one chose the weights
    val: Predictions | None  # for the validation images, at ``scale``; None: there are none
    dial: dict[str, Any] | None
    scale: float  # of the adapter
    is_refit: bool = False  # whether it has learnt these images since

    def summary(self) -> dict[str, Any]:
        """What results.json says of a trial."""
        assert self.val is not None
        errors = int(counts_of(self.val)["after"]["errors"])
        return {"dropout": self.dropout, "scale": self.scale, "val_errors": errors}


def train_adapter(
    cfg: DictConfig,
    run: Run,
    trainer: Trainer,
    classifier: Classifier,
    data: ImageDataModule,
    rate: float,
    base_val: Predictions | None,
    seconds_a_step: float,
    clock: Clock,
) -> tuple[Trained, list[dict[str, Any]]]:
    """Train the adapter on the network of ``classifier``: once, or after trials that decide.

    Each training begins at the same start. What validation images say is of the trial that was
    chosen, which had not learnt them.

    Returns:
        The training whose adapter the network has; dropout, scale and validation errors of each
        trial.
    """
    net = classifier.net
    start = start_of(net)

    def train_once(cfg: DictConfig, run: Run, trainer: Trainer, data: ImageDataModule) -> Trained:
        start_again(net, start, cfg.lora.dropout)
        module = make_module(cfg, classifier, data, rate, base_val)
        fit(trainer, module, data, last_checkpoint(run.folder, cfg.resume), clock)
        best = load_best_weights(trainer, module, data)
        val, images = None, data.images.val
        if len(images):
            val = evaluate_on(trainer, net, classifier.dataset, images, "val", base_val)
        dial, scale = set_scale_by_dial(cfg, run, trainer, classifier, data, val, is_refit, clock)
        if scale != 1 and val is not None:
            val = evaluate_on(trainer, net, classifier.dataset, images, "val", base_val)
        return Trained(cfg.lora.dropout, best, val, dial, scale)

    last = cfg.copy()
    dropouts = dropouts_to_try(cfg, net, data)
    is_refit = learns_validation(cfg, trainer, data)
    if len(dropouts) == 1 and not is_refit:
        last.lora.dropout = dropouts[0]
        return train_once(last, run, trainer, data), []

    minutes = trainer.max_steps * seconds_a_step / 60
    if minutes > _LONG:
        log.info(
            "%d trainings, of some %.0f minutes each: lora.dropout=0 and refit=false leave one",
            *(len(dropouts) + 1, minutes),
        )
    trials: list[Trained] = []
    for dropout in dropouts:
        log.info("trial %d of %d: lora.dropout=%g", len(trials) + 1, len(dropouts), dropout)
        trial, its_run = trial_of(cfg, run, dropout)
        trials.append(train_once(trial, its_run, make_trainer(trial, its_run), data))
    summaries = [trial.summary() for trial in trials]
    errors = [summary["val_errors"] for summary in summaries]
    chosen = trials[errors.index(min(errors))]
    if len(trials) > 1:
        log.info("%s", choice_text(summaries, chosen.dropout))
    last.lora.dropout, last.lora.scale, last.dial = chosen.dropout, chosen.scale, False
    if is_refit:
        log.info("refit: once more, with the validation images among those to learn from")
        data = with_validation(data)
    best = train_once(last, run, trainer, data).best
    return replace(chosen, best=best, is_refit=is_refit), summaries


def dropouts_to_try(cfg: DictConfig, net: nn.Module, data: ImageDataModule) -> Sequence[float]:
    """The values of ``lora.dropout`` to train with: one where nothing is to be chosen.

    ``auto`` is 0 for 400 images of the class or more, without validation images, and where a layer
    takes no dropout.
    """
    if cfg.lora.dropout != "auto":
        return [cfg.lora.dropout]
    takes_dropout = all(weight.factored_forward for weight in lora_weights(net).values())
    return DROPOUTS if _has_few(data) and takes_dropout else DROPOUTS[:1]


def learns_validation(cfg: DictConfig, trainer: Trainer, data: ImageDataModule) -> bool:
    """Whether one more training learns the validation images as well, as ``refit`` says.

    ``auto`` is true for fewer than 400 images of the class, unless a callback monitors validation.
    """
    if cfg.refit != "auto":
        return bool(cfg.refit)
    return _has_few(data) and not monitored_validation(trainer)


def _has_few(data: ImageDataModule) -> bool:
    """Whether classes are repaired that have few training images, and validation can decide."""
    targets, target_indices, _ = data.plan.selection
    return bool(targets) and len(target_indices) < FEW_IMAGES and len(data.images.val) > 0


def trial_of(cfg: DictConfig, run: Run, dropout: float) -> tuple[DictConfig, Run]:
    """The configuration of a trial, and its folder in that of the run, for its checkpoints.

    Only loggers that write into a run's folder log it: elsewhere it would be another run.
    """
    folder = run.folder / "trials" / f"dropout={dropout}"
    trial = cfg.copy()
    trial.lora.dropout, trial.paths.run = dropout, str(folder)
    for name in trial.get("logger") or {}:
        if name not in ("tensorboard", "csv"):
            trial.logger[name] = None
    return trial, replace(run, folder=folder)


def start_of(net: nn.Module) -> list[dict[str, torch.Tensor]]:
    """A copy of what the adapters on ``net`` start from."""
    states = []
    for adapter in lora_adapters(net):
        states.append({name: value.clone() for name, value in adapter.state_dict().items()})
    return states


def start_again(net: nn.Module, start: Sequence[dict[str, torch.Tensor]], dropout: float) -> None:
    """Put the adapters on ``net`` back to their start, for a training with ``dropout``."""
    for adapter, state in zip(lora_adapters(net), start, strict=True):
        adapter.load_state_dict(state)
        adapter.dropout, adapter.scale = dropout, 1.0


def with_validation(data: ImageDataModule) -> ImageDataModule:
    """``data`` with its validation images among those to train on, and none to validate."""
    images, plan = data.images, data.plan
    targets, learnt, replayed = plan.selection
    train = images.train.followed_by(images.val)
    added = torch.arange(len(images.train), len(train))
    is_learnt = torch.full((len(added),), not len(replayed))  # all classes, or those to repair
    if targets:
        is_learnt = torch.isin(images.val.labels, torch.tensor(targets))
    learnt = torch.cat([learnt, added[is_learnt]])
    replayed = torch.cat([replayed, added[~is_learnt]])
    selection = Selection(targets, learnt, replayed)
    return ImageDataModule(
        data.dataset,
        replace(images, train=train, val=images.val.subset(torch.arange(0))),
        replace(plan, selection=selection, labels=train.labels),
        data.augment,
    )


def set_scale_by_dial(
    cfg: DictConfig,
    run: Run,
    trainer: Trainer,
    classifier: Classifier,
    data: ImageDataModule,
    val: Predictions | None,
    is_refit: bool,
    clock: Clock,
) -> tuple[dict[str, Any] | None, float]:
    """Measure the dial, and give the adapter the scale at which it is saved.

    The dial has the errors of the finished adapter at several scales, on the validation images.
    ``dial=null`` measures it in a single run with validation images, but not in a job of a sweep.
    ``val`` are the predictions for these images, ``None`` without any. With ``is_refit`` the scale
    is that of one more training, which will have learnt them.

    Returns:
        The dial, ``None`` if it was not measured; and the scale: ``lora.scale``, or what the dial
        advises.
    """
    dial = None
    wants_dial = not run.is_sweep if cfg.dial is None else cfg.dial
    if val is not None and (wants_dial or cfg.lora.scale == "auto"):
        net, dataset, images = classifier.net, classifier.dataset, data.images.val
        log.info("dial: the adapter at several scales on validation images")
        device: Any = trainer.strategy.root_device
        precision: Any = trainer.precision_plugin
        with clock.measure("dial"), evaluating(net, device), precision.forward_context():
            batches = partial(dataset.batches, images, device, name="dial")
            dial = measure_dial(net, batches, val, data.plan.selection.targets, cfg.seed)
        if is_refit:
            dial["advised"] = scale_of_refit(dial)
    scale = cfg.lora.scale
    if scale == "auto":
        assert dial is not None  # refuse_inconsistent
        scale = dial["advised"]
    set_lora_scale(classifier.net, scale)
    return dial, float(scale)
