"""Testing, from a configuration to results.json: a base alone, or beside saved adapters."""

import logging
import time
from operator import attrgetter
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from torch import nn

from lora_mnist.adapters import (
    adapter_targets,
    as_trained,
    load_adapters,
    load_base,
    turn_adapters,
)
from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.classifier.net import make_net, require_fit
from lora_mnist.classifier.preprocessing import conventions, try_conventions, within_chance
from lora_mnist.classifier.significance import mcnemar, p_text
from lora_mnist.data import ImageDataModule, make_data
from lora_mnist.disk.numbers import check_require, parse_require
from lora_mnist.disk.results import Clock, collect_results, new_run_folder, write_results
from lora_mnist.errors import config_group
from lora_mnist.lora import lora_names, set_lora_enabled
from lora_mnist.project import Run
from lora_mnist.settings import Check, checked
from lora_mnist.show.run import show_run
from lora_mnist.show.tables import show
from lora_mnist.sweep.command import command_line
from lora_mnist.trainer import make_trainer, on_device, quiet_lightning

log = logging.getLogger(__name__)
_LOSS = attrgetter("loss")

#: ``check=auto`` tries so many validation and so many training images in every way, for so many
#: seconds at most, and then so many of each in the best way and in the configured one.
_FEW, _SECONDS, _MANY = 20, 5, 300
#: The level of McNemar's test: strict, since the best of several conventions is tested.
_LEVEL = 0.01


def evaluate(cfg: DictConfig, run: Run | None = None) -> dict[str, Any]:
    """Test the base and, where ``cfg.adapter`` names some, the base with adapters beside it.

    Args:
        cfg: a configuration of ``configs/eval.yaml``; it is not changed. ``cfg.adapter`` is as
            :mod:`lora_mnist.adapters` says; ``cfg.each`` tests each adapter alone too.
        run: the folder for results.json and the loggers' files, and how the command was typed;
            ``None`` makes a new folder, named by the time.

    Returns:
        What results.json holds.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
        RequirementError: if the results are not what ``cfg.require`` asks for; they are kept.
    """
    clock = Clock()
    run = run or Run(new_run_folder(cfg))
    cfg = as_trained(checked(cfg, run), run)
    comparisons = parse_require(cfg.require)
    trainer = make_trainer(cfg, run)
    net = make_net(cfg)
    data = make_data(cfg, "test", net)
    base = load_base(cfg, net)
    require_fit(net, data, data.test_set)
    check_preprocessing(cfg, run, trainer, net, data)
    adapters = load_adapters(cfg, net)
    data.targets = adapter_targets(adapters, data.classes)
    turn_adapters(cfg, net, adapters, data)
    settings: Any = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    module = ClassifierModule(
        net,
        len(data.classes),
        class_names=data.classes,
        hyperparameters={**settings, "base_sha256": base.sha256},
    )
    with quiet_lightning(), clock.measure("test"):
        each = {}
        for name in lora_names(net) if cfg.each else []:
            # Without loggers: there ``test`` means all adapters together.
            set_lora_enabled(net, False)
            set_lora_enabled(net, True, name)
            quiet = make_trainer(cfg, run, has_loggers=False)
            quiet.test(module, datamodule=data, verbose=False)
            each[name] = module.outcomes["test"]
            set_lora_enabled(net, True)
        trainer.test(module, datamodule=data, verbose=False)
    results = collect_results(cfg, data, net, module.outcomes, clock, base_sha256=base.sha256)
    if each:
        results["each"] = each
    results["adapter"] = settings["adapter"]
    results["scales"] = {adapter.name: adapter.scale for adapter in adapters}
    write_results(run.folder, results, module.predictions, data.test_set)
    show_run(trainer, results, run, cfg.figures)
    check_require(comparisons, results)
    return results


@rank_zero_only
def check_preprocessing(
    cfg: DictConfig, run: Run, trainer: Trainer, net: nn.Module, data: ImageDataModule
) -> None:
    """Try the base on images prepared in other ways than configured, as ``cfg.check`` says.

    What was tried is printed where that was asked for; where another way is better, so is the
    command that is likely to be right.
    """
    is_ours = str(cfg.net._target_).startswith("lora_mnist.")
    if cfg.check is None or (cfg.check == Check.auto and (is_ours or cfg.adapter or run.is_sweep)):
        return
    tried = conventions(OmegaConf.to_container(cfg.data, resolve=True))  # type: ignore[arg-type]
    with on_device(net, trainer.strategy.root_device) as device, config_group("data"):
        if cfg.check == Check.auto:
            few, started = [], time.perf_counter()
            for trial in try_conventions(net, data, device, tried, _FEW):
                few.append(trial)
                if time.perf_counter() - started > _SECONDS:
                    return
            best = min(few, key=_LOSS)
            if best is few[0]:
                return
            tried = [tried[0], best.convention]
        trials = list(try_conventions(net, data, device, tried, _MANY))
    configured, best = trials[0], min(trials, key=_LOSS)
    errors, fewer = int(configured.wrong.sum()), int(best.wrong.sum())
    repaired = int((configured.wrong & ~best.wrong).sum())
    p_value = mcnemar(repaired, fewer - errors + repaired)
    is_better = fewer < errors and p_value < _LEVEL
    if cfg.check == Check.auto and not is_better:
        return
    table = Table(*(f"data.{key}" for key in best.convention), "errors", "loss")
    changes_of: dict[int, list[str]] = {}
    for trial in sorted(trials, key=_LOSS):
        texts = {}
        changes_of[id(trial)] = []
        for key, value in trial.convention.items():
            texts[key] = "null" if value is None else str(value).replace(" ", "")
            if value != configured.convention[key]:
                changes_of[id(trial)].append(f"data.{key}={texts[key]}")
        table.add_row(*texts.values(), str(int(trial.wrong.sum())), f"{trial.loss:.3f}")
    changes = changes_of[id(best)]
    if cfg.check == Check.preprocessing:
        show(table)
    said = f"in {len(best.wrong):,} validation and training images"
    if best is configured:
        as_good = [" ".join(changes_of[id(each)]) for each in within_chance(best, trials[1:])]
        if as_good:
            text = "trained as configured, or, no worse by more than chance, with %s: %d errors %s"
            log.info(f"the network was {text}", " | ".join(as_good[:5]), errors, said)
        else:
            text = "the network was most likely trained as configured: %d errors %s"
            log.info(text, errors, said)
        return
    left_out = ["check=", "hydra."]
    for change in changes:
        left_out.append(f"{change.partition('=')[0]}=")
    log.warning(
        "the network was %s trained otherwise, %d errors instead of %d %s (%s): %s",
        *("most likely" if is_better else "perhaps", fewer, errors, said, p_text(p_value)),
        command_line([*run.typed_without(*left_out), *changes]),
    )
