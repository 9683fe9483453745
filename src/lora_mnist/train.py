"""Training, from a configuration to results.json: a base, or a repair on one.

:func:`train` works for any configuration of ``configs/train.yaml``, from the command line as from
``hydra.compose`` in a notebook. Each stage is one function, to be read from top to bottom.
"""

import logging
import os
import random
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from torch import nn

from lora_mnist.classifier.metrics import Evaluation
from lora_mnist.classifier.module import BaseLogits, ClassifierModule
from lora_mnist.config import (
    TRAINING_KEYS,
    add_configured_lora,
    base_folder,
    build_data,
    build_module,
    build_net,
    build_trainer,
    choose_trainable,
    completed,
    load_adapters,
    load_base,
    on_device,
    quiet_lightning,
    require_fit,
    require_validation,
    validation_dial,
)
from lora_mnist.data import ImageDataModule, Images
from lora_mnist.disk.base import (
    comparable_accuracies,
    find_base,
    own_file,
    publish_base,
    require_replaceable,
    write_base,
)
from lora_mnist.disk.checkpoint import best_checkpoint, read_checkpoint, recorded_run, recorded_seed
from lora_mnist.disk.files import write_json
from lora_mnist.disk.numbers import RESULTS_FILE, check_require, parse_require
from lora_mnist.disk.predictions import write_predictions
from lora_mnist.disk.results import Clock, collect_results, new_run_folder
from lora_mnist.errors import TrainingError, UserError, config_group
from lora_mnist.lora import (
    base_state_dict,
    changed_tensors,
    lora_disabled,
    lora_names,
    lora_state_dict,
    save_adapter,
    set_lora_scale,
    sum_adapters,
)
from lora_mnist.project import is_sweep, typed_overrides
from lora_mnist.show.changes import named
from lora_mnist.show.report import write_card
from lora_mnist.show.run import show_run
from lora_mnist.show.tables import print_parameters
from lora_mnist.show.verdict import training_sentence
from lora_mnist.sweep.command import command_line

log = logging.getLogger(__name__)
_info = rank_zero_only(log.info)

#: Logits of the most recent base, by everything they depend on.
_base_logits: dict[str, BaseLogits] = {}


def train(cfg: DictConfig, run_folder: Path | None = None) -> dict[str, Any]:
    """Run one stage: pretrain a base, or fine-tune on it and prove it untouched.

    Args:
        cfg: a configuration of ``configs/train.yaml``; it is not changed.
        run_folder: where to leave results.json, checkpoints, the adapter and the loggers' files;
            ``None``: a new folder, named by the time. With ``cfg.resume`` the folder of that run.

    Returns:
        What results.json holds.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
        TrainingError: if training diverges, or a base has learnt nothing.
        RequirementError: if the results are not what ``cfg.require`` asks for; they are kept.
        RuntimeError: if fine-tuning changed the base.
    """
    stages = {"pretrain": pretrain, "lora": lora, "finetune": finetune}
    if cfg.get("stage") not in stages:
        raise UserError(f"stage={cfg.get('stage')}: expected one of {', '.join(stages)}")
    cfg = completed(cfg)
    if cfg.seed is None:
        cfg.seed = draw_seed(cfg, run_folder)
        _info("seed=%d: drawn, since seed=null", cfg.seed)
    if type(cfg.seed) is not int or not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed={cfg.seed}: expected an integer from 0 to {2**32 - 1}, or null")
    if cfg.resume is not None and is_sweep():
        raise UserError(f"resume={cfg.resume}: expected a single run; a sweep has sweep.resume")
    comparisons = parse_require(cfg.require)
    seed_everything(cfg.seed, verbose=False)
    with quiet_lightning():
        results = stages[cfg.stage](cfg, run_folder or new_run_folder(cfg))
    check_require(comparisons, results)
    return results


