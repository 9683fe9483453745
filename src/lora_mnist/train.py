"""Training, from a configuration to results.json: it makes a base, or a repair of one.

:func:`train` works for any configuration of ``configs/train.yaml``, from the command line as from
``hydra.compose`` in a notebook. Each stage is one function, to be read from top to bottom.
"""

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from lora_mnist.check_preprocessing import check_preprocessing, warn_of_wrong_settings
from lora_mnist.classifier import Classifier
from lora_mnist.configuration import checked_copy, classifier_of, net_and_data
from lora_mnist.data import mistakes
from lora_mnist.disk.base import (
    refuse_to_replace,
    set_current_base,
    versioned_base_path,
    write_base,
)
from lora_mnist.disk.checkpoint import load_best_weights
from lora_mnist.disk.results import Clock, write_results
from lora_mnist.disk.resume import begin_run, last_checkpoint, recorded_rate
from lora_mnist.disk.run_paths import (
    ADAPTER_FOLDER,
    base_name,
    new_run_folder,
    refuse_used_folder,
)
from lora_mnist.errors import TrainingError, UserError
from lora_mnist.lora.base_state import fingerprint
from lora_mnist.lora.model import lora_disabled
from lora_mnist.proof import (
    prove_unchanged,
    refuse_moving_base,
    warn_of_known_validation,
    why_useless,
)
from lora_mnist.recipe import (
    loss_and_optimizer,
    make_data_module,
    make_module,
    mistakes_of,
    put_new_adapter,
    read_images,
    refuse_inconsistent,
    select_images,
)
from lora_mnist.repair.predictions import Predictions, counts_of, outcomes_by_split
from lora_mnist.repair.rate import choose_rate
from lora_mnist.run import Run
from lora_mnist.saving import common_results, record_of, save_adapter_and_base
from lora_mnist.show.end_of_run import report_and_close_loggers
from lora_mnist.show.tables import print_parameters
from lora_mnist.trainer import evaluate_on, fit, is_fast_dev_run, make_trainer, quiet_lightning
from lora_mnist.trials import train_adapter

log = logging.getLogger(__name__)


def train(cfg: DictConfig, run: Run | None = None) -> dict[str, Any]:
    """Run one stage: pretrain a base, or repair it with an adapter and prove it untouched.

    Args:
        cfg: a configuration of ``configs/train.yaml``; it is not changed.
        run: the folder for results.json, checkpoints, the adapter and the loggers' files, and how
            the command was typed; ``None``: a new folder, named by the time, or with ``cfg.resume``
            that run's.

    Returns:
        What results.json holds; of several processes only the first returns it.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
        TrainingError: if training diverges, or what was trained is of no use.
        RuntimeError: if training an adapter changed the base.
    """
    stages = {"pretrain": pretrain, "lora": lora}
    run = run or Run(new_run_folder(cfg.paths.outputs, cfg.stage, cfg.get("resume")))
    cfg = checked_copy(cfg, run)
    if cfg.resume is None:
        rank_zero_only(refuse_used_folder)("hydra.run.dir", run.folder)
    if {"digit", "target"} <= run.typed_keys:
        raise UserError(f"digit={cfg.digit}: expected target alone, since both mean the same")
    seed_everything(cfg.seed, verbose=False)
    with quiet_lightning():
        return stages[cfg.stage](cfg, run)


