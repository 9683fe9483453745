"""The recipe of a training: its images, adapter, loss and optimizer."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer

from lora_mnist.classifier import Classifier
from lora_mnist.data import ImageDataset, Images, ImageSets
from lora_mnist.data.datamodule import ImageDataModule, is_one_epoch
from lora_mnist.data.mistakes import Mistakes, wrong_pictures
from lora_mnist.data.plan import Plan, Selection, select
from lora_mnist.disk.resume import COUNTS_OF_STEPS
from lora_mnist.errors import UserError, config_group, is_number
from lora_mnist.lora.model import add_lora
from lora_mnist.lora.targets import layers_to_adapt
from lora_mnist.repair.loss import Loss
from lora_mnist.repair.module import ClassifierModule
from lora_mnist.repair.networks import evaluating, importable
from lora_mnist.repair.predictions import Predictions, columns_at, counts_of
from lora_mnist.repair.significance import weakest
from lora_mnist.trainer import monitored_validation

log = logging.getLogger(__name__)

#: lora.rank=auto, or a layer's full rank where that is smaller. docs/experiments.md compares ranks.
_AUTO_RANK = 64


def read_images(trainer: Trainer, dataset: ImageDataset) -> ImageSets:
    """All images; with ``trainer.limit_val_batches=0`` there are none for validation."""
    with config_group("data"):
        images = dataset.sets
    if not len(images.train):
        raise UserError(f"data: expected images to train on; {dataset.name} has none")
    if not trainer.limit_val_batches:
        images = replace(images, val=images.val.subset(torch.arange(0)))
    return images


def refuse_inconsistent(cfg: DictConfig, trainer: Trainer, val: Images) -> None:
    """Refuse values that are each right on their own, but not together, or not with the images."""
    scheduler = cfg.scheduler or {}
    if -1 in [scheduler.get(key) for key in COUNTS_OF_STEPS]:
        raise UserError(
            "trainer.max_steps=-1: expected the number of steps, since scheduler counts them"
        )
    if is_one_epoch(trainer) and scheduler.get("interval") == "epoch":
        raise UserError(
            "scheduler.interval=epoch: expected trainer.max_epochs=NUMBER, since a training of "
            f"trainer.max_steps={trainer.max_steps} alone is one epoch"
        )
    weight = cfg.loss.get("target_weight")
    if cfg.data.replay == 0 and weight is not None:
        raise UserError(f"loss.target_weight={weight}: expected null, or data.replay > 0")
    needs_val = []
    if cfg.optimizer.lr == "auto":
        if cfg.stage != "lora" or "max_lr" in scheduler:
            raise UserError(
                "optimizer.lr=auto: expected a number; only stage=lora finds one, and none for "
                "scheduler=one_cycle"
            )
        needs_val.append("optimizer.lr=auto")
    if cfg.target == "weakest":
        needs_val.append("target=weakest")
    if cfg.stage == "lora":
        scale, refit = cfg.lora.scale, cfg.refit
        if cfg.lora.init != "gaussian" and cfg.lora.init_std != 1:
            raise UserError(f"lora.init_std={cfg.lora.init_std}: expected lora.init=gaussian")
        if scale != "auto" and (not is_number(scale) or scale <= 0):
            raise UserError(f"lora.scale={scale}: expected a number > 0, or auto")
        if refit not in (True, False, "auto"):
            raise UserError(f"refit={refit}: expected true, false or auto")
        if cfg.target is not None and cfg.data.mistakes is not None:
            raise UserError(
                f"target={cfg.target}: expected null, since data.mistakes={cfg.data.mistakes} is "
                "learnt"
            )
        if scale == "auto":
            needs_val.append("lora.scale=auto")
        if cfg.dial:
            needs_val.append("dial=true")
        if refit is True:
            needs_val.append("refit=true")
    if monitor := monitored_validation(trainer):
        needs_val.append(f"callbacks: monitor={monitor}")
        if "refit=true" in needs_val:
            raise UserError(
                f"refit=true: expected false, since {monitor} is monitored, and the last training "
                "learns the validation images"
            )
        interval = trainer.val_check_interval
        batches = trainer.max_steps * trainer.accumulate_grad_batches
        if isinstance(interval, int) and 0 <= batches < interval:
            raise UserError(
                f"trainer.val_check_interval={interval}: expected at most {batches}, the batches "
                f"of trainer.max_steps={trainer.max_steps}, since {monitor} is monitored"
            )
    if needs_val and not len(val):
        expected = "data.val_size > 0, or images in val/ that are not in train/"
        if not trainer.limit_val_batches:
            expected = "trainer.limit_val_batches > 0"
        raise UserError(
            f"{' '.join(needs_val)}: expected {expected}, since validation images decide"
        )


def mistakes_of(cfg: DictConfig, trainer: Trainer, classifier: Classifier) -> Mistakes | None:
    """The pictures in ``data.mistakes`` that the base gets wrong; ``None``: no folder is named."""
    if cfg.data.mistakes is None:
        return None
    folder, share = Path(str(cfg.data.mistakes)), cfg.data.mistakes_test
    net, dataset = classifier.net, classifier.dataset
    with evaluating(net, trainer.strategy.root_device) as device:

        def predict(pictures: Iterable[tuple[Tensor, int]]) -> Tensor:
            return columns_at(net, dataset.stacked(pictures, device), [0]).prediction[0]

        return wrong_pictures(predict, dataset, folder, share)


def select_images(
    cfg: DictConfig,
    classes: Sequence[str],
    images: ImageSets,
    base_val: Predictions | None,
    mistakes: Mistakes | None = None,
) -> Selection:
    """The images to train on, as ``cfg.target`` says: perhaps those of the weakest class.

    ``base_val`` are the base's predictions for the validation images. Mistakes to learn stand at
    the end of the training images.
    """
    labels, target = images.train.labels, cfg.target
    if mistakes is not None:
        indices = torch.arange(len(labels))
        first = len(labels) - len(mistakes.learnt)
        return Selection([], indices[first:], indices[:first])
    if target == "weakest":
        assert base_val is not None  # refuse_inconsistent
        counts = counts_of(base_val)["before"]
        errors, numbers = counts["errors_per_class"], counts["images_per_class"]
        if not any(errors):
            expected = "a class"
            if images.held_out.get("val") != "test" and "test" not in images.held_out:
                expected += ", or data.val_from=test if the base was trained on these images"
            raise UserError(
                f"target=weakest: the base has all {len(images.val)} validation images right; "
                f"expected {expected}"
            )
        target = weakest(errors, numbers)
        wrong, count = errors[target], numbers[target]
        share = f"{wrong} of its {count} validation images are wrong ({wrong / count:.1%})"
        log.info("target=%d (%s): the weakest class, %s", target, classes[target], share)
    with config_group("data"):
        return select(labels, classes, target)


def make_data_module(
    cfg: DictConfig,
    trainer: Trainer,
    classifier: Classifier,
    images: ImageSets,
    selection: Selection,
) -> ImageDataModule:
    """The images of the training, in the order of its plan.

    ``data.seed=null`` is the order of a plain ``DataLoader(shuffle=True)``, which draws two numbers
    from torch: for its workers, then for its sampler.
    """
    seed = cfg.data.seed
    if seed is None:
        _, seed = torch.empty(2, dtype=torch.int64).random_().tolist()
    with config_group("data"):
        plan = Plan(
            selection,
            images.train.labels,
            cfg.data.batch_size,
            cfg.data.replay,
            int(seed),
            trainer.world_size,
        )
    with importable([Path.cwd()]), config_group("data.augment"):
        augment = instantiate(cfg.data.augment) if cfg.data.get("augment") else None
    return ImageDataModule(classifier.dataset, images, plan, augment)


def put_new_adapter(cfg: DictConfig, net: nn.Module) -> None:
    """Put a new adapter on ``net``, as ``cfg.lora`` says."""
    settings: Any = OmegaConf.to_container(cfg.lora, resolve=True)
    del settings["scale"]  # of the finished adapter
    if settings["dropout"] == "auto":  # each training sets its own
        settings["dropout"] = 0.0
    is_auto = settings.get("rank") == "auto"
    if is_auto:
        settings["rank"] = _AUTO_RANK
    with config_group("lora"):
        if is_auto or settings.get("init") == "pissa":
            ranks = settings["rank_pattern"] = dict(settings.get("rank_pattern") or {})
            for name, weight in layers_to_adapt(net, settings.get("target_modules", "all")).items():
                full = min(weight.base.flatten(1).shape)
                if type(settings.get("rank")) is int and full < settings["rank"]:
                    ranks[f"^{name}"] = full  # the user's own pattern comes first
        add_lora(net, **settings)


def loss_and_optimizer(cfg: DictConfig) -> tuple[Loss, Callable[..., Optimizer]]:
    """The loss, and what makes an optimizer of parameters and ``lr``."""
    with config_group("loss"):
        loss = instantiate(cfg.loss, _convert_="all")
    settings = dict(cfg.optimizer)
    settings.pop("lr")
    with importable([Path.cwd()]), config_group("optimizer"):
        make_optimizer = instantiate(settings, _convert_="all")  # plain lists, for checkpoints
        if cfg.stage == "lora" and cfg.lora.init == "pissa":
            # AdamW decays without a key that says so.
            one = make_optimizer([nn.Parameter(torch.zeros(1))], lr=0.1)
            if decay := one.defaults.get("weight_decay"):
                raise ValueError(
                    f"weight_decay={decay}: expected 0 with lora.init=pissa, whose factors start "
                    "at the weight's principal part: decay would move the network away from the "
                    "base, not towards it"
                )
    return loss, make_optimizer


def make_module(
    cfg: DictConfig,
    classifier: Classifier,
    data: ImageDataModule,
    rate: float,
    base_val: Predictions | None,
) -> ClassifierModule:
    """The module that trains the network at this rate. With ``cfg.compile`` it is compiled.

    Its hyperparameters are everything that the run's numbers depend on: a run that goes on must
    have the same settings, and the same content of files.
    """
    plan, base = data.plan, classifier.base
    loss, make_optimizer = loss_and_optimizer(cfg)
    trained = [parameter for parameter in classifier.net.parameters() if parameter.requires_grad]
    with config_group("optimizer"):
        if not is_number(rate) or rate < 0:
            raise ValueError(f"lr={rate}: expected a number >= 0, or auto")
        optimizer = make_optimizer(trained, lr=rate)
    schedule = dict(cfg.scheduler or {})
    interval = schedule.pop("interval", "step")
    scheduler = None
    if schedule:
        with config_group("scheduler"):
            scheduler = instantiate(schedule, _convert_="all")(optimizer)
    if cfg.compile:
        classifier.net.compile()  # in place: its tensors keep their names
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    settings["net"] = classifier.settings["net"]
    settings["data"] |= classifier.settings["data"]
    settings |= {"base_ckpt": str(classifier.base_path), "base_sha256": base and base.sha256}
    settings |= {"classes": classifier.classes, "data_sha256": dict(data.images.sha256)}
    settings |= {"targets": plan.selection.targets, "rate": rate}
    return ClassifierModule(
        classifier.net,
        optimizer,
        scheduler,
        interval=interval,
        loss=loss,
        replay=plan.replay,
        seed=cfg.seed,
        classes=classifier.classes,
        targets=plan.selection.targets,
        base_val=base_val,
        hyperparameters=settings,
    )
