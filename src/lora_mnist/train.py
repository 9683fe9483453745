"""Training, from a configuration to results.json: a base, or a repair on one.

:func:`train` works for any configuration of ``configs/train.yaml``, from the command line as from
``hydra.compose`` in a notebook. Each stage is one function, to be read from top to bottom.
"""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from torch import nn

from lora_mnist.adapters import (
    adapter_targets,
    as_trained,
    base_folder,
    load_adapters,
    load_base,
    write_adapter,
)
from lora_mnist.checks import (
    require_consistent,
    require_trainable,
    warn_of_known_validation,
    why_useless,
)
from lora_mnist.choices import (
    add_adapter,
    choose_images,
    choose_trainable,
    draw_seed,
    wants_dial,
)
from lora_mnist.classifier.dial import TRIES, quick_dial
from lora_mnist.classifier.metrics import evaluation_of
from lora_mnist.classifier.module import ClassifierModule, make_module
from lora_mnist.classifier.net import make_net, require_fit
from lora_mnist.data import ImageDataModule, make_data
from lora_mnist.disk.base import (
    Base,
    comparable_accuracies,
    own_file,
    publish_base,
    require_replaceable,
    write_base,
)
from lora_mnist.disk.checkpoint import (
    best_checkpoint,
    read_checkpoint,
    recorded_run,
)
from lora_mnist.disk.numbers import check_require, parse_require
from lora_mnist.disk.results import Clock, collect_results, new_run_folder, write_results
from lora_mnist.errors import TrainingError, UserError
from lora_mnist.lora import (
    base_state_dict,
    changed_tensors,
    lora_disabled,
    set_lora_scale,
)
from lora_mnist.preprocessing import check_preprocessing
from lora_mnist.project import Run
from lora_mnist.settings import checked
from lora_mnist.show.changes import named
from lora_mnist.show.report import write_card
from lora_mnist.show.run import show_run
from lora_mnist.show.tables import print_parameters
from lora_mnist.sweep.command import command_line
from lora_mnist.trainer import drop_finders, make_trainer, on_device, quiet_lightning

#: The dial tries so many validation images, or more, at each scale.
_LEAST_FOR_DIAL = 50

_info = rank_zero_only(logging.getLogger(__name__).info)


