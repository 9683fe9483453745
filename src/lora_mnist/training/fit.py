"""One training: its batches, loss, optimizer and scheduler, as the configuration names them."""

import logging
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from lightning.pytorch import seed_everything
from omegaconf import OmegaConf
from torch.optim import Optimizer

from lora_mnist.choice import AUTO
from lora_mnist.classifier.learnt import fingerprint_of
from lora_mnist.config.objects import make
from lora_mnist.data.plan import Plan, Selection
from lora_mnist.errors import TrainingError, UserError, config_group
from lora_mnist.lora.model import KINDS
from lora_mnist.training.checkpoint import refuse_other_training
from lora_mnist.training.data_module import ImageDataModule
from lora_mnist.training.module import ClassifierModule
from lora_mnist.training.session import Session
from lora_mnist.training.target import select

log = logging.getLogger(__name__)

#: Settings that a training which goes on has to have as before, known before images are read.
KNOWN_AT_ONCE = ("base_sha256", "seed", "net", "prepare")
#: The others. The number of steps may change, unless a scheduler counts them.
_MAKE_A_TRAINING = (
    *("target", "optimizer", "scheduler", "loss", "lora", "batches", "callbacks.averaging"),
    *("refit", "learnt_sha256", "trainer.accumulate_grad_batches", "trainer.gradient_clip_val"),
)


class Mix(NamedTuple):
    """What a batch of a repair has with ``auto``, and its loss."""

    batch_size: int  # images to learn
    replay: int  # images of the other classes
    target_weight: float  # the share of the loss of those to learn


def mix_of(num_classes: int, num_targets: int) -> Mix:
    """The mix that follows the share of the classes to learn; mistakes have 10, 90 and 0.25."""
    # A third of all classes needs more than a tenth of a batch: docs/experiments.md.
    share = num_targets / num_classes
    batch_size = max(10, round(100 * share))
    return Mix(batch_size, 100 - batch_size, max(0.25, share))


def order_seed(session: Session) -> int:
    """The seed of the images' order; with ``null`` it is drawn as a plain DataLoader does."""
    seed = session.cfg.batches.seed
    if seed is None:  # two numbers: for its workers, then for its sampler
        _, seed = torch.empty(2, dtype=torch.int64).random_().tolist()
    return int(seed)


