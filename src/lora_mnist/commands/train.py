"""Training, from a configuration to results.json: a new base, or a repair of one."""

import os
from typing import Any

from lightning.pytorch import seed_everything
from omegaconf import DictConfig

from lora_mnist.choice import Choice
from lora_mnist.classifier.base import check_replaceable
from lora_mnist.config.keys import resolve_configuration
from lora_mnist.config.run import Run
from lora_mnist.run_paths import ADAPTER_FOLDER, plan_run_folder
from lora_mnist.show.reasons import log_choices
from lora_mnist.show.screen import print_parameters
from lora_mnist.training.adapter import add_adapter, check_auto_point
from lora_mnist.training.artifacts import (
    current_base_path,
    keep_base,
    make_current,
    new_base,
    write_adapter,
    write_new_base,
)
from lora_mnist.training.check_preprocessing import check_base
from lora_mnist.training.finished import remove_finished
from lora_mnist.training.fit import build_datamodule, fit
from lora_mnist.training.opening import open_session
from lora_mnist.training.repair import train_head, train_repair
from lora_mnist.training.results import finish
from lora_mnist.training.session import is_quick, prove_unchanged
from lora_mnist.training.target import choose_target
from lora_mnist.training.trainer import quiet_lightning
from lora_mnist.training.trials import plan_trainings


def train(cfg: DictConfig, run: Run | None = None) -> dict[str, Any]:
    """Run one stage: pretrain a base, or repair it with an adapter and prove it untouched.

    Args:
        cfg: a configuration of ``configs/train.yaml``; it is not changed.
        run: the folder for results.json, checkpoints, the adapter and the loggers' files, and the
            command line; ``None`` makes a new folder, named by the time.

    Returns:
        The content of results.json, in the first of several processes; {} in the others.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
        TrainingError: if training diverges, or a new base is of no use.
        RuntimeError: if training an adapter changed the base.
    """
    stages = {"pretrain": pretrain, "lora": lora}
    run = run or Run(plan_run_folder(cfg.paths.outputs, cfg.stage))
    cfg = resolve_configuration(cfg, run)
    seed_everything(cfg.seed, verbose=False)
    with quiet_lightning():
        return stages[cfg.stage](cfg, run)


def pretrain(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """``stage=pretrain``: train all weights, test, and make the result the current base."""
    current = current_base_path(cfg, run)
    if current is not None and not is_quick(cfg):
        check_replaceable(current)
    session = open_session(cfg, run)
    selection, choices = choose_target(session)
    (training,) = plan_trainings(session, selection)
    data = build_datamodule(session, training)
    print_parameters(session.net)
    module = fit(session, training.cfg, session.trainer, data)
    if not session.trainer.is_global_zero:
        return {}
    choices["learning_rate"] = Choice(cfg.optimizer.lr, [session.explain_setting("optimizer.lr")])
    tables = session.predict_splits(with_val=True)
    base = new_base(session, tables, current)
    about: dict[str, Any] = {"steps": module.global_step, "base_sha256": base.sha256}
    if base.replaces is None:  # the user has to name it to other commands
        about["weights"] = os.path.relpath(base.path, run.folder)
    write_new_base(session, base, data.train_digests)  # first: a later failure cannot lose it
    results = finish(session, tables, choices, about)
    make_current(base)  # last: a run that fails leaves the current one alone
    return results


def lora(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """``stage=lora``: train an adapter on the base, prove the base untouched, test on and off."""
    session = open_session(cfg, run)
    before = session.predict_split("val")
    better_preprocessing = check_base(session, before)
    selection, choices = choose_target(session, before)
    log_choices(choices, is_repair=True)
    check_auto_point(session, selection)
    head = train_head(session, selection)
    add_adapter(session, selection)
    repair = train_repair(session, selection, before, head)
    prove_unchanged(session)
    if not session.trainer.is_global_zero:
        return {}
    log_choices(repair.choices, is_repair=True)
    choices |= repair.choices
    about = {
        **repair.about(),
        "base_unchanged": True,  # or prove_unchanged has raised
        "better_preprocessing": better_preprocessing,
    }
    tables = repair.tables | session.predict_splits()
    if not is_quick(cfg):
        write_adapter(session, choices, repair.kept.train_digests)
        about["adapter"] = ADAPTER_FOLDER
    results = finish(session, tables, choices, about)
    if not is_quick(cfg):
        keep_base(session)  # last: if this large file fills the disk, the rest is already saved
    remove_finished(session)
    return results
