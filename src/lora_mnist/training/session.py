"""A session: what all trainings and tests of one run share, made once."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer

from lora_mnist.choice import AUTO, Choice
from lora_mnist.classifier.classifier import Classifier
from lora_mnist.classifier.learnt import fingerprint_of
from lora_mnist.classifier.settings import foreign_code
from lora_mnist.config.command import Run, make
from lora_mnist.data import Images, ImageSets
from lora_mnist.data.mistakes import Mistakes
from lora_mnist.data.plan import ImageDataModule, Plan, Selection, mix_of, select
from lora_mnist.errors import TrainingError, UserError, as_value, config_group
from lora_mnist.lora.base_state import base_state_dict, changed_tensors
from lora_mnist.lora.model import KINDS
from lora_mnist.measure.predictions import Predictions, predictions_of
from lora_mnist.project import quoted
from lora_mnist.training.checkpoint import refuse_other_training
from lora_mnist.training.module import ClassifierModule

log = logging.getLogger(__name__)


#: The settings that a training which goes on has to have as before, with those below them: what is
#: known before images are read, and all others.
KNOWN_AT_ONCE = ("base_sha256", "seed", "net", "prepare")
_MAKE_A_TRAINING = (
    *("target", "optimizer", "scheduler", "loss", "lora", "batches", "callbacks.averaging"),
    *("refit", "learnt_sha256", "trainer.accumulate_grad_batches", "trainer.gradient_clip_val"),
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

    def order_seed(self) -> int:
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
            labels, seed = images.train.labels, self.order_seed()
            plan = Plan(selection, labels, size, replay, seed, processes)
        return ImageDataModule(self.classifier.dataset, images, plan, self.make_augment())

    def make_augment(self) -> Any:
        """The transform that changes training images; ``None``: they stay as they are."""
        return make("batches.augment", self.augment) if self.augment else None

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
        if decay and self.cfg.stage == "lora" and KINDS[self.cfg.lora.init].forbids_decay:
            raise UserError(
                f"optimizer.weight_decay={decay}: expected 0 with lora.init={self.cfg.lora.init}: "
                "decay would move the network away from the base, not towards it"
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
        stand_ins = {}
        for key, value in {"optimizer.lr": 0.1, "trainer.max_steps": 400}.items():
            if OmegaConf.select(self.cfg, key) == AUTO:
                stand_ins[key] = value
        session = self.with_settings(stand_ins)
        session.make_loss(num_targets=1)
        session.make_augment()
        session.make_scheduler(session.make_optimizer())

    def hyperparameters(self) -> dict[str, Any]:
        """What a checkpoint says of a training, as far as it is known before images are read."""
        base, resolved = self.classifier.base, self.classifier.settings
        settings: Any = OmegaConf.to_container(self.cfg, resolve=True)
        settings |= {"net": resolved.net, "prepare": resolved.prepare}
        settings["base_sha256"] = base and base.sha256
        return dict(settings)

    def fit(self, data: ImageDataModule) -> ClassifierModule:
        """Train, from ``ckpt_path`` on if it is set."""
        cfg, net, trainer, plan = self.cfg, self.net, self.trainer, data.plan
        classifier, selection = self.classifier, plan.selection
        names = [classifier.classes[target] for target in selection.targets]
        seed_everything(cfg.seed, verbose=False)
        optimizer = self.make_optimizer()
        module = ClassifierModule(
            net,
            optimizer,
            self.make_scheduler(optimizer),
            classes=classifier.classes,
            targets=selection.targets,
            loss=self.make_loss(len(selection.targets)),
            replay=plan.replay,
            compiles=cfg.compile,
        )
        settings, split = self.hyperparameters(), classifier.dataset.split_settings
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

    def as_set(self, key: str, value: Any) -> Choice:
        """A value that was typed, or stands in the configuration."""
        names = {key, "digit"} if key == "target" else {key}
        is_typed = not names.isdisjoint(self.run.keys)
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
    augment: Any = cfg.batches.augment or {}
    if OmegaConf.is_config(augment):
        augment = OmegaConf.to_container(augment, resolve=True)
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


def prove_unchanged(session: Session) -> None:
    """RuntimeError, unless the base in the network is what it was, bit for bit."""
    base = session.classifier.base
    assert base is not None
    if changed := changed_tensors(base.tensors, base_state_dict(session.net)):
        raise RuntimeError(f"training the adapter changed the base: {', '.join(changed)}")
    log.info("base unchanged: %d tensors, bit for bit", len(base.tensors))
