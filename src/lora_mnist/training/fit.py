"""One training: its batches, loss, optimizer and scheduler, as the configuration names them."""

import logging
from collections.abc import Iterable
from itertools import islice
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import update_bn

from lora_mnist.classifier.classifier import Classifier
from lora_mnist.classifier.train_digests_file import hash_digests
from lora_mnist.config.make import instantiate_part, with_values
from lora_mnist.data.plan import Plan
from lora_mnist.errors import TrainingError, UserError, report_group_errors
from lora_mnist.lora.model import KINDS
from lora_mnist.training.callbacks import TrainedAverage
from lora_mnist.training.checkpoint import read_hparams, refuse_other_training
from lora_mnist.training.data_module import ImageDataModule
from lora_mnist.training.module import ClassifierModule
from lora_mnist.training.session import Session
from lora_mnist.training.trials import LEARNING_RATES, STEPS, Training, resolve_augment, select_auto

log = logging.getLogger(__name__)

#: Keys that a resumed training must not change, known before images are read.
EARLY_RESUME_KEYS = ("base_sha256", "seed", "net", "prepare")
#: The other keys of this kind. The number of steps may change unless a scheduler counts them.
LATE_RESUME_KEYS = (
    *("target", "optimizer", "scheduler", "loss", "lora", "batches", "callbacks.averaging"),
    *(
        "refit",
        "train_digests_sha256",
        "trainer.accumulate_grad_batches",
        "trainer.gradient_clip_val",
    ),
    "trainer.precision",
)
#: Values in place of auto, to make the parts of a training before images are known.
_STAND_INS = {
    "optimizer.lr": LEARNING_RATES[0],
    "trainer.max_steps": STEPS,
    "loss.target_weight": 0.25,
}


def build_datamodule(session: Session, training: Training) -> ImageDataModule:
    """Build the batches of a training, with its validation images."""
    processes = session.trainer.world_size
    cfg, images = training.cfg, training.images
    numbers = (cfg.batches.batch_size, cfg.batches.replay, cfg.batches.seed)
    with report_group_errors("batches"):
        plan = Plan(training.selection, images.train.labels, *numbers, processes)
    augment: Any = cfg.batches.augment
    if augment is not None:
        augment = instantiate_part("batches.augment", augment)
    return ImageDataModule(session.classifier.dataset, images, plan, augment)


def make_optimizer(
    cfg: DictConfig, trainer: Trainer, parameters: Iterable[nn.Parameter]
) -> Optimizer:
    """Make the optimizer of the trained parameters."""
    arguments = dict(cfg.optimizer)
    if trainer.gradient_clip_val and "mixed" in trainer.precision:
        arguments.pop("fused", None)  # Lightning refuses to clip with a fused optimizer
    optimizer: Optimizer = instantiate_part("optimizer", arguments, list(parameters))
    decay = optimizer.defaults.get("weight_decay")  # AdamW decays without a key for it
    if decay and cfg.stage == "lora" and KINDS[cfg.lora.init].forbids_decay:
        raise UserError(
            f"optimizer.weight_decay={decay}: expected 0 with lora.init={cfg.lora.init}: "
            "decay would move the network away from the base, not towards it"
        )
    return optimizer


def make_scheduler(cfg: DictConfig, optimizer: Optimizer) -> dict[str, Any] | None:
    """Make the scheduler of the learning rate, for Lightning; None if the rate is constant."""
    arguments = dict(cfg.scheduler or {})
    interval = arguments.pop("interval", "step")
    if not arguments:
        return None
    return {"scheduler": instantiate_part("scheduler", arguments, optimizer), "interval": interval}


def check_training(cfg: DictConfig, trainer: Trainer, classifier: Classifier) -> None:
    """Make the parts of a training once, so that wrong values are refused before it begins."""
    cfg = with_values(cfg, select_auto(cfg, _STAND_INS))
    instantiate_part("loss", cfg.loss)
    if augment := resolve_augment(cfg, classifier):
        instantiate_part("batches.augment", augment)
    parameters = classifier.net.parameters()  # its maker may have frozen them
    make_scheduler(cfg, make_optimizer(cfg, trainer, parameters))


def build_hparams(cfg: DictConfig, classifier: Classifier) -> dict[str, Any]:
    """Return a checkpoint's description of a training, without what images decide."""
    base, settings = classifier.base, classifier.settings
    hparams: Any = OmegaConf.to_container(cfg, resolve=True)
    hparams |= {"net": settings.net, "prepare": settings.prepare}
    hparams["base_sha256"] = base and base.sha256
    return dict(hparams)


def fit(
    session: Session, cfg: DictConfig, trainer: Trainer, data: ImageDataModule
) -> ClassifierModule:
    """Train; resume from ``ckpt_path`` if it is set."""
    net, classifier, plan = session.net, session.classifier, data.plan
    classes, selection = classifier.classes, plan.selection
    names = [classes[target] for target in selection.targets]
    seed_everything(cfg.seed, verbose=False)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(cfg, trainer, trained)
    module = ClassifierModule(
        net,
        optimizer,
        make_scheduler(cfg, optimizer),
        classes=classes,
        targets=selection.targets,
        loss=instantiate_part("loss", cfg.loss),
        replay=plan.replay,
        test_prior=classifier.test_prior,
        compiles=cfg.compile,
    )
    hparams, split = build_hparams(cfg, classifier), classifier.dataset.split_settings
    hparams |= {"target": names, "train_digests_sha256": hash_digests(data.train_digests)}
    hparams["data"] = {**classifier.settings.data, **split}
    if cfg.ckpt_path is not None:
        groups = (*EARLY_RESUME_KEYS, *LATE_RESUME_KEYS, *(f"data.{key}" for key in split))
        saved, ignored = read_hparams(cfg.ckpt_path), ("lora.scale", "lora.offset")
        refuse_other_training(cfg.ckpt_path, saved, hparams, groups, ignored)
    module.save_hyperparameters(hparams)
    net.train()
    of_names = f" of {', '.join(names)}" if names else ""
    log.info("training on %s images%s", f"{len(selection.learn_indices):,}", of_names)
    if plan.replay:
        others = f"{plan.replay:,} replayed of {len(selection.replay_indices):,} others"
        log.info("each batch: %d of these, and %s", plan.batch_size, others)
    trainer.fit(module, datamodule=data, ckpt_path=cfg.ckpt_path, weights_only=True)
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    if not module.has_adapter and any(isinstance(each, TrainedAverage) for each in callbacks):
        _update_batch_norm(session, data)
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


def _update_batch_norm(session: Session, data: ImageDataModule) -> None:
    """Compute the batch statistics of the averaged weights, in place of the last weights'."""
    device, plan = session.switch_to_eval(), data.plan
    of_epoch = islice(plan.batches(), plan.batches_per_epoch)
    batches = ([data.dataset.normalize(images.to(device))] for images, _ in data.loader(of_epoch))
    update_bn(batches, session.net)