def pretrain(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """``stage=pretrain``: train all weights, test, and publish the result as the base."""
    clock = Clock()
    if cfg.digit == "weakest":
        raise UserError("digit=weakest: expected stage=lora, since only a base has a weakest class")
    if cfg.base_ckpt is None:
        raise UserError("base_ckpt=null: expected a file to write the base to")
    if cfg.publish:
        require_replaceable(Path(cfg.base_ckpt))
    net = build_net(cfg)
    data = training_data(cfg, net)
    module = build_module(cfg, net, data)
    with recorded_run(folder, module.hparams, cfg.resume) as checkpoint:
        trainer = build_trainer(cfg, folder, len(data.val_set) > 0, checkpoint)
        best = fit(cfg, module, data, trainer, checkpoint, clock)
        test(module, data, trainer, clock)
        results = collect_results(cfg, data, net, module.outcomes, clock, trainer.global_step, best)
        is_trial = trainer.fast_dev_run  # type: ignore[attr-defined]
        # Trained on some classes alone, it cannot know the others; nor in a trial.
        is_whole = not data.targets and cfg.publish and not is_trial
        useless = why_useless(cfg, module, data) if is_whole else None
        if trainer.is_global_zero:
            write_json(folder / RESULTS_FILE, results)
            write_predictions(module.predictions, data.test_set, folder, results)
            show_run(trainer, results, folder, cfg.figures)
            # Last: a run that fails on the way leaves the current base alone.
            accuracies = comparable_accuracies(results, cfg.data.get("split_seed"))
            sha256, current = results["base_sha256"], Path(cfg.base_ckpt)
            if is_whole and not useless:
                own = own_file(base_folder(cfg), cfg.base_name, sha256)
                publish_base(net.state_dict(), accuracies, current, own, is_sweep())
            elif not is_trial:
                own = own_file(folder, cfg.base_name, sha256)
                write_base(net.state_dict(), own, accuracies)
                _info("base: %s; the current one stays", own)
    if useless:
        raise TrainingError(f"{useless}; the base stays in {folder}")
    return results


def lora(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """``stage=lora``: train an adapter on the base, prove the base untouched, test on and off.

    With ``cfg.adapter`` a new adapter is trained on top of these. Saved is the exact sum of all.
    """
    clock = Clock()
    net = build_net(cfg)
    base = load_base(cfg, net)
    loaded = load_adapters(cfg, net)
    data = training_data(cfg, net)
    has_dial = cfg.dial
    if cfg.dial == "auto":
        has_dial = len(data.val_set) > 0 and not is_sweep()
    if cfg.lora.scale == "auto":
        require_validation("lora.scale=auto", data)
        has_dial = True
    elif has_dial:
        require_validation("dial=true", data)
    before = lora_names(net)
    add_configured_lora(cfg, net)
    name = next(name for name in lora_names(net) if name not in before)
    every = net.named_parameters(remove_duplicate=False)  # a layer may have two names
    trained = {key for key, parameter in every if parameter.requires_grad}
    others = {k: t.clone() for k, t in lora_state_dict(net).items() if k not in trained}
    module = build_module(cfg, net, data, base, name if loaded else None)
    with recorded_run(folder, module.hparams, cfg.resume) as checkpoint:
        trainer = build_trainer(cfg, folder, len(data.val_set) > 0, checkpoint)
        best = fit(cfg, module, data, trainer, checkpoint, clock)
        after = {k: t for k, t in lora_state_dict(net).items() if k not in trained}
        changed = changed_tensors({**base.tensors, **others}, base_state_dict(net) | after)
        if changed:
            raise RuntimeError(f"fine-tuning changed the base: {', '.join(changed)}")
        _info("base unchanged: %d tensors, bit for bit", len(base.tensors))
        scale, dial = cfg.lora.scale, None
        if has_dial:
            with clock.measure("dial"):
                dial = validation_dial(cfg, net, data, name)
            scale = dial["advised"] if scale == "auto" else scale
            dial["saved"] = scale
        if cfg.lora.scale != 1:
            _info("scale: %g; the adapter is saved so", scale)
        if scale != 1:
            set_lora_scale(net, scale, name)
            module.validated_at = None  # that was the adapter as trained
        test(module, data, trainer, clock)
        outcomes = dict(module.outcomes)
        if loaded:  # what it was compared with had these on
            splits = {"val": data.val_set, "test": data.test_set}
            splits |= zip(("mistakes", "mistakes_test"), data.mistake_sets, strict=False)
            for split, images in splits.items():
                if split in outcomes:
                    outcomes[f"{split}_before"] = outcomes[f"{split}_base"]
                    with lora_disabled(net):
                        outcomes[f"{split}_base"] = count_errors(cfg, net, data, images)
        results = collect_results(cfg, data, net, outcomes, clock, trainer.global_step, best)
        results |= {"base_unchanged": True, "base_sha256": base.sha256, "adapter": "adapter"}
        results["dial"] = dial
        if trainer.is_global_zero:
            # Whoever loads the adapter finds its base, wherever that came from.
            if find_base(base_folder(cfg), base.sha256) is None:
                write_base(base.tensors, own_file(base_folder(cfg), cfg.base_name, base.sha256))
            metadata = {"dataset": str(data.name)}
            if data.targets:
                metadata["repairs"] = named(data.classes, data.targets)
            if loaded or scale != 1:  # an adapter on disk stands on its base alone, at scale 1
                sum_adapters(net, name=name)
            save_adapter(net, folder / "adapter", name, metadata)
            # Not what is of this machine and this time alone.
            typed = typed_overrides("base_ckpt=", "paths.", "resume=", "sweep.", "hydra.")
            write_card(folder / "adapter", results, command_line(typed) if typed else "")
            write_json(folder / RESULTS_FILE, results)
            write_predictions(module.predictions, data.test_set, folder, results)
            show_run(trainer, results, folder, cfg.figures)
    if useless := why_useless(cfg, module, data):
        raise TrainingError(useless)
    return results


def finetune(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """``stage=finetune``: train chosen parameters of the base itself, to compare with.

    It leaves no adapter, and its weights in the checkpoint alone.
    """
    clock = Clock()
    net = build_net(cfg)
    base = load_base(cfg, net)
    data = training_data(cfg, net)
    choose_trainable(net, cfg.trainable)
    module = build_module(cfg, net, data, base)
    with recorded_run(folder, module.hparams, cfg.resume) as checkpoint:
        trainer = build_trainer(cfg, folder, len(data.val_set) > 0, checkpoint)
        best = fit(cfg, module, data, trainer, checkpoint, clock)
        test(module, data, trainer, clock)
        results = collect_results(cfg, data, net, module.outcomes, clock, trainer.global_step, best)
        results |= {"base_unchanged": False, "base_sha256": base.sha256}
        if trainer.is_global_zero:
            write_json(folder / RESULTS_FILE, results)
            write_predictions(module.predictions, data.test_set, folder, results)
            show_run(trainer, results, folder, cfg.figures)
    if useless := why_useless(cfg, module, data):
        raise TrainingError(useless)
    return results


# --- the steps that stages share -----------------------------------------------------------------


def draw_seed(cfg: DictConfig, folder: Path | None) -> int:
    """The seed that ``seed=null`` stands for: a new one, unless this run has one already."""
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return int(os.environ["PL_GLOBAL_SEED"])  # of the first process, which started this one
    if cfg.resume is not None and folder is not None:
        return recorded_seed(folder)
    return random.SystemRandom().randrange(2**32)


def training_data(cfg: DictConfig, net: nn.Module) -> ImageDataModule:
    """The images to train ``net`` on, hard ones more often where ``cfg.data.hardness`` says so."""
    data: ImageDataModule = build_data(cfg, "fit")
    require_fit(net, data, data.train_set.take([0, 0])[0])
    target = find_weakest(cfg, net, data) if cfg.digit == "weakest" else cfg.digit
    with config_group("data"):
        data.choose(target)
    with on_device(cfg, net) as device:
        data.set_sampling_weights(net, device)
    return data


def find_weakest(cfg: DictConfig, net: nn.Module, data: ImageDataModule) -> int:
    """The class on which the base in ``net`` makes most validation errors; of equals, the first."""
    require_validation("digit=weakest", data)
    errors = count_errors(cfg, net, data, data.val_set)["errors_per_class"]
    weakest: int = errors.index(max(errors))
    said = f"{errors[weakest]} of the base's {sum(errors)} errors on validation images"
    _info("digit=%d (%s): the weakest class, %s", weakest, data.classes[weakest], said)
    return weakest


def fit(
    cfg: DictConfig,
    module: ClassifierModule,
    data: ImageDataModule,
    trainer: Trainer,
    checkpoint: Path | None,
    clock: Clock,
) -> dict[str, Any] | None:
    """Train, from ``checkpoint`` on; then put the best weights in place, if a callback kept them.

    What is known of these is returned, for results.json.
    """
    for key in ("batch_size", "replay"):
        size, processes = getattr(data, key), trainer.world_size
        if size % processes:
            raise UserError(f"data.{key}={size}: expected a multiple of the {processes} processes")
    if trainer.is_global_zero:
        print_parameters(module.net)
    count, mistakes = len(data.target_indices), bool(data.mistake_sets)
    settings = (count, data.classes, data.targets, data.replay, mistakes)
    _info("%s", training_sentence(cfg.stage, *settings))
    # A job's base logits serve the next one: without that a job on MNIST takes 1.8 s longer. With
    # adapters below the new one, what it is compared with is more than the base.
    if is_sweep() and cfg.get("adapter") is None:
        source = {key: value for key, value in cfg.data.items() if key not in TRAINING_KEYS}
        network = module.hparams["base_sha256"], cfg.net, cfg.compile, cfg.trainer
        key = str([network, source, data.sha256, data.mean, data.std])
        if key not in _base_logits:
            _base_logits.clear()
        module.base_logits = _base_logits.setdefault(key, {})
    if checkpoint is not None:
        drop_finders(trainer)  # the checkpoint has what they found
        data.batch_size = read_checkpoint(checkpoint)["batch_size"]
    with clock.measure("fit"):
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if not trainer.global_step:
        raise UserError(
            f"trainer.max_steps={trainer.max_steps} trainer.max_epochs={trainer.max_epochs}: "
            "expected at least one step of training"
        )
    for name, parameter in module.net.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise TrainingError(
                f"optimizer.lr={cfg.optimizer.lr}: training diverged, {name} is not finite at step "
                f"{trainer.global_step}; expected a smaller learning rate"
            )
    # Both have done their work, and would do it again in validation and test.
    trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]
    drop_finders(trainer)
    path, best = best_checkpoint(trainer)
    if best is not None:
        _info("best: %s=%g at step %d; these weights are tested and kept", *best.values())
        trainer.validate(module, datamodule=data, ckpt_path=path, weights_only=True, verbose=False)
    return best


def drop_finders(trainer: Trainer) -> None:
    """Take away the callbacks that look for a batch size or a learning rate."""
    for callback in list(trainer.callbacks):  # type: ignore[attr-defined]
        if isinstance(callback, BatchSizeFinder | LearningRateFinder):
            trainer.callbacks.remove(callback)  # type: ignore[attr-defined]


def test(module: ClassifierModule, data: ImageDataModule, trainer: Trainer, clock: Clock) -> None:
    """Validate, unless that was done after the last step, and test."""
    if len(data.val_set) and module.validated_at != trainer.global_step:
        trainer.validate(module, datamodule=data, verbose=False)
    with clock.measure("test"):
        trainer.test(module, datamodule=data, verbose=False)


def why_useless(cfg: DictConfig, module: ClassifierModule, data: ImageDataModule) -> str | None:
    """Say so, if a network does no better than one that always answers the commonest class.

    A fine-tuned one is useless only where its base was not.
    """
    split = "val" if "val" in module.outcomes else "test"
    counts, accuracy = (module.outcomes[split][key] for key in ("images_per_class", "accuracy"))
    share = max(counts) / sum(counts)
    before = module.outcomes.get(f"{split}_base", {"accuracy": 1.0})["accuracy"]
    if accuracy > share or before <= share:
        return None
    commonest = data.classes[counts.index(max(counts))]
    return (
        f"optimizer.lr={cfg.optimizer.lr}: {accuracy:.1%} of the {split} images are right, no more "
        f"than by always saying {commonest}; expected another learning rate"
    )


@torch.no_grad()
def count_errors(
    cfg: DictConfig, net: nn.Module, data: ImageDataModule, images: Images
) -> dict[str, Any]:
    """What is counted of ``images``, all of them in this process, with ``net`` as it is."""
    evaluation = Evaluation(len(data.classes))
    evaluation.sync_on_compute = False
    with on_device(cfg, net.eval()) as device:
        for inputs, labels in data.batches(images, device):
            evaluation.to(device).update(net(inputs), labels)
    return evaluation.conclude("test")["test"]
