"""Opens the session of a run, and refuses bad keys, networks and images early."""

import logging
import time

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from lora_mnist.choice import AUTO
from lora_mnist.classifier.choose_point import require_validation_images
from lora_mnist.classifier.classifier import Classifier
from lora_mnist.config.make import load_from_config, read_settings, with_values
from lora_mnist.config.run import Run
from lora_mnist.data import Folder, Images
from lora_mnist.errors import UserError, format_value, report_group_errors, require_choice
from lora_mnist.lora.base_state import base_state_dict, changed_tensors
from lora_mnist.lora.model import KINDS
from lora_mnist.lora.target_modules import format_names, layers_to_adapt
from lora_mnist.project import expand_path
from lora_mnist.run_paths import list_finished, refuse_used_folder
from lora_mnist.training.checkpoint import read_hparams, refuse_other_training
from lora_mnist.training.finished import refuse_other_repair
from lora_mnist.training.fit import EARLY_RESUME_KEYS, build_hparams, check_training
from lora_mnist.training.images import load_images
from lora_mnist.training.session import Session
from lora_mnist.training.target import WEAK, class_indices
from lora_mnist.training.trainer import make_trainer
from lora_mnist.training.trials import log_unused, resolve_trials, trains_last_layer

log = logging.getLogger(__name__)


def open_session(cfg: DictConfig, run: Run) -> Session:
    """Make the parts of a run; raise before anything is computed if one cannot be used."""
    started = time.perf_counter()
    if run.command_line is None:  # called from Python; a command claims its folder: cli/claim.py
        rank_zero_only(refuse_used_folder)("hydra.run.dir", run.folder)
    _refuse_configuration(cfg)
    trainer = make_trainer(cfg, run)
    if cfg.stage == "pretrain":
        classifier = Classifier.new(**read_settings(cfg))
    else:
        classifier = load_from_config(cfg)
    _check_network(classifier)
    if cfg.stage != "eval":
        _refuse_training(cfg, trainer, classifier)
    _refuse_no_images(cfg, classifier)
    images, mistakes = load_images(cfg, trainer, classifier)
    session = Session(cfg, run, trainer, classifier, images, mistakes, started)
    if cfg.stage != "eval":
        _refuse_images(session)
        refuse_other_repair(session)
    if cfg.stage == "lora":
        _log_caveats(session)
    if cfg.stage != "pretrain":
        _log_normalization(classifier)
    return session


def _refuse_configuration(cfg: DictConfig) -> None:
    """Raise if keys contradict each other: neither network nor images are loaded yet."""
    if cfg.stage == "pretrain":
        needs_base = {
            f"target={cfg.target}": cfg.target in WEAK,
            f"mistakes={cfg.mistakes}": cfg.mistakes is not None,
            "optimizer.lr=auto": cfg.optimizer.lr == AUTO,
            "batches.augment=auto": cfg.batches.augment == AUTO,
            "trainer.max_steps=auto": cfg.trainer.max_steps == AUTO,
        }
        for key, is_asked in needs_base.items():
            if is_asked:
                raise UserError(f"{key}: expected stage=lora, since it needs a base")
    if cfg.stage == "lora":
        _refuse_repair(cfg)
    scheduler = cfg.get("scheduler") or {}
    if -1 in [scheduler.get(key) for key in ("T_max", "total_iters", "total_steps")]:
        raise UserError(
            "trainer.max_steps=-1: expected the number of steps, since scheduler counts them"
        )


def _refuse_repair(cfg: DictConfig) -> None:
    """Raise if a repair has no target or two, no end, or nothing to train."""
    target, mistakes, trainer = cfg.target, cfg.mistakes, cfg.trainer
    has_no_end = trainer.max_steps == -1 and trainer.max_epochs in (-1, None)
    if has_no_end and not trainer.get("max_time"):
        raise UserError("trainer.max_steps=-1: expected a number; or set trainer.max_epochs")
    if cfg.lora.scale == cfg.lora.offset == 0:
        raise UserError(
            "lora.scale=0 lora.offset=0: expected one that is not 0; both 0 is the base"
        )
    if cfg.lora.scale == 0 and cfg.refit is True:
        raise UserError("refit=true: expected auto or false; with lora.scale=0 nothing is trained")
    if cfg.lora.scale == 0 and mistakes is not None:
        raise UserError("lora.scale=0: expected another number or auto with mistakes=")
    if trains_last_layer(cfg) and cfg.batches.augment not in (None, {}, AUTO):
        why = f"expected auto or null with lora.target_modules={cfg.lora.target_modules}, which "
        why += "computes the features of each image once"
        raise UserError(f"batches.augment={format_value(cfg.batches.augment)}: {why}")
    if mistakes is None and target is None:
        raise UserError(
            "target: missing; expected the class to repair, by its name, a list of them, or "
            "weakest, or weak; or mistakes=FOLDER"
        )
    if mistakes is None:
        return
    if target not in (None, *WEAK):
        raise UserError(f"target={format_value(target)}: expected null with mistakes={mistakes}")
    if cfg.refit is True:
        raise UserError(f"refit=true: expected auto or false with mistakes={mistakes}")
    if cfg.lora.offset not in (0, AUTO):
        why = f"expected 0 or auto with mistakes={mistakes}, which have no target class"
        raise UserError(f"lora.offset={cfg.lora.offset}: {why}")


