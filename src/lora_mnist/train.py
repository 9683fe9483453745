"""Training, from a configuration to results.json: it makes a base, or a repair of one.

:func:`train` works for any configuration of ``configs/train.yaml``, from the command line as from
``hydra.compose`` in a notebook. Each stage is one function, to be read from top to bottom.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from lora_mnist.adapters import (
    current_base_path,
    resolve_and_load_base,
    save_adapter_and_base,
    save_base,
    with_data_defaults,
)
from lora_mnist.check_preprocessing import check_preprocessing
from lora_mnist.checks import (
    majority_baseline_failure,
    require_better_than_one_class,
    require_consistent,
    require_fixed_buffers,
    require_trainable,
    require_unchanged,
    warn_of_known_validation,
)
from lora_mnist.choices import (
    add_new_adapter,
    measure_dial,
    scale_to_save,
    select_training_images,
)
from lora_mnist.classifier.module import ClassifierModule, make_module, validate_once
from lora_mnist.classifier.net import eval_on_device, make_net
from lora_mnist.data import ImageDataModule, make_data
from lora_mnist.data.make import require_compatible
from lora_mnist.data.mistakes import wrong_pictures
from lora_mnist.disk.base import (
    Base,
    require_replaceable,
    set_current_base,
    versioned_base_path,
)
from lora_mnist.disk.checkpoint import load_and_validate_best
from lora_mnist.disk.predictions import predictions_table
from lora_mnist.disk.results import Clock, collect_results, write_results
from lora_mnist.disk.resume import begin_run, require_new
from lora_mnist.disk.run_paths import (
    ADAPTER_FOLDER,
    folder_without_command_line,
)
from lora_mnist.errors import TrainingError, UserError
from lora_mnist.learning_rate import choose_learning_rate
from lora_mnist.project import Run
from lora_mnist.settings import checked_copy
from lora_mnist.show.end_of_run import report_and_close_loggers
from lora_mnist.show.tables import print_parameters
from lora_mnist.trainer import is_fast_dev_run, make_trainer, quiet_lightning

_info = rank_zero_only(logging.getLogger(__name__).info)


def train(cfg: DictConfig, run: Run | None = None) -> dict[str, Any]:
    """Run one stage: pretrain a base, or repair it with an adapter and prove it untouched.

    Args:
        cfg: a configuration of ``configs/train.yaml``; it is not changed.
        run: the folder for results.json, checkpoints, the adapter and the loggers' files, and how
            the command was typed; ``None``: a new folder, named by the time, or with ``cfg.resume``
            that run's.

    Returns:
        What results.json holds.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
        TrainingError: if training diverges, or a base has learnt nothing.
        RuntimeError: if training an adapter changed the base.
    """
    stages = {"pretrain": pretrain, "lora": lora}
    if cfg.get("stage") not in stages:
        raise UserError(f"stage={cfg.get('stage')}: expected one of {', '.join(stages)}")
    run = run or Run(folder_without_command_line(cfg))
    cfg = checked_copy(cfg)
    cfg.paths.run = str(run.folder)
    if cfg.resume is None:
        require_new(run.folder)
    require_trainable(cfg, run)
    seed_everything(cfg.seed, verbose=False)
    with quiet_lightning():
        return stages[cfg.stage](cfg, run)


def pretrain(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """``stage=pretrain``: train all weights, test, and publish the result as the base."""
    clock = Clock()
    # Jobs of a sweep would replace the current base one after another; a trial is not to do so.
    is_shared = run.is_sweep and Path(cfg.base_ckpt).absolute() == current_base_path(cfg)
    is_trial = cfg.debug is not None
    current = None if is_shared or is_trial else Path(cfg.base_ckpt)
    if current is not None:
        require_replaceable(current)
    trainer = make_trainer(cfg, run)
    net = make_net(cfg)
    cfg, _ = with_data_defaults(cfg, net)
    data = make_data(cfg, "fit")
    require_compatible(net, data, data.train_set)
    require_consistent(cfg, trainer, data)
    data = data.training_on(select_training_images(cfg, net, data, trainer))
    module = make_module(cfg, net, data)
    print_parameters(net)
    with begin_run(run.folder, module.hparams, cfg.resume) as ckpt_path:
        fit(cfg, trainer, module, data, ckpt_path, clock)
        best = load_and_validate_best(trainer, module, data)
        results = validate_test_and_collect(cfg, run, trainer, module, data, clock, best)
        useless = majority_baseline_failure(trainer, module, data)
        is_published = not is_trial and not module.targets and not useless
        folder = Path(cfg.paths.bases) if is_published else run.folder
        own = versioned_base_path(folder, cfg.base_name, results["base_sha256"])
        is_current = is_published and current is not None
        if not is_current and not is_fast_dev_run(trainer):  # other commands have to be told
            results["weights"] = str(own) if is_published else own.name
        table = predictions_table(module.predictions["test"])
        write_results(run.folder, results, table, data.test_set)
        report_and_close_loggers(trainer, results, run, cfg.figures, table, data.test_set)
        # Last: a run that fails on the way leaves the current base alone.
        if trainer.is_global_zero and not is_fast_dev_run(trainer):
            save_base(cfg, run, net, data, own)
            if is_published and current is not None:
                set_current_base(own, current)
            else:
                _info("base: %s; the current one stays", own)
    if useless and not is_trial and not module.targets:
        raise TrainingError(f"{useless}; the base stays in {run.folder}")
    return results


def lora(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """``stage=lora``: train an adapter on the base, prove the base untouched, test on and off."""
    clock = Clock()
    trainer = make_trainer(cfg, run)
    cfg, net, base = resolve_and_load_base(cfg, run)
    data = make_data(cfg, "fit")
    require_compatible(net, data, data.train_set)
    require_consistent(cfg, trainer, data)
    # Both are about the base alone, so they come before an adapter is on it.
    require_fixed_buffers(cfg, trainer, net, data, base)
    better_preprocessing = check_preprocessing(cfg, run, trainer, net, data, base)
    if data.mistakes is not None:
        with eval_on_device(net, trainer.strategy.root_device) as device:
            data = data.with_mistakes(*wrong_pictures(net, data, device))
    data = data.training_on(select_training_images(cfg, net, data, trainer))
    add_new_adapter(cfg, net)
    module = make_module(cfg, net, data, base)
    # A run that goes on keeps the rate that it began with.
    module.lr = choose_learning_rate(cfg, trainer, module, data)
    print_parameters(net)
    with begin_run(run.folder, module.hparams, cfg.resume) as ckpt_path:
        fit(cfg, trainer, module, data, ckpt_path, clock)
        best = load_and_validate_best(trainer, module, data)
        require_unchanged(base, net)
        dial = measure_dial(cfg, run, trainer, module, data, clock)
        scale = scale_to_save(cfg, dial)
        if scale != 1:
            module.scale_adapter(scale)
        results = validate_test_and_collect(cfg, run, trainer, module, data, clock, best, base)
        results |= {
            "base_unchanged": True,
            "adapter": None if is_fast_dev_run(trainer) else ADAPTER_FOLDER,
            "dial": dial and {**dial, "saved": scale},
            "lr": module.lr,
            "better_preprocessing": better_preprocessing,
        }
        if trainer.is_global_zero and not is_fast_dev_run(trainer):
            save_adapter_and_base(cfg, run, net, base, data, results)
        table = predictions_table(module.predictions["test"])
        write_results(run.folder, results, table, data.test_set)
        report_and_close_loggers(trainer, results, run, cfg.figures, table, data.test_set)
    require_better_than_one_class(trainer, module, data)
    return results


def fit(
    cfg: DictConfig,
    trainer: Trainer,
    module: ClassifierModule,
    data: ImageDataModule,
    ckpt_path: Path | None,
    clock: Clock,
) -> None:
    """Train from the first step, or go on from the checkpoint; refuse weights that diverged.

    The network is in train mode, but for a base that carries an adapter (:mod:`.lora.frozen`). The
    Trainer's profiler is for the training alone, and taken off afterwards.
    """
    module.net.train()
    if trainer.is_global_zero:
        learnt = len((data.selection or data.select(None)).target_indices)
        trained = "an adapter" if cfg.stage == "lora" else "a base"
        names = ", ".join(data.classes[c] for c in module.targets) or "all classes"
        images = "mistakes" if data.mistake_sets else f"images of {names}"
        _info("training %s on %s %s", trained, f"{learnt:,}", images)
    with clock.measure("fit"):
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]
    if not trainer.global_step:
        raise UserError(
            f"trainer.max_steps={trainer.max_steps} trainer.max_epochs={trainer.max_epochs}: "
            "expected at least one step of training"
        )
    for name, parameter in module.net.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise TrainingError(
                f"optimizer.lr={module.lr}: training diverged, {name} is not finite at step "
                f"{trainer.global_step}; expected a smaller learning rate"
            )


def validate_test_and_collect(
    cfg: DictConfig,
    run: Run,
    trainer: Trainer,
    module: ClassifierModule,
    data: ImageDataModule,
    clock: Clock,
    best: Mapping[str, Any] | None,
    base: Base | None = None,
) -> dict[str, Any]:
    """Validate, unless that was done after the last step, and test; return results.json's content.

    ``<split>_base`` are the counts of the untouched base.
    """
    validate_once(trainer, module, data)
    with clock.measure("test"):
        trainer.test(module, datamodule=data, verbose=False)
    warn_of_known_validation(module.outcomes, data)
    return collect_results(cfg, run.typed, data, module, module.outcomes, clock, best, base)