def data_of(
    session: Session, selection: Selection, with_validation: bool = False
) -> ImageDataModule:
    """The batches of a training; ``with_validation`` learns the validation images, too."""
    batches, images = session.cfg.batches, session.images
    if with_validation:
        train, none = images.train.followed_by(images.val), images.val.subset(torch.arange(0))
        images = replace(images, train=train, val=none)
        classes = session.classifier.classes
        selection = select(train.labels, classes, [classes[c] for c in selection.targets])
    processes, size, replay = session.trainer.world_size, batches.batch_size, batches.replay
    mix = mix_of(len(session.classifier.classes), len(selection.targets))
    if size == AUTO:  # a multiple of the processes
        size = max(1, mix.batch_size // processes) * processes
    if replay == AUTO:
        replay = min(mix.replay, len(selection.replay_indices)) // processes * processes
    with config_group("batches"):
        labels, seed = images.train.labels, order_seed(session)
        plan = Plan(selection, labels, size, replay, seed, processes)
    return ImageDataModule(session.classifier.dataset, images, plan, make_augment(session))


def make_augment(session: Session) -> Any:
    """The transform that changes training images; ``None``: they stay as they are."""
    return make("batches.augment", session.augment) if session.augment else None


def make_loss(session: Session, num_targets: int) -> Any:
    """The loss of a batch, to learn so many classes."""
    arguments = dict(session.cfg.loss)
    if arguments.get("target_weight") == AUTO:
        mix = mix_of(len(session.classifier.classes), num_targets)
        arguments["target_weight"] = mix.target_weight
    return make("loss", arguments)


def make_optimizer(session: Session) -> Optimizer:
    """The optimizer of what is trainable in the network."""
    arguments = dict(session.cfg.optimizer)
    if session.trainer.gradient_clip_val and "mixed" in session.trainer.precision:
        arguments.pop("fused", None)  # beside a fused optimizer Lightning refuses to clip
    trained = [parameter for parameter in session.net.parameters() if parameter.requires_grad]
    optimizer: Optimizer = make("optimizer", arguments, trained)
    decay = optimizer.defaults.get("weight_decay")  # AdamW decays without a key for it
    if decay and session.cfg.stage == "lora" and KINDS[session.cfg.lora.init].forbids_decay:
        raise UserError(
            f"optimizer.weight_decay={decay}: expected 0 with lora.init={session.cfg.lora.init}: "
            "decay would move the network away from the base, not towards it"
        )
    return optimizer


def make_scheduler(session: Session, optimizer: Optimizer) -> dict[str, Any] | None:
    """The scheduler of the learning rate, for Lightning; ``None`` where it is constant."""
    arguments = dict(session.cfg.scheduler or {})
    interval = arguments.pop("interval", "step")
    if not arguments:
        return None
    return {"scheduler": make("scheduler", arguments, optimizer), "interval": interval}


def check_training(session: Session) -> None:
    """Make the parts of a training once: they refuse what they cannot use before it begins."""
    stand_ins = {}
    for key, value in {"optimizer.lr": 0.1, "trainer.max_steps": 400}.items():
        if OmegaConf.select(session.cfg, key) == AUTO:
            stand_ins[key] = value
    session = session.with_settings(stand_ins)
    make_loss(session, num_targets=1)
    make_augment(session)
    make_scheduler(session, make_optimizer(session))


def hyperparameters(session: Session) -> dict[str, Any]:
    """What a checkpoint says of a training, as far as it is known before images are read."""
    base, resolved = session.classifier.base, session.classifier.settings
    settings: Any = OmegaConf.to_container(session.cfg, resolve=True)
    settings |= {"net": resolved.net, "prepare": resolved.prepare}
    settings["base_sha256"] = base and base.sha256
    return dict(settings)


def fit(session: Session, data: ImageDataModule) -> ClassifierModule:
    """Train, from ``ckpt_path`` on if it is set."""
    cfg, net, trainer, plan = session.cfg, session.net, session.trainer, data.plan
    classifier, selection = session.classifier, plan.selection
    names = [classifier.classes[target] for target in selection.targets]
    seed_everything(cfg.seed, verbose=False)
    optimizer = make_optimizer(session)
    module = ClassifierModule(
        net,
        optimizer,
        make_scheduler(session, optimizer),
        classes=classifier.classes,
        targets=selection.targets,
        loss=make_loss(session, len(selection.targets)),
        replay=plan.replay,
        compiles=cfg.compile,
    )
    settings, split = hyperparameters(session), classifier.dataset.split_settings
    settings |= {"target": names, "learnt_sha256": fingerprint_of(data.learnt)}
    settings["data"] = {**classifier.settings.data, **split}
    if cfg.ckpt_path is not None:
        groups = (*KNOWN_AT_ONCE, *_MAKE_A_TRAINING, *(f"data.{key}" for key in split))
        refuse_other_training(cfg.ckpt_path, settings, groups)
    module.save_hyperparameters(settings)
    net.train()
    of_names = ", ".join(names) or "all classes"
    log.info("training on %s images of %s", f"{len(selection.target_indices):,}", of_names)
    if plan.replay:
        of_others = f"{plan.replay:,} of {len(selection.replay_indices):,} others"
        log.info("replay: %s beside each %d", of_others, plan.batch_size)
    trainer.fit(module, datamodule=data, ckpt_path=cfg.ckpt_path, weights_only=True)
    if trainer.global_step < trainer.max_steps:
        fewer = "training: %d steps, fewer than trainer.max_steps=%d; trainer.max_epochs=%s"
        log.info(fewer, trainer.global_step, trainer.max_steps, trainer.max_epochs)
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise TrainingError(
                f"optimizer.lr={cfg.optimizer.lr}: training diverged, {name} is not "
                f"finite at step {trainer.global_step}; expected a smaller learning rate"
            )
    return module
