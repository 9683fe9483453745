"""Plans the trainings of a run: in each :class:`Training` every ``auto`` has a value.

Three keys are decided elsewhere: ``lora.rank`` in :mod:`.adapter`, before the trainings, and
``lora.scale`` and ``lora.offset`` after them, by validation images (:mod:`.run_training`).
:func:`choose_refit` decides whether there is a refit.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lora_mnist.choice import AUTO, Choice, Reason
from lora_mnist.classifier.classifier import Classifier
from lora_mnist.classifier.foreign_code import find_foreign_code
from lora_mnist.config.make import with_values
from lora_mnist.data import ImageSets
from lora_mnist.data.plan import Selection
from lora_mnist.errors import UserError, format_value
from lora_mnist.lora.base_state import lora_state_dict
from lora_mnist.lora.point import Point
from lora_mnist.lora.weight import adapted_weights
from lora_mnist.project import quote
from lora_mnist.training.session import Session
from lora_mnist.training.target import select_classes

log = logging.getLogger(__name__)

#: For a class with fewer images a repair has several trainings: docs/experiments.md.
FEW_IMAGES = 400
#: trainer.max_steps=auto: for a class of few images, and for one of many.
STEPS, _STEPS_OF_MANY = 400, 1200
#: The values of optimizer.lr=auto: the next one is tried if a training diverges or is no better.
LEARNING_RATES = (0.001, 0.0003, 0.0001)
#: The value of lora.target_modules for trainings of the last layer alone, on features.
LAST_LINEAR = "last-linear"


@dataclass(frozen=True)
class Training:
    """A planned training."""

    name: str  # of its trial, head or refit
    number: int  # 1 is the first of those planned
    cfg: DictConfig  # of the run, with a value in place of each auto that is decided here
    lrs: Sequence[float]  # to try; cfg has one of them, at first the first
    images: ImageSets
    selection: Selection
    start: Mapping[str, Tensor]  # the adapter's tensors before it
    last_layer: str = ""  # the layer that is trained alone, on features; "": there is none
    features: dict[int, Tensor] = field(default_factory=dict)  # of images, by their digests
    refit_point: Point | None = None  # of a refit: the point of the training that it repeats
    total: int = 0  # the number of planned trainings; 0: a head, which is not counted

    @property
    def lr(self) -> float:
        return float(self.cfg.optimizer.lr)

    @property
    def is_only(self) -> bool:
        """True if it is the run's only training, at the first learning rate that is tried."""
        return self.total == 1 and self.lr == self.lrs[0]

    @property
    def title(self) -> str:
        """Its name in the log."""
        if self.total == 0:
            return "the last layer alone"
        return f"training {self.number} of {self.total}" if self.total > 1 else "this training"

    def with_lr(self, lr: float) -> "Training":
        """Return the same training at another of its learning rates."""
        return replace(self, cfg=with_values(self.cfg, {"optimizer.lr": lr}))


def trains_last_layer(cfg: DictConfig) -> bool:
    """Return whether only the last layer is trained."""
    return bool(cfg.stage == "lora" and cfg.lora.target_modules == LAST_LINEAR)