def pretrain(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """``stage=pretrain``: train all weights, test, and make the result the current base."""
    clock = Clock()
    current = file_to_replace(cfg, run)
    trainer = make_trainer(cfg, run)
    classifier = Classifier.new(**net_and_data(cfg))
    net, dataset = classifier.net, classifier.dataset
    images = read_images(trainer, dataset)
    classifier.check(images.train)
    refuse_inconsistent(cfg, trainer, images.val)

    selection = select_images(cfg, dataset.classes, images, None)
    data = make_data_module(cfg, trainer, classifier, images, selection)
    rate = cfg.optimizer.lr
    module = make_module(cfg, classifier, data, rate, None)
    print_parameters(net)
    with begin_run(run.folder, module.hparams, cfg.resume):
        fit(trainer, module, data, last_checkpoint(run.folder, cfg.resume), clock)
        best = load_best_weights(trainer, module, data)
        if not trainer.is_global_zero:
            return {}

        tables: dict[str, Predictions] = {}
        if len(images.val):
            tables["val"] = evaluate_on(trainer, net, dataset, images.val, "val")
        with clock.measure("test"):
            tables["test"] = evaluate_on(trainer, net, dataset, images.test, "test")
        outcomes = outcomes_by_split(tables, selection.targets)
        useless = why_useless(outcomes, dataset.classes, rate)
        sha256 = fingerprint(net.state_dict())
        is_trial = bool(cfg.debug) or is_fast_dev_run(trainer)
        # What knows some classes alone, or nothing, or was a trial, is no base for others.
        is_base = not (selection.targets or useless or is_trial)
        folder = Path(cfg.paths.bases) if is_base else run.folder
        own = versioned_base_path(folder, base_name(cfg.data, cfg.net), sha256)
        results = common_results(
            cfg, run.typed, classifier, images, outcomes, data.plan, selection.targets
        )
        results |= {"steps": trainer.global_step, "best": best, "lr": rate, "base_sha256": sha256}
        if not is_base or current is None:  # the user has to name it to other commands
            results["weights"] = str(own) if is_base else own.name
        results["seconds"] = clock.seconds()
        write_results(run.folder, results, tables["test"], images.test)
        report_and_close_loggers(trainer, results, run, cfg.figures, tables["test"], images.test)
        # Last: a run that fails on the way leaves the current base alone.
        record = record_of(cfg, run, classifier)
        # How many are held out is each training's choice; the base's is for a warning.
        record["made"]["val_size"] = record["data"].pop("val_size", None)
        write_base(net.state_dict(), own, record)
        if is_base and current is not None:
            set_current_base(own, current)
        else:
            log.info("base: %s; the current one stays", own)
    if useless and not (selection.targets or is_trial):
        raise TrainingError(f"{useless}; the base stays in {run.folder}")
    return results


def lora(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """``stage=lora``: train an adapter on the base, prove the base untouched, test on and off."""
    clock = Clock()
    trainer = make_trainer(cfg, run)
    classifier = classifier_of(cfg)
    net, dataset, base = classifier.net, classifier.dataset, classifier.base
    assert base is not None
    images = read_images(trainer, dataset)
    classifier.check(images.train)
    refuse_inconsistent(cfg, trainer, images.val)
    refuse_moving_base(trainer, classifier, images.train)
    wrong = mistakes_of(cfg, trainer, classifier)
    if wrong is not None:
        images = mistakes.with_mistakes(images, wrong)

    base_val = None
    if len(images.val):
        base_val = evaluate_on(trainer, net, dataset, images.val, "val")
    selection = select_images(cfg, dataset.classes, images, base_val, wrong)
    put_new_adapter(cfg, net)
    data = make_data_module(cfg, trainer, classifier, images, selection)
    with lora_disabled(net):  # not earlier: its advice is this command, which is refused until here
        better_preprocessing = check_preprocessing(classifier, run, trainer)
        if base_val is not None and not better_preprocessing:
            warn_of_wrong_settings(counts_of(base_val)["before"])
    rate, seconds_a_step = cfg.optimizer.lr, 0.0
    if rate == "auto":
        assert base_val is not None  # refuse_inconsistent
        # A run that goes on keeps the rate that it began with.
        rate = recorded_rate(run.folder) if cfg.resume is not None else None
        if rate is None:
            parts = loss_and_optimizer(cfg)
            rate, seconds_a_step = choose_rate(net, *parts, data, base_val, trainer)
    settings = make_module(cfg, classifier, data, rate, base_val).hparams  # refuses what is wrong
    print_parameters(net)
    with begin_run(run.folder, settings, cfg.resume):
        trained, trials = train_adapter(
            cfg, run, trainer, classifier, data, rate, base_val, seconds_a_step, clock
        )
        prove_unchanged(base, net)
        if not trainer.is_global_zero:
            return {}

        scale = trained.scale
        if cfg.lora.scale != 1:
            full = "; scale=1 is as trained" if scale != 1 else ""
            log.info("scale: %g, with which the adapter is saved%s", scale, full)
        tables: dict[str, Predictions] = {}
        if trained.val is not None:
            tables["val"] = trained.val
        with clock.measure("test"):
            tables["test"] = evaluate_on(trainer, net, dataset, images.test, "test")
            for split, pictures in mistakes.by_split(wrong).items():
                tables[split] = evaluate_on(trainer, net, dataset, pictures, split)
        outcomes = outcomes_by_split(tables, selection.targets)
        # Without the mistakes that were left out of either, the two cannot be compared.
        if images.val is dataset.sets.val and images.test is dataset.sets.test:
            warn_of_known_validation(outcomes, dataset.val_from)
        results = common_results(
            cfg, run.typed, classifier, images, outcomes, data.plan, selection.targets
        )
        results |= {
            "steps": trainer.global_step,
            "best": trained.best,
            "lr": rate,
            "dropout": trained.dropout,
            "trials": trials,
            "refit": trained.is_refit,
            "dial": trained.dial and {**trained.dial, "saved": trained.scale},
            "base_unchanged": True,
            "adapter": None if is_fast_dev_run(trainer) else ADAPTER_FOLDER,
            "better_preprocessing": better_preprocessing,
            "seconds": clock.seconds(),
        }
        if not is_fast_dev_run(trainer):
            save_adapter_and_base(cfg, run, classifier, selection.targets, trained)
        write_results(run.folder, results, tables["test"], images.test)
        report_and_close_loggers(trainer, results, run, cfg.figures, tables["test"], images.test)
    # After refit the validation images say nothing of the last training.
    splits = ("test", "test_base") if trained.is_refit else outcomes
    judged = {split: outcomes[split] for split in splits}
    useless = why_useless(judged, dataset.classes, rate)
    if useless and not is_fast_dev_run(trainer):
        raise TrainingError(useless)
    return results


def file_to_replace(cfg: DictConfig, run: Run) -> Path | None:
    """The file of the current base, which a pretraining replaces; ``None`` in a job of a sweep.

    Jobs of a sweep would replace it one after another; a file that is named is another matter.
    """
    if cfg.target == "weakest":
        raise UserError("target=weakest: expected stage=lora: only a base has a weakest class")
    if cfg.data.mistakes is not None:
        raise UserError(
            f"data.mistakes={cfg.data.mistakes}: expected null: only stage=lora learns mistakes"
        )
    if cfg.base_ckpt is None:
        raise UserError("base_ckpt=null: expected a file to write the base to")
    current = Path(cfg.base_ckpt)
    usual = Path(cfg.paths.bases, f"{base_name(cfg.data, cfg.net)}.ckpt")
    if run.is_sweep and current.absolute() == usual.absolute():
        return None
    if not cfg.debug:
        refuse_to_replace(current)
    return current
