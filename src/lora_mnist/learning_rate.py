"""The learning rate of a repair: by the number of images to learn, less where that does harm."""

import logging
from functools import partial
from itertools import islice

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from lora_mnist.classifier.metrics import outcome_of
from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.classifier.net import eval_on_device
from lora_mnist.data import ImageDataModule

_log = logging.getLogger(__name__)

#: The rates to try, the largest first.
RATES = (0.003, 0.001, 0.0003, 0.0001)
#: The first rate is for fewer images to learn than these: experiment=repair then sees each of them
#: ten times or more, and a larger step generalises better. docs/experiments.md has the numbers.
_FEW_IMAGES = 400
#: The steps of each trial.
_STEPS = 25
#: Validation images whose errors are counted after a trial, at most.
_MAX_IMAGES = 1000
#: A rate is accepted if it leaves at most 1.3 * before + 2 * sqrt(before) errors.
_MAX_HARM = 1.3


def choose_learning_rate(
    cfg: DictConfig, trainer: Trainer, module: ClassifierModule, data: ImageDataModule
) -> float:
    """``cfg.optimizer.lr``; for ``auto`` 0.003 for fewer than 400 images to learn, else 0.001.

    A rate that suits three layers ruins a network of twenty. So a smaller one of :data:`RATES` is
    taken where 25 steps do harm on validation images. Each is tried from the same start on the
    first images of the training. Nothing of a trial stays, neither weights nor random numbers
    drawn.
    """
    if cfg.optimizer.lr != "auto":
        return float(cfg.optimizer.lr)
    net, count = module.net, len(data.val_set)
    learnt = len((data.selection or data.select(None)).target_indices)
    rates = RATES if learnt < _FEW_IMAGES else RATES[1:]
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    start = [parameter.detach().clone() for parameter in parameters]
    spread = torch.linspace(0, count - 1, min(count, _MAX_IMAGES)).long()
    device = trainer.strategy.root_device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), eval_on_device(net, device):
        batches = partial(data.batches, data.val_set, device, spread, name="optimizer.lr=auto")

        def errors() -> int:
            net.eval()
            with trainer.precision_plugin.forward_context():
                return int(outcome_of(net, batches())["errors"])

        before = errors()
        most = _MAX_HARM * before + 2 * before**0.5
        for rate in rates:
            optimizer = module.optimizer(parameters, lr=rate)
            net.train()
            for batch in data.read(islice(data.plan(), _STEPS), 0):
                images, labels = batch[0].to(device), batch[1].to(device)
                with trainer.precision_plugin.forward_context():
                    # Before training each process has whole batches.
                    loss = module.loss_of((data.normalise(images), labels), data.replay)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            after = errors()
            with torch.no_grad():
                for parameter, value in zip(parameters, start, strict=True):
                    parameter.copy_(value)
            if after <= most:
                break
    for parameter in parameters:
        parameter.grad = None
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return rate
    if after <= most:
        _log.info("optimizer.lr=%g, for %d images to learn", rate, learnt)
    else:
        message = "optimizer.lr=auto: each of %s does harm on validation images; %g is taken"
        _log.warning(message, ", ".join(map(str, rates)), rate)
    return rate
