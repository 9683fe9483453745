"""A training's choices: seed, class, replay, parameters, and at its end the adapter's scale."""

import json
import logging
import os
import random
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lora_mnist.checks import require_validation
from lora_mnist.classifier.dial import TRIES, approximate_dial
from lora_mnist.classifier.metrics import outcome_of
from lora_mnist.classifier.module import ClassifierModule, validate_once
from lora_mnist.classifier.net import eval_on_device
from lora_mnist.classifier.significance import weakest
from lora_mnist.data import ImageDataModule
from lora_mnist.data.plan import Selection
from lora_mnist.disk.results import Clock
from lora_mnist.disk.run_paths import RUN_RECORD
from lora_mnist.errors import UserError, config_group
from lora_mnist.lora.model import add_lora
from lora_mnist.lora.targets import target_weights
from lora_mnist.project import Run

_info = rank_zero_only(logging.getLogger(__name__).info)

#: The dial tries at least this number of validation images at each scale.
_MIN_FOR_DIAL = 50
#: lora.rank=auto, or a layer's full rank where that is smaller. docs/repair.md compares ranks.
_AUTO_RANK = 64


def seed_of_run(cfg: DictConfig, run: Run) -> int:
    """The seed that ``seed=null`` stands for: a new one, unless this run has one already."""
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return int(os.environ["PL_GLOBAL_SEED"])  # seed_everything wrote it in the first process
    if cfg.resume is not None:
        record = json.loads((run.folder / RUN_RECORD).read_text())
        return int(record["settings"]["seed"])
    seed = random.SystemRandom().randrange(2**32)
    _info("seed=%d: drawn, since seed=null", seed)
    return seed


def select_training_images(
    cfg: DictConfig, net: nn.Module, data: ImageDataModule, trainer: Trainer
) -> Selection:
    """The images to train on, as ``cfg.target`` says: perhaps those of the weakest class."""
    target = cfg.target
    if target == "weakest":
        require_validation("target=weakest", data)
        with eval_on_device(net, trainer.strategy.root_device) as device:
            batches = data.batches(data.val_set, device, name="target=weakest")
            with trainer.precision_plugin.forward_context():
                outcome = outcome_of(net, batches)
        errors, images = outcome["errors_per_class"], outcome["images_per_class"]
        if not any(errors):
            raise UserError(
                "target=weakest: every validation image is right already; expected a class"
            )
        target = weakest(errors, images)
        wrong, count = errors[target], images[target]
        share = f"{wrong} of its {count} validation images are wrong ({wrong / count:.1%})"
        _info("target=%d (%s): the weakest class, %s", target, data.classes[target], share)
    with config_group("data"):
        return data.select(target)


def replay_frequency(
    cfg: DictConfig, data: ImageDataModule, repaired: Sequence[int]
) -> dict[int, int]:
    """How many turns a class ``repaired`` before has in a round of replay; others have one.

    This repair could undo those. With ``loss.target_weight`` one image of the target weighs as much
    as several replayed ones. Each repaired class is then replayed so often that its images weigh
    about as much as those of the target. Without it, all have one turn.
    """
    weight = cfg.loss.target_weight
    if weight is None or weight >= 1:
        return {}
    turns = max(1, round(weight / data.batch_size * data.replay / (1 - weight)))
    return dict.fromkeys(repaired, turns)


def add_new_adapter(cfg: DictConfig, net: nn.Module) -> None:
    """Put a new adapter on ``net``, as ``cfg.lora`` says."""
    settings: Any = OmegaConf.to_container(cfg.lora, resolve=True)
    del settings["scale"]  # of the finished adapter
    with config_group("lora"):
        if settings["rank"] == "auto" or settings["init"] == "pissa":
            if settings["rank"] == "auto":
                settings["rank"] = _AUTO_RANK
            ranks = settings["rank_pattern"] = dict(settings["rank_pattern"] or {})
            for name, weight in target_weights(net, settings["target_modules"]).items():
                full = min(weight.base.flatten(1).shape)
                if type(settings["rank"]) is int and full < settings["rank"]:
                    ranks[f"^{name}"] = full  # the user's own pattern comes first
        add_lora(net, **settings)


def choose_trainable(net: nn.Module, pattern: str) -> None:
    """Train the parameters of ``net`` whose full name matches ``pattern``, and no others."""
    try:
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(re.fullmatch(pattern, name) is not None)
    except re.error as error:
        raise UserError(f"trainable={pattern}: expected a regular expression ({error})") from error
    if not any(parameter.requires_grad for parameter in net.parameters()):
        names = ", ".join(name for name, _ in net.named_parameters())
        raise UserError(f"trainable={pattern}: expected to match a parameter, of: {names}")


def measure_dial(
    cfg: DictConfig,
    run: Run,
    trainer: Trainer,
    module: ClassifierModule,
    data: ImageDataModule,
    clock: Clock,
) -> dict[str, Any] | None:
    """The dial: errors of the finished adapter at several scales, on the validation images.

    ``dial=null`` tries them in a single run with validation images, but not in a job of a sweep.
    ``None``: they are not tried. Else the module is validated first, if it was not after the last
    step.
    """
    wants_dial = cfg.dial
    if wants_dial is None:
        wants_dial = len(data.val_set) > 0 and not run.is_sweep
    if not wants_dial and cfg.lora.scale != "auto":
        return None
    validate_once(trainer, module, data)
    predictions = module.predictions.get("val") or None  # none with trainer.limit_val_batches=0
    # No more forward passes than training made, whatever the network.
    steps = trainer.global_step * trainer.accumulate_grad_batches
    most = max(_MIN_FOR_DIAL, steps * (data.batch_size + data.replay) // TRIES)
    _info("dial: the adapter at %d scales on %s validation images", TRIES, f"{len(data.val_set):,}")
    with clock.measure("dial"), eval_on_device(module.net, trainer.strategy.root_device) as device:
        batches = partial(data.batches, data.val_set, device, name="dial")
        with trainer.precision_plugin.forward_context():
            dial = approximate_dial(
                module.net, batches, module.targets, most, predictions, module.adapter
            )
    return trainer.strategy.broadcast(dial)  # of several processes, the first decides


def scale_to_save(cfg: DictConfig, dial: Mapping[str, Any] | None) -> float:
    """The scale at which the adapter is saved: ``lora.scale``, or the dial's advice."""
    scale = cfg.lora.scale
    if scale == "auto":
        assert dial is not None  # measure_dial always has one then
        scale = dial["advised"]
    if cfg.lora.scale != 1:
        can_undo = scale not in (0, 1) and cfg.adapter is None  # else the scale is of a sum
        full = f"; scale={1 / scale:.3g} is as trained" if can_undo else ""
        _info("scale: %g, with which the adapter is saved%s", scale, full)
    return float(scale)