def _refuse_training(cfg: DictConfig, trainer: Trainer, classifier: Classifier) -> None:
    """Raise if classes, layers or the parts of a training do not fit the network."""
    if cfg.target not in (None, *WEAK):
        class_indices(classifier.classes, cfg.target)
    if cfg.stage == "lora":
        with report_group_errors("lora"):
            require_choice("init", cfg.lora.init, KINDS)
            if not trains_last_layer(cfg):  # only images show the last layer: adapter.py
                layers_to_adapt(classifier.net, cfg.lora.target_modules)
        if monitor := _find_monitor(trainer):
            raise UserError(
                f"callbacks: one monitors {monitor}; expected none with stage=lora, which keeps "
                "its last weights, or their average"
            )
    log_unused(cfg)
    check_training(cfg, trainer, classifier)
    for name, values in resolve_trials(cfg).items():
        try:
            check_training(with_values(cfg, values), trainer, classifier)
        except UserError as error:
            raise UserError(f"trials.{name}.{error}") from error
    if cfg.ckpt_path is not None and not list_finished(expand_path(cfg.ckpt_path)):
        saved, known = read_hparams(cfg.ckpt_path), build_hparams(cfg, classifier)
        refuse_other_training(cfg.ckpt_path, saved, known, EARLY_RESUME_KEYS)


def _refuse_no_images(cfg: DictConfig, classifier: Classifier) -> None:
    """Raise if there are no images to train or test on, or the network does not take them."""
    images, dataset = classifier.images, classifier.dataset
    if cfg.stage != "eval" and not len(images.train):
        raise UserError(f"data: expected images to train on; {dataset.name} has none")
    if not len(images.test):
        settings, key = classifier.settings, "data_dir"
        for each in dataset.split_settings:
            if settings.given["data"].get(each) is not None:
                key = each
        value, why = format_value(settings.data.get(key)), images.excluded["test"]["line"]
        raise UserError(
            f"data.{key}={value}: {why}; expected another folder, or the split of the training"
        )
    if classifier.settings.prepare.get("transform") is not None:  # only images show its outputs
        _check_network(classifier, images.test)


def _refuse_images(session: Session) -> None:
    """Raise if there are fewer validation images than processes, or none for an ``auto`` choice."""
    cfg, trainer, classifier = session.cfg, session.trainer, session.classifier
    is_repair, monitor = cfg.stage == "lora", _find_monitor(trainer)
    if 0 < len(session.images.val) < trainer.world_size:
        raise UserError(
            f"trainer.devices={trainer.num_devices}: expected no more processes than validation "
            f"images, {len(session.images.val)}, since each of {trainer.world_size} has its share"
        )
    needs_images = {
        f"target={cfg.target}": cfg.target in WEAK and session.mistakes is None,
        "refit=true": is_repair and cfg.refit is True,
        f"callbacks, of which one monitors {monitor}": str(monitor).startswith("val/"),
        "lora.scale=auto": is_repair and cfg.lora.scale == AUTO,
        "lora.offset=auto": is_repair and cfg.lora.offset == AUTO,
    }
    asking = [choice for choice, is_asked in needs_images.items() if is_asked]
    require_validation_images(classifier, session.images.val, asking)


def _log_caveats(session: Session) -> None:
    """Warn of unknowns about a repair's base, before minutes of training."""
    classifier, images = session.classifier, session.images
    assert classifier.base is not None
    if session.cfg.batches.augment == AUTO and not classifier.base.record.knows_augment:
        log.warning(
            "batches.augment=auto: the base's file does not name the augmentation of its training, "
            "so none is used; if there was one, set augment="
        )
    numbers = images.val.labels.bincount(minlength=len(classifier.classes)).tolist()
    if unseen := [classifier.classes[c] for c, number in enumerate(numbers) if not number]:
        text = "there are no validation images of %s, so choices ignore it"
        log.warning(text, format_names(unseen))
    if images.held_out.get("val") == "train" and classifier.train_digests.get("base") is None:
        remedy = "; data.val_from=test takes them from test/" if images.can_validate_on_test else ""
        log.warning(
            "validation images were held out of the training images; if the base was trained on "
            "them, choices may be wrong%s",
            remedy,
        )


def _log_normalization(classifier: Classifier) -> None:
    """Log mean and std if nobody set them: most networks were trained with ImageNet's."""
    prepare, dataset = classifier.settings.prepare, classifier.dataset
    missing = [key for key in ("mean", "std") if prepare.get(key) is None]
    if not missing or not isinstance(dataset, Folder) or dataset.prepare.transform is not None:
        return
    measured = " and ".join(
        f"{key} {format_value(dataset.preprocessing()[key])}" for key in missing
    )
    keys = " and ".join(f"prepare.{key}" for key in missing)
    log.info("measured on training images: %s; %s set the network's own", measured, keys)


def _check_network(classifier: Classifier, images: Images | None = None) -> None:
    """Raise if the network returns no logits, or changes itself while it predicts."""
    classifier.check_network(images)
    base = classifier.base
    if base and (changed := changed_tensors(base.tensors, base_state_dict(classifier.net))):
        raise UserError(
            f"net._target_={classifier.settings.net['_target_']}: expected a network that changes "
            "no tensor of its own while it predicts, since the base is kept bit for bit; "
            f"{changed[0]} has changed"
        )


def _find_monitor(trainer: Trainer) -> str | None:
    """Return the metric that a callback of the Trainer monitors, such as val/errors, or None."""
    monitors = [getattr(each, "monitor", None) for each in trainer.callbacks]  # type: ignore[attr-defined]
    return next((monitor for monitor in monitors if monitor), None)