def select_auto(cfg: DictConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values, by key, of those keys that are ``auto``."""
    return {key: value for key, value in values.items() if OmegaConf.select(cfg, key) == AUTO}


def resolve_trials(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """For each trial, return the values that apply: only those of keys set to ``auto``."""
    filled: dict[str, dict[str, Any]] = {}
    for name, values in (cfg.get("trials") or {}).items():
        filled[name] = select_auto(cfg, values or {})
    return filled


def log_unused(cfg: DictConfig) -> None:
    """Log the values of trials that are not used because their keys are set."""
    line = "trials.%s: %s=%s is set, so %s is not used; auto leaves it to trials"
    for name, values in (cfg.get("trials") or {}).items():
        for key, value in (values or {}).items():
            own = OmegaConf.select(cfg, key)
            if own not in (AUTO, value):
                log.info(line, name, key, format_value(own), format_value(value))


def plan_trainings(session: Session, selection: Selection) -> list[Training]:
    """Return the planned trainings without a refit; only one if nothing can choose.

    The adapter is on the network of ``session``: each training starts from it.
    """
    cfg, trials = session.cfg, resolve_trials(session.cfg)
    layer, features = "", dict[int, Tensor]()
    if session.trains and trains_last_layer(cfg):
        weights = adapted_weights(session.net).items()
        (layer,) = (name for name, weight in weights if weight.attribute == "weight")
    # A random seed is drawn once: all trainings have the same order.
    common = {
        "trainer.max_steps": _resolve_steps(session, selection),
        "batches.seed": resolve_seed(cfg),
    }
    common |= _resolve_batch(session, selection)
    planned: list[Training] = []
    start = copy.deepcopy(lora_state_dict(session.net))
    for name, values in (trials or {cfg.stage: {}}).items():
        trial = with_values(cfg, common | values)
        # Features are computed once per image, so they allow no augmentation.
        augment = None if layer else resolve_augment(trial, session.classifier)
        own = {"batches.augment": augment, "batches.augmented": augment is not None}
        lrs = LEARNING_RATES if trial.optimizer.lr == AUTO else (trial.optimizer.lr,)
        own["optimizer.lr"] = lrs[0]
        if cfg.stage == "lora" and cfg.lora.dropout == AUTO:
            own["lora.dropout"] = _resolve_dropout(session, trial)
        trial = with_values(trial, own)
        if all((trial, lrs) != (each.cfg, each.lrs) for each in planned):
            number = len(planned) + 1
            what = (session.images, selection, start, layer, features)
            planned.append(Training(name, number, trial, lrs, *what))
    if len(trials) > 1 and len(planned) == 1:
        log.info("trials: no two differ, so one training is made")
    # An offset alone is the same in each trial.
    pays = session.trains and (
        is_few(session, selection) or (layer and can_choose(session, selection))
    )
    return planned if pays else planned[:1]


def plan_refit(session: Session, best: Training, point: Point, planned: int) -> Training:
    """Plan the best training once more, with the validation images among its training images."""
    images = session.images
    train, none = images.train.followed_by(images.val), images.val.subset(torch.arange(0))
    selection = select_classes(train.labels, best.selection.targets)
    # There are more images to replay. Other values are as in the training that it repeats.
    replay = _resolve_batch(session, selection).get("batches.replay", best.cfg.batches.replay)
    cfg = with_values(best.cfg, {"batches.replay": replay})
    return replace(
        best,
        name="refit",
        number=planned,  # the last one
        total=planned,
        cfg=cfg,
        lrs=[best.lr],
        images=replace(images, train=train, val=none),
        selection=selection,
        refit_point=point,
    )


def choose_refit(session: Session, selection: Selection) -> Choice:
    """Choose whether a refit follows, as ``refit`` says."""
    refit = session.cfg.refit
    if not session.trains:
        return Choice(False, [Reason("nothing_trained")])
    if refit != AUTO:
        return Choice(refit, [session.explain_setting("refit")])
    if session.mistakes is not None:
        return Choice(False, [Reason("mistakes_trained_on")])
    if not len(session.images.val):
        return Choice(False, [Reason("no_validation_images")])
    pays, count = is_few(session, selection), _count_to_learn(session, selection)
    reason = Reason("few_images" if pays else "many_images", images=count, limit=FEW_IMAGES)
    return Choice(pays, [reason], [True, False])


def is_few(session: Session, selection: Selection) -> bool:
    """Return whether a class has so few images to learn that several trainings are worth it."""
    return can_choose(session, selection) and _count_to_learn(session, selection) < FEW_IMAGES


def can_choose(session: Session, selection: Selection) -> bool:
    """Return whether validation images can choose between trainings."""
    return bool(selection.targets) and len(session.images.val) > 0


def _count_to_learn(session: Session, selection: Selection) -> int:
    """Count the training images of the target class; of several classes, take the rarest."""
    counts = session.images.train.labels.bincount(minlength=len(session.classifier.classes))
    return int(counts[selection.targets].min())


# --- each auto ------------------------------------------------------------------------------------


def _resolve_steps(session: Session, selection: Selection) -> int:
    """Return ``trainer.max_steps``."""
    steps = session.cfg.trainer.max_steps
    if steps != AUTO:
        return int(steps)
    is_common = selection.targets and _count_to_learn(session, selection) >= FEW_IMAGES
    return _STEPS_OF_MANY if is_common else STEPS


def resolve_seed(cfg: DictConfig) -> int:
    """Return the seed of the images' order; for null, draw one as a plain DataLoader does."""
    seed = cfg.batches.seed
    if seed is None:  # two numbers: for its workers, then for its sampler
        _, seed = torch.empty(2, dtype=torch.int64).random_().tolist()
    return int(seed)


def _resolve_batch(session: Session, selection: Selection) -> dict[str, Any]:
    """Return ``batches.batch_size``, ``batches.replay`` and ``loss.target_weight``, where auto."""
    cfg, processes = session.cfg, session.trainer.world_size
    # A third of all classes needs more than a tenth of a batch: docs/experiments.md. Mistakes are
    # of no class: they have 10 images of a batch, beside 90, and 0.25 of the loss.
    share = len(selection.targets) / len(session.classifier.classes)
    to_learn = max(10, round(100 * share))
    replay = min(100 - to_learn, len(selection.replay_indices))
    numbers = {
        # A multiple of the processes.
        "batches.batch_size": max(1, to_learn // processes) * processes,
        "batches.replay": replay // processes * processes,
        "loss.target_weight": max(0.25, share),
    }
    return select_auto(cfg, numbers)


def _resolve_dropout(session: Session, trial: DictConfig) -> float:
    """Return a trial's ``lora.dropout``; 0 if no trial sets it, or if no layer supports it."""
    weights = adapted_weights(session.net).values()
    takes_dropout = any(weight.factored_forward for weight in weights)
    dropout = trial.lora.dropout
    return 0.0 if dropout == AUTO or not takes_dropout else float(dropout)


def resolve_augment(cfg: DictConfig, classifier: Classifier) -> Any:
    """Return the augmentation of a training as one transform; ``auto`` is the base's."""
    augment: Any = cfg.batches.augment or {}
    if cfg.batches.augmented is False:  # auto is as true, where no trial fills it
        return None
    if OmegaConf.is_config(augment):
        augment = OmegaConf.to_container(augment, resolve=True)
    if augment != AUTO:
        if not isinstance(augment, dict):
            expected = "a transform, transforms by name, auto or null; augment= takes presets"
            raise UserError(f"batches.augment={format_value(augment)}: expected {expected}")
        changes = [augment] if "_target_" in augment else list(augment.values())
        changes = [change for change in changes if change is not None]
        if len(changes) > 1:
            return {"_target_": "torchvision.transforms.v2.Compose", "transforms": changes}
        return changes[0] if changes else None
    base = classifier.base
    assert base is not None  # _refuse_configuration
    recorded = base.record.augment
    if foreign := recorded and find_foreign_code({}, "transform", recorded):
        line = quote(f"batches.augment={format_value(recorded)}")
        raise UserError(
            f"batches.augment=auto: the base's file names {foreign}, code of its maker; to run it, "
            f"set {line}; augment=none trains without it"
        )
    return recorded
