"""Training, from a configuration to results.json: a base, or a repair on one.

:func:`train` works for any configuration of ``configs/train.yaml``, from the command line as from
``hydra.compose`` in a notebook.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from torch import Tensor, nn

from lora_mnist.cache import Cache
from lora_mnist.classifier.module import BaseAnswers, ClassifierModule
from lora_mnist.config import (
    add_configured_lora,
    build_data,
    build_module,
    build_net,
    choose_trainable,
    find_net,
    require_figures,
    require_fit,
    require_known_keys,
)
from lora_mnist.data import DrawWeights, ImageDataModule
from lora_mnist.disk.base import own_file, write_base
from lora_mnist.disk.predictions import write_answers
from lora_mnist.disk.results import Clock, collect_results, new_run_folder, write_results
from lora_mnist.errors import TrainingError, UserError, config_group
from lora_mnist.load import base_folder, load_base
from lora_mnist.lora import base_state_dict, changed_tensors, save_adapter
from lora_mnist.process import keep_freed_memory
from lora_mnist.resume import Start, claimed_run, fit, run_to_resume
from lora_mnist.show.report import show_run
from lora_mnist.show.tables import print_parameters, print_results
from lora_mnist.show.tensorboard import run_name
from lora_mnist.show.verdict import training_sentence
from lora_mnist.trainer import build_trainer, trainer_at_work
from lora_mnist.trainer_settings import check_callbacks

log = logging.getLogger(__name__)
_info = rank_zero_only(log.info)

_KEYS = (
    *("stage", "digit", "seed", "data", "net", "base_name", "base_ckpt", "loss", "optimizer"),
    *("scheduler", "trainer", "callbacks", "logger", "paths", "sweep", "resume", "figures"),
)

# The jobs of a sweep share a process, and often a base: both are found out once.
_draw_weights = Cache[DrawWeights](limit=1)
_base_answers = Cache[BaseAnswers](limit=4)


def train(cfg: DictConfig, run_folder: Path | None = None) -> dict[str, Any]:
    """Run one stage: pretrain a base, or fine-tune on it and prove it untouched.

    Args:
        cfg: a configuration of ``configs/train.yaml``; it is not changed.
        run_folder: where to leave results.json, checkpoints, the adapter and the logger's files;
            ``None`` takes that of ``cfg.resume``, or makes a new one, named by the time.

    Returns:
        What results.json holds.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
        TrainingError: if training diverges, or a base has learnt nothing.
        RuntimeError: if fine-tuning changed the base.
    """
    require_figures(cfg)
    stage = cfg.get("stage")
    if stage not in ("pretrain", "lora", "finetune"):
        raise UserError(f"stage={stage}: expected one of pretrain, lora, finetune")
    keep_freed_memory()
    seed = cfg.seed
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: expected an integer from 0 to {2**32 - 1}")
    check_callbacks(cfg.get("callbacks"))
    resumed = run_to_resume(cfg)
    find_net(cfg)  # its module may draw, or seed, when it is imported: in the first job alone
    seed_everything(seed, verbose=False)
    folder = run_folder or resumed or new_run_folder(cfg)
    return pretrain(cfg, folder) if stage == "pretrain" else adapt(cfg, folder)


def pretrain(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """``stage=pretrain``: train all weights, test, and publish the result as the base."""
    clock = Clock()
    require_known_keys(cfg, *_KEYS)
    _check_writable(cfg.base_ckpt)
    if cfg.digit == "weakest":
        raise UserError("digit=weakest: expected stage=lora, since only a base has a weakest class")
    net = build_net(cfg)
    data = build_data(cfg, "fit", cfg.digit)
    require_fit(net, data, data.train_set.images[:2])
    module = build_module(cfg, net, data)
    with claimed_run(cfg, folder, module) as start:
        trainer = _fit(cfg, folder, module, data, clock, start)
        if not trainer.global_step:
            raise UserError(
                f"trainer.max_steps={trainer.max_steps} trainer.max_epochs={trainer.max_epochs}: "
                "expected at least one step of training"
            )
        _test(module, trainer, data, clock)
        results = collect_results(cfg, data, net, module.outcomes, clock, trainer.global_step)
        # Trained on some classes alone, it cannot know the others; nor after a trial of one step.
        asked = data.targets is None and not trainer.fast_dev_run  # type: ignore[attr-defined]
        useless = _why_useless(module.outcomes, data) if asked else None
        if trainer.is_global_zero:
            write_results(results, folder)
            write_answers(module.answers, data.test_set.images, folder)
            print_results(results, data.classes)
            # Last: a run that fails on the way leaves the current base alone.
            if not trainer.fast_dev_run:  # type: ignore[attr-defined]
                _publish(cfg, net, folder if useless else None, results["base_sha256"])
            show_run(trainer, results, folder, cfg.figures)
            log.info("run: %s", folder)
    if useless:
        raise TrainingError(
            f"optimizer.lr={cfg.optimizer.lr}: {useless}; the base stays in {folder}, and "
            f"base_ckpt={cfg.base_ckpt} is what it was; expected another learning rate"
        )
    return results


def _publish(cfg: DictConfig, net: nn.Module, instead: Path | None, sha256: str) -> None:
    """Make a base the current one, beside all others; or keep it in the folder ``instead``."""
    bases, current = base_folder(cfg), Path(cfg.base_ckpt)
    if instead is not None:
        bases, current = instead, own_file(instead, cfg.base_name, sha256)
    own = write_base(net.state_dict(), bases, cfg.base_name, current)
    log.info("base: %s, kept as %s", current, own)


def _why_useless(outcomes: Mapping[str, Any], data: ImageDataModule) -> str | None:
    """Say so, if a network does no better than a constant answer, though its base did."""
    split = "val" if "val" in outcomes else "test"
    counts = outcomes[split]["images_per_class"]
    share = max(counts) / sum(counts)
    accuracy, base = outcomes[split]["accuracy"], outcomes.get(f"{split}_base", {"accuracy": 1.0})
    if accuracy > share or base["accuracy"] <= share:
        return None
    commonest = data.classes[counts.index(max(counts))]
    return (
        f"{accuracy:.1%} of the {split} images are right, no more than by always answering "
        f"{commonest}"
    )


def adapt(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """``stage=lora``: train an adapter on the base, prove the base untouched, test on and off.

    ``stage=finetune`` trains chosen parameters of the base itself, to compare with; it leaves no
    adapter, and its weights in the checkpoint alone.
    """
    clock = Clock()
    with_adapter = cfg.stage == "lora"
    require_known_keys(cfg, *_KEYS, "lora" if with_adapter else "trainable")
    net = build_net(cfg)
    base = load_base(cfg, net)
    target = find_weakest(cfg, net) if cfg.digit == "weakest" else cfg.digit
    data = build_data(cfg, "fit", target)
    blank = torch.zeros_like(data.train_set.images[:2])
    # A class that a notebook has defined anew answers otherwise with the same tensors.
    network = [base.sha256, cfg.net, require_fit(net, data, blank).tolist()]
    if data.hardness:
        data.draw_weights = _rate_images(cfg, net, network, data)
    if with_adapter:
        add_configured_lora(cfg, net)
    else:
        choose_trainable(net, cfg.trainable)
    asked = _asked(cfg, network, data)
    module = build_module(cfg, net, data, base, _base_answers.get(asked))
    with claimed_run(cfg, folder, module) as start:
        trainer = _fit(cfg, folder, module, data, clock, start)
        if with_adapter:
            _require_unchanged(base.tensors, net)
        _test(module, trainer, data, clock)
        _base_answers.keep(asked, module.base_answers)
        results = collect_results(cfg, data, net, module.outcomes, clock, trainer.global_step)
        results |= {"base_unchanged": with_adapter, "base_sha256": base.sha256}
        if trainer.is_global_zero:
            if with_adapter:
                save_adapter(net, folder / "adapter", metadata={"dataset": data.name})
                results["adapter"] = "adapter"
            write_results(results, folder)
            write_answers(module.answers, data.test_set.images, folder)
            print_results(results, data.classes)
            show_run(trainer, results, folder, cfg.figures)
            log.info("run: %s", folder)
    if useless := _why_useless(module.outcomes, data):
        raise TrainingError(
            f"optimizer.lr={cfg.optimizer.lr}: {useless}, and fewer than with the base; expected "
            "another learning rate"
        )
    return results


def _fit(
    cfg: DictConfig,
    folder: Path,
    module: ClassifierModule,
    data: ImageDataModule,
    clock: Clock,
    start: Start,
) -> Trainer:
    name = run_name(module.hparams, [data.short_names[c] for c in data.targets or []])
    trainer = build_trainer(cfg, folder, len(data.val_set) > 0, start.step, name)
    with config_group("data"):
        data.batch_size_per_process(trainer.world_size)
    print_parameters(module.net)
    on = (len(data.train_set), data.classes, data.targets, data.replay, data.hardness)
    _info("%s", training_sentence(cfg.stage, *on))
    with clock.measure("fit"), trainer_at_work():
        fit(trainer, module, data, start)
    for name, parameter in module.net.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise TrainingError(
                f"optimizer.lr={cfg.optimizer.lr}: training diverged, {name} is not finite at step "
                f"{trainer.global_step}; expected a smaller learning rate"
            )
    return trainer


def _test(module: ClassifierModule, trainer: Trainer, data: ImageDataModule, clock: Clock) -> None:
    with trainer_at_work():
        if len(data.val_set) and module.validated_at != trainer.global_step:
            trainer.validate(module, datamodule=data, verbose=False)
    with clock.measure("test"), trainer_at_work():
        trainer.test(module, datamodule=data, verbose=False)


def find_weakest(cfg: DictConfig, net: nn.Module) -> int:
    """The class on which the base in ``net`` makes most validation errors; of equals, the first.

    Raises:
        UserError: if no validation images are held out.
    """
    data: ImageDataModule = build_data(cfg, "fit", replay=0)
    if not len(data.val_set):
        raise UserError(
            "digit=weakest: expected data.val_size > 0, since the weakest class is the one with "
            "the most validation errors"
        )
    errors = torch.zeros(len(data.classes), dtype=torch.int64)
    with torch.inference_mode():
        for batch in data.val_dataloader():
            images, labels = data.on_after_batch_transfer(batch, 0)  # type: ignore[arg-type]
            wrong = net(images).argmax(dim=1) != labels
            errors += torch.bincount(labels[wrong], minlength=len(errors))
    weakest = int(errors.argmax())
    _info(
        "digit=%d (%s): the weakest class, %d of the base's %d errors on %s validation images",
        *(weakest, data.classes[weakest], errors[weakest], errors.sum(), f"{len(data.val_set):,}"),
    )
    return weakest


def _rate_images(
    cfg: DictConfig, net: nn.Module, network: list[Any], data: ImageDataModule
) -> DrawWeights:
    """How often each training image is drawn, as the base, which ``net`` holds, sees them."""
    key = str([network, _images(cfg, data), data.targets, data.replay > 0, data.hardness])
    return _draw_weights.get(key) or _draw_weights.keep(key, data.rate(net))


def _asked(cfg: DictConfig, network: list[Any], data: ImageDataModule) -> str:
    """All that the base's answers to the validation and test images depend on."""
    arithmetic = {k: v for k, v in cfg.trainer.items() if not str(k).startswith(("max_", "log_"))}
    return str([network, _images(cfg, data), data.eval_batch_size, arithmetic])


def _images(cfg: DictConfig, data: ImageDataModule) -> list[Any]:
    """What tells one set of images from another: what they are, how they are split and seen."""
    drawing = {"batch_size", "replay", "hardness", "seed", "augment", "eval_batch_size"}
    source = {key: value for key, value in cfg.data.items() if key not in drawing}
    return [source, sorted(data.sha256.items()), data.mean, data.std, len(data.val_set)]


def _check_writable(path: str | None) -> None:
    """Refuse before training what the base could not be written to after it."""
    if path is None or Path(path).is_dir():
        raise UserError(f"base_ckpt={path}: expected a file to write the base to")
    parent = Path(path).absolute().parent
    existing = next(folder for folder in (parent, *parent.parents) if folder.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise UserError(f"base_ckpt={path}: expected a folder that can be written, not {existing}")


def _require_unchanged(base: Mapping[str, Tensor], net: nn.Module) -> None:
    if changed := changed_tensors(base, base_state_dict(net)):
        raise RuntimeError(f"fine-tuning changed the base: {', '.join(changed)}")
    _info("base unchanged: %d tensors, bit for bit", len(base))