def train(cfg: DictConfig, run: Run | None = None) -> dict[str, Any]:
    """Run one stage: pretrain a base, or fine-tune on it and prove it untouched.

    Args:
        cfg: a configuration of ``configs/train.yaml``; it is not changed.
        run: the folder for results.json, checkpoints, the adapter and the loggers' files, and how
            the command was typed; ``None``: a new folder, named by the time. With ``cfg.resume``
            the folder of that run.

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
    run = run or Run(new_run_folder(cfg))
    cfg = checked(cfg, run)
    if cfg.seed is None:
        cfg.seed = draw_seed(cfg, run)
        _info("seed=%d: drawn, since seed=null", cfg.seed)
    require_consistent(cfg, run)
    comparisons = parse_require(cfg.require)
    seed_everything(cfg.seed, verbose=False)
    with quiet_lightning():
        results = stages[cfg.stage](cfg, run)
    check_require(comparisons, results)
    return results


def pretrain(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """``stage=pretrain``: train all weights, test, and publish the result as the base."""
    clock = Clock()
    if cfg.target == "weakest":
        raise UserError("target=weakest: expected stage=lora: only a base has a weakest class")
    if cfg.base_ckpt is None:
        raise UserError("base_ckpt=null: expected a file to write the base to")
    if cfg.publish:
        require_replaceable(Path(cfg.base_ckpt))
    trainer = make_trainer(cfg, run)
    net = make_net(cfg)
    data = make_data(cfg, "fit", net)
    require_fit(net, data, data.train_set)
    choose_images(cfg, net, data, trainer)
    module = make_module(cfg, net, data)
    with recorded_run(run.folder, module.hparams, cfg.resume) as checkpoint:
        best = fit(cfg, trainer, module, data, checkpoint, clock)
        test(trainer, module, data, clock)
        results = collect_results(cfg, data, net, module.outcomes, clock, trainer.global_step, best)
        write_results(run.folder, results, module.predictions, data.test_set)
        show_run(trainer, results, run, cfg.figures)
        useless = why_useless(cfg, module, data)
        # Last: a run that fails on the way leaves the current base alone.
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            is_whole = not data.targets and not useless
            accuracies = comparable_accuracies(results, cfg.data.get("split_seed"))
            record = accuracies, data.preprocessing()
            own = own_file(base_folder(cfg), cfg.base_name, results["base_sha256"])
            if cfg.publish and is_whole:
                current = Path(cfg.base_ckpt)
                publish_base(net.state_dict(), *record, current, own, run.is_sweep)
            else:
                write_base(net.state_dict(), run.folder / own.name, *record)
                _info("base: %s; the current one stays", run.folder / own.name)
    if useless and cfg.publish and not data.targets:
        raise TrainingError(f"{useless}; the base stays in {run.folder}")
    return results


def lora(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """``stage=lora``: train an adapter on the base, prove the base untouched, test on and off.

    With ``cfg.adapter`` the base carries these adapters already, and what is saved is the exact sum
    of them and the new one: it stands on the base alone.
    """
    clock = Clock()
    cfg = as_trained(cfg, run)
    trainer = make_trainer(cfg, run)
    net = make_net(cfg)
    base = load_base(cfg, net)
    earlier = load_adapters(cfg, net)
    data = make_data(cfg, "fit", net)
    require_fit(net, data, data.train_set)
    check_preprocessing(cfg, run, trainer, net, data)
    repaired = adapter_targets(earlier, data.classes)
    base_logits = choose_images(cfg, net, data, trainer, repaired)
    has_dial = wants_dial(cfg, run, data)
    name = add_adapter(cfg, net)
    module = make_module(cfg, net, data, base, name)
    module.base_logits["val"] = [*base_logits]
    with recorded_run(run.folder, module.hparams, cfg.resume) as checkpoint:
        best = fit(cfg, trainer, module, data, checkpoint, clock)
        require_unchanged(base, net)
        dial = None
        if has_dial:
            with clock.measure("dial"):
                dial = dial_of(net, data, trainer, module, name)
        keep_scale(cfg, module, dial, name)
        test(trainer, module, data, clock)
        outcomes = dict(module.outcomes)
        if earlier:
            outcomes |= count_untouched(net, data, trainer, outcomes)
        warn_of_known_validation(outcomes)
        steps = trainer.global_step
        results = collect_results(cfg, data, net, outcomes, clock, steps, best, base.sha256)
        results |= {"base_unchanged": True, "adapter": "adapter", "dial": dial}
        results["repaired_before"] = repaired
        if trainer.is_global_zero:
            of_all = sorted({*data.targets, *repaired})
            write_adapter(cfg, net, base, data, of_all, run.folder / "adapter")
            typed = run.typed_without("base_ckpt=", "paths.", "resume=", "sweep.", "hydra.")
            write_card(run.folder / "adapter", results, command_line(typed) if typed else "")
        write_results(run.folder, results, module.predictions, data.test_set)
        show_run(trainer, results, run, cfg.figures)
    if useless := why_useless(cfg, module, data):
        raise TrainingError(useless)
    return results


def finetune(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """``stage=finetune``: train chosen parameters of the base itself, to compare with.

    It leaves no adapter, and its weights in the checkpoint alone.
    """
    clock = Clock()
    cfg = as_trained(cfg, run)
    trainer = make_trainer(cfg, run)
    net = make_net(cfg)
    base = load_base(cfg, net)
    data = make_data(cfg, "fit", net)
    require_fit(net, data, data.train_set)
    base_logits = choose_images(cfg, net, data, trainer)
    choose_trainable(net, cfg.trainable)
    module = make_module(cfg, net, data, base)
    module.base_logits["val"] = [*base_logits]
    with recorded_run(run.folder, module.hparams, cfg.resume) as checkpoint:
        best = fit(cfg, trainer, module, data, checkpoint, clock)
        test(trainer, module, data, clock)
        outcomes, steps = module.outcomes, trainer.global_step
        results = collect_results(cfg, data, net, outcomes, clock, steps, best, base.sha256)
        results["base_unchanged"] = False
        write_results(run.folder, results, module.predictions, data.test_set)
        show_run(trainer, results, run, cfg.figures)
    if useless := why_useless(cfg, module, data):
        raise TrainingError(useless)
    return results


def fit(
    cfg: DictConfig,
    trainer: Trainer,
    module: ClassifierModule,
    data: ImageDataModule,
    checkpoint: Path | None,
    clock: Clock,
) -> dict[str, Any] | None:
    """Train, from ``checkpoint`` on; then put the best weights in place, if a callback kept them.

    What is known of these is returned, for results.json.
    """
    require_trainable(trainer, data)
    if trainer.is_global_zero:
        print_parameters(module.net)
        trained = {"lora": "an adapter", "pretrain": "a base"}.get(cfg.stage, "the base itself")
        classes = named(data.classes, data.targets or range(len(data.classes)))
        images = "mistakes" if data.mistake_sets else f"images of {classes}"
        _info("training %s on %s %s", trained, f"{len(data.target_indices):,}", images)
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


def require_unchanged(base: Base, net: nn.Module) -> None:
    """Prove that the base in ``net`` is what it was, bit for bit."""
    changed = changed_tensors(base.tensors, base_state_dict(net))
    if changed:
        raise RuntimeError(f"fine-tuning changed the base: {', '.join(changed)}")
    _info("base unchanged: %d tensors, bit for bit", len(base.tensors))


def dial_of(
    net: nn.Module, data: ImageDataModule, trainer: Trainer, module: ClassifierModule, name: str
) -> dict[str, Any]:
    """Errors of the finished adapter at several scales, on the validation images."""
    validation: Any = module.evaluations["val"]
    if module.validated_at != trainer.global_step:
        trainer.validate(module, datamodule=data, verbose=False)
    # As many forward passes as training has made, which has also gone backward, take less than half
    # of its time, whatever the network.
    steps = trainer.global_step * trainer.accumulate_grad_batches
    most = max(_LEAST_FOR_DIAL, steps * (data.batch_size + data.replay) // TRIES)
    with on_device(net, trainer.strategy.root_device) as device:
        batches = partial(data.batches, data.val_set, device, name="dial")
        known = validation.predictions or None  # none with trainer.limit_val_batches=0
        with trainer.precision_plugin.forward_context():
            dial = quick_dial(net, batches, data.targets, most, known, name)
    return trainer.strategy.broadcast(dial)  # of several processes, the first decides


def keep_scale(
    cfg: DictConfig, module: ClassifierModule, dial: dict[str, Any] | None, name: str
) -> None:
    """Make the scale that ``lora.scale`` says a part of the finished adapter."""
    scale = cfg.lora.scale
    if dial is not None:
        scale = dial["advised"] if scale == "auto" else scale
        dial["saved"] = scale
    if scale != 1:
        set_lora_scale(module.net, scale, name)
        module.validated_at = None  # that was the adapter as trained
    if cfg.lora.scale != 1:
        _info("scale: %g, with which the adapter is saved", scale)


def count_untouched(
    net: nn.Module, data: ImageDataModule, trainer: Trainer, outcomes: Mapping[str, Any]
) -> dict[str, Any]:
    """Outcomes of the untouched base, and of what this repair started from, by split.

    ``outcomes`` have the latter as ``<split>_base``, since there a repair is compared with it.
    """
    splits = {"val": data.val_set, "test": data.test_set}
    splits |= dict(zip(("mistakes", "mistakes_test"), data.mistake_sets, strict=False))
    counted = {}
    for split, images in splits.items():
        if split in outcomes:
            counted[f"{split}_before"] = outcomes[f"{split}_base"]
            with on_device(net, trainer.strategy.root_device) as device, lora_disabled(net):
                batches = data.batches(images, device, name=f"untouched base, {split}")
                with trainer.precision_plugin.forward_context():
                    counted[f"{split}_base"] = evaluation_of(net, batches).compute()["base"]
    return counted


def test(trainer: Trainer, module: ClassifierModule, data: ImageDataModule, clock: Clock) -> None:
    """Validate, unless that was done after the last step, and test."""
    if len(data.val_set) and module.validated_at != trainer.global_step:
        trainer.validate(module, datamodule=data, verbose=False)
    with clock.measure("test"):
        trainer.test(module, datamodule=data, verbose=False)
