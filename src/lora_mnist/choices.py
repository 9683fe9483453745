"""What a training decides before its first step: seed, class, images, and what is trained."""

import logging
import os
import random
import re
from collections.abc import Sequence
from functools import partial
from itertools import chain, islice, repeat
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from lora_mnist.checks import require_validation
from lora_mnist.classifier.metrics import evaluation_of
from lora_mnist.classifier.module import RATES, ClassifierModule
from lora_mnist.data import ImageDataModule
from lora_mnist.data.sampler import TrainingLoader
from lora_mnist.disk.checkpoint import recorded_seed
from lora_mnist.errors import UserError, config_group
from lora_mnist.lora import add_lora, target_weights
from lora_mnist.project import Run
from lora_mnist.trainer import on_device

_info = rank_zero_only(logging.getLogger(__name__).info)

#: lora.rank=auto, or a layer's full rank where that is smaller. docs/repair.md compares ranks.
_AUTO_RANK = 64
#: optimizer.lr=auto tries each rate for so many steps, and counts errors in at most so many images.
#: After a harmless trial they are at most so many times those before.
_TRIAL_STEPS, _TRIAL_IMAGES, _MOST_HARM = 25, 1000, 1.3


def seed_of_run(cfg: DictConfig, run: Run) -> int:
    """The seed that ``seed=null`` stands for: a new one, unless this run has one already."""
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return int(os.environ["PL_GLOBAL_SEED"])  # of the first process, which started this one
    if cfg.resume is not None:
        return recorded_seed(run.folder)
    return random.SystemRandom().randrange(2**32)


def choose_target(
    cfg: DictConfig, net: nn.Module, data: ImageDataModule, trainer: Trainer
) -> list[Tensor]:
    """Choose the class to train on, as ``cfg.target`` says: perhaps the weakest.

    Returns:
        The base's logits of each validation batch, if the weakest class was looked for; else an
        empty list.
    """
    target = cfg.target
    base_logits: list[Tensor] = []

    def keep_logits(images: Tensor) -> Tensor:
        base_logits.append(net(images))
        return base_logits[-1]

    if target == "weakest":
        require_validation("target=weakest", data)
        with on_device(net, trainer.strategy.root_device) as device:
            batches = data.batches(data.val_set, device, name="target=weakest")
            with trainer.precision_plugin.forward_context():
                errors = evaluation_of(keep_logits, batches).compute()["base"]["errors_per_class"]
        if not any(errors):
            raise UserError(
                "target=weakest: the base has every validation image right; expected a class"
            )
        target = errors.index(max(errors))  # of equals, the first
        share = f"{errors[target]} of {sum(errors)} errors on validation images"
        _info("target=%d (%s): the weakest class, %s", target, data.classes[target], share)
    with config_group("data"):
        data.choose(target)
    # Each of several processes validates a share of the images alone.
    return base_logits if trainer.world_size == 1 else []


def set_replay_turns(cfg: DictConfig, data: ImageDataModule, repaired: Sequence[int]) -> None:
    """Replay the classes that were ``repaired`` before more often: this repair would undo those.

    With ``loss.target_weight`` they get so many turns that their replayed images, one a turn, weigh
    together about as much as one image of the target.
    """
    weight, turns = cfg.loss.target_weight, 1
    if weight is not None and weight < 1:
        turns = max(1, round(weight / data.batch_size * data.replay / (1 - weight)))
    data.replay_turns = {c: turns for c in repaired if c not in data.targets}


def add_adapter(cfg: DictConfig, net: nn.Module) -> None:
    """Put a new adapter on ``net``, as ``cfg.lora`` says; it is in train mode, the base is not."""
    settings: Any = OmegaConf.to_container(cfg.lora, resolve=True)
    del settings["scale"]  # of the finished adapter
    with config_group("lora"):
        if settings["rank"] == "auto":
            settings["rank"] = _AUTO_RANK
            ranks = settings["rank_pattern"] = dict(settings["rank_pattern"] or {})
            for name, weight in target_weights(net, settings["target_modules"]).items():
                full = min(weight.base.flatten(1).shape)
                if full < _AUTO_RANK:
                    ranks[f"^{name}"] = full  # the user's own pattern comes first, and decides
        add_lora(net, **settings)
    net.train()


def try_learning_rates(
    cfg: DictConfig, trainer: Trainer, module: ClassifierModule, data: ImageDataModule
) -> None:
    """Set the learning rate of ``module`` for ``optimizer.lr=auto``.

    It is the largest of :data:`.module.RATES` whose first steps do little harm: a rate that suits
    three layers ruins a network of twenty. Each is tried from the same start on the first images of
    the training. Nothing of a trial stays, neither weights nor random numbers drawn.
    """
    if cfg.optimizer.lr != "auto":
        return
    net, count = module.net, len(data.val_set)
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    start = [parameter.detach().clone() for parameter in parameters]
    spread = torch.linspace(0, count - 1, min(count, _TRIAL_IMAGES)).long()
    device = trainer.strategy.root_device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), on_device(net, device):
        batches = partial(data.batches, data.val_set, device, spread, name="optimizer.lr=auto")

        def errors() -> int:
            net.eval()
            with trainer.precision_plugin.forward_context():
                return sum(evaluation_of(net, batches()).compute()["base"]["errors_per_class"])

        before = errors()
        most = _MOST_HARM * before + 2 * before**0.5  # and two standard deviations of chance
        for rate in RATES:
            module.lr = rate
            optimizer = module.optimizer(parameters, lr=rate)
            loader = TrainingLoader(data, cfg.seed)
            net.train()
            # An epoch may be shorter than a trial.
            for batch in islice(chain.from_iterable(repeat(loader)), _TRIAL_STEPS):
                images, labels = batch[0].to(device), batch[1].to(device)
                with trainer.precision_plugin.forward_context():
                    loss = module.loss_of((data.normalise(images), labels), data.replay)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            is_harmless = errors() <= most
            with torch.no_grad():
                for parameter, value in zip(parameters, start, strict=True):
                    parameter.copy_(value)
            if is_harmless:
                break
    for parameter in parameters:
        parameter.grad = None
    net.train()
    _info("optimizer.lr=%g, as validation images advise", module.lr)


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
    net.train()
