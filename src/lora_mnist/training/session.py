"""A session: what all trainings and tests of one run share, made once."""

import logging
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer

from lora_mnist.choice import AUTO, WEAK, Choice
from lora_mnist.classifier.classifier import Classifier
from lora_mnist.classifier.learnt import fingerprint_of
from lora_mnist.classifier.networks import device_of
from lora_mnist.classifier.settings import foreign_code
from lora_mnist.config.make import classifier_of, make, settings_of
from lora_mnist.config.run import Run, key_of
from lora_mnist.data import Images, ImageSets
from lora_mnist.data.mistakes import Mistakes, with_mistakes, wrong_pictures
from lora_mnist.data.plan import ImageDataModule, Plan, Selection, mix_of, numbers_of, select
from lora_mnist.errors import TrainingError, UserError, as_value, config_group, require_one_of
from lora_mnist.lora.base_state import base_state_dict, changed_tensors
from lora_mnist.lora.model import KINDS
from lora_mnist.lora.point import BASE
from lora_mnist.lora.weight import by_pattern, layers_to_adapt
from lora_mnist.measure.predictions import Predictions, predictions_at, predictions_of
from lora_mnist.project import DATA, quoted
from lora_mnist.training.checkpoint import refuse_other_training
from lora_mnist.training.module import ClassifierModule
from lora_mnist.training.trainer import make_trainer

log = logging.getLogger(__name__)


_NONE = torch.empty(0, dtype=torch.int64)
_EMPTY = Images(_NONE, _NONE, digests=_NONE)
#: What a session has before images are read.
NO_IMAGES = ImageSets(_EMPTY, _EMPTY, _EMPTY, {}, {})
#: The settings that a training which goes on has to have as before, with those below them.
_MAKE_A_TRAINING = (
    *("seed", "net", "prepare", "target", "learnt_sha256", "optimizer", "scheduler", "loss"),
    *("lora", "batches", "callbacks.averaging"),
    *("trainer.accumulate_grad_batches", "trainer.gradient_clip_val"),
)


