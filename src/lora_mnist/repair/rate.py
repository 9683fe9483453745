"""The learning rate of a repair: by the number of images to learn, less where that does harm."""

import logging
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim import Optimizer

from lora_mnist.data.datamodule import ImageDataModule
from lora_mnist.repair.loss import Loss
from lora_mnist.repair.networks import evaluating
from lora_mnist.repair.predictions import Predictions, counts_of, evaluate

log = logging.getLogger(__name__)

#: The rates to try, the largest first.
RATES = (0.003, 0.001, 0.0003, 0.0001)
#: The first rate is for fewer images to learn than these: experiment=repair then sees each of them
#: ten times or more, and a larger step generalises better. docs/experiments.md has the numbers.
FEW_IMAGES = 400
#: The steps of each trial.
_STEPS = 25
#: Validation images whose errors are counted after a trial, at most.
_MAX_IMAGES = 1000
#: A rate is accepted if it leaves at most 1.3 * before + 2 * sqrt(before) errors.
_MAX_HARM = 1.3


def choose_rate(
    net: nn.Module,
    loss: Loss,
    make_optimizer: Callable[..., Optimizer],
    data: ImageDataModule,
    base_val: Predictions,
    trainer: Trainer,
) -> tuple[float, float]:
    """0.003 for fewer than 400 images to learn, else 0.001; and how many seconds a step took.

    A rate that suits three layers ruins a network of twenty. So a smaller one of :data:`RATES` is
    taken where 25 steps do harm on validation images. Each is tried from the same start on the
    first images of the plan. Nothing of a trial stays, neither weights nor random numbers drawn.
    """
    count, plan, dataset = len(base_val), data.plan, data.dataset
    learnt = len(plan.selection.target_indices)
    rates = RATES if learnt < FEW_IMAGES else RATES[1:]
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    start = [parameter.detach().clone() for parameter in parameters]
    spread = torch.linspace(0, count - 1, min(count, _MAX_IMAGES)).long()
    device = trainer.strategy.root_device
    devices = [device] if device.type == "cuda" else []
    precision: Any = trainer.precision_plugin
    with torch.random.fork_rng(devices), evaluating(net, device):

        def errors() -> int:
            batches = dataset.batches(data.images.val, device, spread, name="optimizer.lr=auto")
            with precision.forward_context():
                table = evaluate(net.eval(), batches, base_val.at(spread))
            return int(counts_of(table)["after"]["errors"])

        before = errors()
        most = _MAX_HARM * before + 2 * before**0.5
        for rate in rates:
            optimizer = make_optimizer(parameters, lr=rate)
            net.train()
            started = time.perf_counter()
            for images, labels in data.read(islice(plan.batches(), _STEPS)):
                with precision.forward_context():
                    # Before training each process has whole batches.
                    logits = net(dataset.normalise(images.to(device)))
                    value = loss(logits, labels.to(device), plan.replay)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
            seconds = time.perf_counter() - started
            after = errors()
            with torch.no_grad():
                for parameter, values in zip(parameters, start, strict=True):
                    parameter.copy_(values)
            if after <= most:
                break
    for parameter in parameters:
        parameter.grad = None
    if after <= most:
        log.info("optimizer.lr=%g, for %d images to learn", rate, learnt)
    else:
        message = "optimizer.lr=auto: each of %s does harm on validation images; %g is taken"
        log.warning(message, ", ".join(map(str, rates)), rate)
    return rate, seconds / _STEPS