@dataclass(frozen=True)
class Session:
    """What a run works with. Nothing of it is replaced while the run goes on."""

    cfg: DictConfig
    run: Run
    trainer: Trainer
    classifier: Classifier
    images: ImageSets  # mistakes to learn stand at the end of those to train on
    mistakes: Mistakes | None
    started: float  # seconds, as time.perf_counter has them

    @property
    def net(self) -> nn.Module:
        return self.classifier.net

    @property
    def is_fast_dev_run(self) -> bool:
        """Whether one batch of each kind is all: nothing is kept that others use."""
        return bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]

    @property
    def parts(self) -> dict[str, Images]:
        """The images of which predictions are made, by the names of their parts."""
        parts = {"val": self.images.val, "test": self.images.test}
        if self.mistakes is not None:
            parts |= {"mistakes": self.mistakes.train, "mistakes_test": self.mistakes.test}
        return parts

    def predictions(self, part: str, before: Predictions | None = None) -> Predictions | None:
        """The table of a part; ``None`` if it has no images. ``before``: the base's, if known."""
        images, dataset = self.parts[part], self.classifier.dataset
        if not len(images):
            return None
        batches = dataset.batches(images, self.evaluating(), name=part)
        return predictions_of(self.net, batches, before)

    def evaluating(self) -> torch.device:
        """Put the network into eval mode on the Trainer's device, where it stays; return that."""
        device = self.trainer.strategy.root_device
        self.net.eval().to(device)
        return device

    def tables(self, with_val: bool = False) -> dict[str, Predictions]:
        """The predictions for each part that has images, without ``val`` by default."""
        tables = {}
        for part in self.parts:
            if part == "val" and not with_val:
                continue
            if (table := self.predictions(part)) is not None:
                tables[part] = table
        return tables

    @property
    def augment(self) -> Any:
        return augment_of(self.cfg, self.classifier)

    @cached_property
    def _order_seed(self) -> int:
        """The seed of the images' order; with ``null`` it is drawn as a plain DataLoader does."""
        seed = self.cfg.batches.seed
        if seed is None:  # two numbers: for its workers, then for its sampler
            _, seed = torch.empty(2, dtype=torch.int64).random_().tolist()
        return int(seed)

    def data(self, selection: Selection, with_validation: bool = False) -> ImageDataModule:
        """The batches of a training; ``with_validation`` learns the validation images, too."""
        batches, images = self.cfg.batches, self.images
        if with_validation:
            train, none = images.train.followed_by(images.val), images.val.subset(torch.arange(0))
            images = replace(images, train=train, val=none)
            classes = self.classifier.classes
            selection = select(train.labels, classes, [classes[c] for c in selection.targets])
        processes, size, replay = self.trainer.world_size, batches.batch_size, batches.replay
        mix = mix_of(len(self.classifier.classes), len(selection.targets))
        if size == AUTO:  # a multiple of the processes
            size = max(1, mix.batch_size // processes) * processes
        if replay == AUTO:
            replay = min(mix.replay, len(selection.replay_indices)) // processes * processes
        with config_group("batches"):
            labels, seed = images.train.labels, self._order_seed
            plan = Plan(selection, labels, size, replay, seed, processes)
        augment = make("batches.augment", self.augment) if self.augment else None
        return ImageDataModule(self.classifier.dataset, images, plan, augment)

    def make_loss(self, num_targets: int) -> Any:
        """The loss of a batch, to learn so many classes."""
        arguments = dict(self.cfg.loss)
        if arguments.get("target_weight") == AUTO:
            mix = mix_of(len(self.classifier.classes), num_targets)
            arguments["target_weight"] = mix.target_weight
        return make("loss", arguments)

    def make_optimizer(self) -> Optimizer:
        """The optimizer of what is trainable in the network."""
        arguments = dict(self.cfg.optimizer)
        if self.trainer.gradient_clip_val and "mixed" in self.trainer.precision:
            arguments.pop("fused", None)  # beside a fused optimizer Lightning refuses to clip
        trained = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        optimizer: Optimizer = make("optimizer", arguments, trained)
        decay = optimizer.defaults.get("weight_decay")  # AdamW decays without a key for it
        init = self.cfg.lora.init if self.cfg.stage == "lora" else None
        if decay and init in KINDS and KINDS[init].forbids_decay:
            raise UserError(
                f"optimizer.weight_decay={decay}: expected 0 with lora.init={init}: decay would "
                "move the network away from the base, not towards it"
            )
        return optimizer

    def make_scheduler(self, optimizer: Optimizer) -> dict[str, Any] | None:
        """The scheduler of the learning rate, for Lightning; ``None`` where it is constant."""
        arguments = dict(self.cfg.scheduler or {})
        interval = arguments.pop("interval", "step")
        if not arguments:
            return None
        return {"scheduler": make("scheduler", arguments, optimizer), "interval": interval}

    def check_training(self) -> None:
        """Make the parts of a training once: they refuse what they cannot use before it begins."""
        known = {}
        if self.cfg.optimizer.lr == AUTO:
            known["optimizer.lr"] = 0.1
        if self.cfg.trainer.max_steps == AUTO:
            known["trainer.max_steps"] = 400
        session = self.with_settings(known)
        session.make_loss(num_targets=1)
        session.make_scheduler(session.make_optimizer())

    def _hyperparameters(self, targets: Sequence[str]) -> dict[str, Any]:
        """What loggers and checkpoints say of a training."""
        base, resolved = self.classifier.base, self.classifier.settings
        hyperparameters: Any = OmegaConf.to_container(self.cfg, resolve=True)
        hyperparameters |= {"net": resolved.net, "prepare": resolved.prepare}
        hyperparameters["data"] = {**resolved.data, **self.classifier.dataset.split_settings}
        hyperparameters |= {"target": targets, "base_sha256": base and base.sha256}
        return dict(hyperparameters)

    def fit(self, data: ImageDataModule) -> ClassifierModule:
        """Train, from ``ckpt_path`` on if it is set."""
        net, trainer, plan = self.net, self.trainer, data.plan
        classes, selection = self.classifier.classes, plan.selection
        names = [classes[target] for target in selection.targets]
        seed_everything(self.cfg.seed, verbose=False)
        optimizer = self.make_optimizer()
        module = ClassifierModule(
            net,
            optimizer,
            self.make_scheduler(optimizer),
            classes=classes,
            targets=selection.targets,
            loss=self.make_loss(len(selection.targets)),
            replay=plan.replay,
            compiles=self.cfg.compile,
        )
        hyperparameters = self._hyperparameters(names)
        hyperparameters["learnt_sha256"] = fingerprint_of(data.learnt)
        if self.cfg.ckpt_path is not None:
            refuse_other_training(self.cfg.ckpt_path, hyperparameters, _MAKE_A_TRAINING)
        module.save_hyperparameters(hyperparameters)
        net.train()
        of_names = ", ".join(names) or "all classes"
        log.info("training on %s images of %s", f"{len(selection.target_indices):,}", of_names)
        if plan.replay:
            of_others = f"{plan.replay:,} of {len(selection.replay_indices):,} others"
            log.info("replay: %s beside each %d", of_others, plan.batch_size)
        trainer.fit(module, datamodule=data, ckpt_path=self.cfg.ckpt_path, weights_only=True)
        if trainer.global_step < trainer.max_steps:
            fewer = "training: %d steps, fewer than trainer.max_steps=%d; trainer.max_epochs=%s"
            log.info(fewer, trainer.global_step, trainer.max_steps, trainer.max_epochs)
        for name, parameter in net.named_parameters():
            if parameter.requires_grad and not parameter.isfinite().all():
                raise TrainingError(
                    f"optimizer.lr={self.cfg.optimizer.lr}: training diverged, {name} is not "
                    f"finite at step {trainer.global_step}; expected a smaller learning rate"
                )
        return module

    def as_set(self, key: str, value: Any) -> Choice:
        """A value that was typed, or stands in the configuration."""
        names = {key, "digit"} if key == "target" else {key}
        is_typed = not names.isdisjoint(key_of(text) for text in self.run.typed or ())
        return Choice(value, why="typed" if is_typed else "as configured")

    def of_first_process(self, value: Any) -> Any:
        """The value that the first of several processes has chosen, for all of them."""
        return self.trainer.strategy.broadcast(value)

    def with_settings(self, settings: Mapping[str, Any]) -> "Session":
        """The session of another training, whose configuration has these values by key."""
        cfg = self.cfg.copy()
        for key, value in settings.items():
            OmegaConf.update(cfg, key, value, merge=False, force_add=True)
        return replace(self, cfg=cfg)


def augment_of(cfg: DictConfig, classifier: Classifier) -> Any:
    """What changes training images, as one transform; ``auto``: what did in the base's training."""
    batches: Any = OmegaConf.to_container(cfg.batches, resolve=True)
    augment = batches["augment"] or {}
    if augment != AUTO:
        if not isinstance(augment, dict):
            expected = "a transform, transforms by name, auto or null; augment= takes presets"
            raise UserError(f"batches.augment={as_value(augment)}: expected {expected}")
        changes = [augment] if "_target_" in augment else list(augment.values())
        changes = [change for change in changes if change is not None]
        if len(changes) > 1:
            return {"_target_": "torchvision.transforms.v2.Compose", "transforms": changes}
        return changes[0] if changes else None
    base = classifier.base
    assert base is not None  # _refuse_settings
    recorded = base.record.get("made", {}).get("augment")
    if foreign := recorded and foreign_code({}, "transform", recorded):
        line = quoted(f"batches.augment={as_value(recorded)}")
        raise UserError(
            f"batches.augment=auto: the base's file names {foreign}, code of its maker: {line} "
            "runs it, from where you stand; augment=none trains without"
        )
    return recorded


def open_session(cfg: DictConfig, run: Run) -> Session:
    """Make the parts of a run, and refuse what cannot be used before anything is computed.

    That is asked in one order: what the configuration shows, then the network, then the images.
    """
    started = time.perf_counter()
    _refuse_settings(cfg, run)
    trainer = make_trainer(cfg, run)
    if cfg.stage == "pretrain":
        classifier = Classifier.new(**settings_of(cfg))
    else:
        classifier = classifier_of(cfg)
    session = Session(cfg, run, trainer, classifier, NO_IMAGES, None, started)
    _refuse_network(session)
    session = _with_images(session)
    _refuse_images(session)
    return session


def _refuse_settings(cfg: DictConfig, run: Run) -> None:
    """Refuse what the configuration alone shows: what a stage cannot do, a repair of nothing."""
    for text in run.typed or ():
        if key_of(text) == "augment" and re.search(r"\[.*\bauto\b", text):  # Hydra would drop it
            raise UserError(f"{text}: expected auto alone, or a list without it")
    target, mistakes, scheduler = cfg.get("target"), cfg.mistakes, cfg.get("scheduler") or {}
    if cfg.stage == "pretrain":
        needs_base = {
            f"target={target}": target in WEAK,
            f"mistakes={mistakes}": mistakes is not None,
            "optimizer.lr=auto": cfg.optimizer.lr == AUTO,
            "batches.augment=auto": cfg.batches.augment == AUTO,
            "trainer.max_steps=auto": cfg.trainer.max_steps == AUTO,
        }
        for key, is_asked in needs_base.items():
            if is_asked:
                raise UserError(f"{key}: expected stage=lora, since it needs a base")
    if cfg.stage == "lora" and mistakes is None and target is None:
        raise UserError(
            "target: missing; expected the class to repair, by number or name, a list of them, or "
            "weakest, or weak; or mistakes=FOLDER"
        )
    if cfg.stage == "lora" and mistakes is not None:
        if target not in (None, *WEAK):
            raise UserError(
                f"target={as_value(target)}: expected null; mistakes={mistakes} is learnt"
            )
        if cfg.refit is True:
            raise UserError(f"refit=true: expected auto or false; mistakes={mistakes} is learnt")
    if (accelerator := cfg.trainer.get("accelerator")) in ("gpu", "mps"):
        device_of(accelerator, "trainer.accelerator")
    if -1 in [scheduler.get(key) for key in ("T_max", "total_iters", "total_steps")]:
        raise UserError(
            "trainer.max_steps=-1: expected the number of steps, since scheduler counts them"
        )


def _refuse_network(session: Session) -> None:
    """Refuse what needs the network, but no image: layers, outputs, the parts of a training."""
    cfg, classifier, net = session.cfg, session.classifier, session.net
    trains, is_repair = cfg.stage != "eval", cfg.stage == "lora"
    if trains and cfg.target not in (None, *WEAK):
        numbers_of(classifier.classes, cfg.target)
    if cfg.mistakes is not None:  # images of the data set are no mistakes that came in
        data_dir = classifier.settings.data.get("data_dir") or DATA
        folder, data = (Path(str(path)).expanduser() for path in (cfg.mistakes, data_dir))
        if folder.resolve().is_relative_to(data.resolve()):
            raise UserError(
                f"mistakes={cfg.mistakes}: expected pictures from elsewhere, in a folder outside "
                f"of data.data_dir={data_dir}"
            )
    if is_repair:
        with config_group("lora"):
            require_one_of("init", cfg.lora.init, KINDS)
            layers = layers_to_adapt(net, cfg.lora.target_modules)
            for key in ("rank_pattern", "alpha_pattern"):
                by_pattern(key, cfg.lora[key], layers, None)
    _check_network(classifier)
    if not trains:
        return
    if cfg.ckpt_path is not None:
        base = classifier.base
        settings = {"base_sha256": base and base.sha256, "refit": cfg.get("refit")}
        for key, value in classifier.dataset.split_settings.items():
            settings[f"data.{key}"] = value
        refuse_other_training(cfg.ckpt_path, settings, settings)
    session.check_training()
    if is_repair and (monitor := _monitored(session.trainer)):
        raise UserError(
            f"callbacks: one monitors {monitor}; expected none with stage=lora, which keeps its "
            "last weights, or their average"
        )


def _with_images(session: Session) -> Session:
    """The session with its images: without those that were learnt, with mistakes, limited."""
    cfg, classifier, device = session.cfg, session.classifier, session.trainer.strategy.root_device
    images, mistakes = classifier.images, None
    if cfg.stage != "eval" and not len(images.train):
        raise UserError(f"data: expected images to train on; {classifier.dataset.name} has none")
    if not len(images.test):
        settings, key = classifier.settings, "data_dir"
        for each in classifier.dataset.split_settings:
            if settings.typed["data"].get(each) is not None:
                key = each
        raise UserError(
            f"data.{key}={as_value(settings.data.get(key))}: {images.left_out['test']['line']}; "
            "expected another folder, or how images were held out in its training"
        )
    if classifier.settings.prepare.get("transform") is not None:  # only images show its outputs
        _check_network(classifier, images.test)
    if cfg.mistakes is not None:
        mistakes, left_out = _mistakes_of(classifier, cfg, device)
        images = replace(images, left_out={**images.left_out, **left_out})
        images = with_mistakes(images, mistakes)
    for part, about in images.left_out.items():
        # A refit has learnt the validation images; who needs them is refused.
        log.log(logging.INFO if part == "val" else logging.WARNING, "%s", about["line"])
    size = classifier.dataset.eval_batch_size
    dev_batches = int(cfg.trainer.get("fast_dev_run") or 0)  # true is 1
    val = _limited(images.val, dev_batches or cfg.trainer.get("limit_val_batches"), size)
    test = _limited(images.test, dev_batches or cfg.trainer.get("limit_test_batches"), size)
    return replace(session, images=replace(images, val=val, test=test), mistakes=mistakes)


def _mistakes_of(
    classifier: Classifier, cfg: DictConfig, device: torch.device
) -> tuple[Mistakes, dict[str, Any]]:
    """The pictures in the folder ``mistakes`` that the base gets wrong, and what is left out."""
    net, dataset = classifier.net, classifier.dataset

    def predict(pictures: Iterable[tuple[Tensor, int]]) -> Tensor:
        return predictions_at(net, dataset.stacked(pictures, device), [BASE]).prediction[0]

    net.eval().to(device)
    mistakes = wrong_pictures(predict, dataset, Path(str(cfg.mistakes)), cfg.mistakes_test)
    test, about = mistakes.test.without_learnt(classifier.learnt, "held-out mistakes")
    return mistakes._replace(test=test), {"mistakes_test": about} if about else {}


def _limited(images: Images, limit: int | float | None, batch_size: int) -> Images:
    """The images of ``limit`` batches; a share, such as 0.1, gives one batch at least."""
    batches = math.ceil(len(images) / batch_size)
    if isinstance(limit, float):
        batches = max(1, int(limit * batches)) if limit else 0
    elif limit is not None:
        batches = min(batches, limit)
    count = batches * batch_size
    if count >= len(images):
        return images
    places = torch.linspace(0, len(images) - 1, count, dtype=torch.float64).long()
    return images.subset(places)  # spread evenly, since a folder's images are sorted by class


def _refuse_images(session: Session) -> None:
    """Refuse what the images show: a class without any, too few to decide."""
    cfg, trainer, classifier = session.cfg, session.trainer, session.classifier
    if cfg.stage == "eval":
        return
    is_repair, monitor = cfg.stage == "lora", _monitored(trainer)
    if cfg.target not in (None, *WEAK):
        select(session.images.train.labels, classifier.classes, cfg.target)
    if 0 < len(session.images.val) < trainer.world_size:
        raise UserError(
            f"trainer.devices={trainer.num_devices}: expected no more processes than validation "
            f"images, {len(session.images.val)}, since each of {trainer.world_size} has its share"
        )
    needs_images = {
        f"target={cfg.target}": cfg.target in WEAK and session.mistakes is None,
        "lora.scale=auto": is_repair and cfg.lora.scale == AUTO,
        "lora.offset=auto": is_repair and cfg.lora.offset == AUTO,
        "refit=true": is_repair and cfg.refit is True,
        "dial=true": is_repair and cfg.dial is True,
        f"callbacks, of which one monitors {monitor}": str(monitor).startswith("val/"),
    }
    asking = [choice for choice, is_asked in needs_images.items() if is_asked]
    if asking and not len(session.images.val):
        reason = "data.val_size > 0, images in val/ that are not in train/, and "
        reason += "trainer.limit_val_batches > 0"
        if "val" in session.images.left_out:
            reason += f"; {session.images.left_out['val']['line']}"
        sets, learnt = classifier.images, classifier.learnt.get("base")
        is_learnt = learnt is not None and bool(torch.isin(sets.train.digests, learnt).all())
        can_take = not len(sets.val) and "test" not in (*sets.held_out, sets.held_out.get("val"))
        if is_learnt and can_take:
            reason = "data.val_from=test, since the base has learnt all others"
        raise UserError(f"{', '.join(asking)}: expected validation images: {reason}")


def _check_network(classifier: Classifier, images: Images | None = None) -> None:
    """Refuse a network that gives no logits, or that changes while it predicts."""
    classifier.check(images)
    base = classifier.base
    if base and (changed := changed_tensors(base.tensors, base_state_dict(classifier.net))):
        raise UserError(
            f"net._target_={classifier.settings.net['_target_']}: expected a network that changes "
            "no tensor of its own while it predicts, since the base is kept bit for bit; "
            f"{changed[0]} has changed"
        )


def _monitored(trainer: Trainer) -> str | None:
    """What a callback of the Trainer monitors, such as val/errors; ``None``: none does."""
    monitors = [getattr(each, "monitor", None) for each in trainer.callbacks]  # type: ignore[attr-defined]
    return next((monitor for monitor in monitors if monitor), None)


def prove_unchanged(session: Session) -> None:
    """RuntimeError, unless the base in the network is what it was, bit for bit."""
    base = session.classifier.base
    assert base is not None
    if changed := changed_tensors(base.tensors, base_state_dict(session.net)):
        raise RuntimeError(f"training the adapter changed the base: {', '.join(changed)}")
    log.info("base unchanged: %d tensors, bit for bit", len(base.tensors))
