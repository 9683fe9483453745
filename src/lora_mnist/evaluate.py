"""Testing, from a configuration to results.json: a base alone, or beside saved adapters."""

import json
import logging
import time
from operator import attrgetter
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from torch import nn

from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.classifier.preprocessing import conventions, try_conventions
from lora_mnist.classifier.significance import mcnemar, p_text
from lora_mnist.config import (
    asked_adapters,
    build_data,
    build_net,
    build_trainer,
    completed,
    load_adapters,
    load_base,
    on_device,
    quiet_lightning,
    require_fit,
)
from lora_mnist.data import ImageDataModule
from lora_mnist.disk.files import write_json
from lora_mnist.disk.numbers import RESULTS_FILE, check_require, parse_require
from lora_mnist.disk.predictions import write_predictions
from lora_mnist.disk.results import (
    Clock,
    collect_results,
    new_run_folder,
)
from lora_mnist.errors import config_group
from lora_mnist.lora import lora_names, set_lora_enabled
from lora_mnist.project import is_sweep, typed_overrides
from lora_mnist.show.changes import targets_of
from lora_mnist.show.run import show_run
from lora_mnist.show.tables import show
from lora_mnist.sweep.command import command_line

log = logging.getLogger(__name__)
_LOSS = attrgetter("loss")

#: ``check=auto`` tries so many validation and so many training images in every way, for so many
#: seconds at most, and then so many of each in the best way and in the configured one.
_FEW, _SECONDS, _MANY = 20, 5, 300
#: The level of McNemar's test: strict, since the best of several conventions is tested.
_LEVEL = 0.01


def evaluate(cfg: DictConfig, run_folder: Path | None = None) -> dict[str, Any]:
    """Test the base and, where ``cfg.adapter`` names some, the base with adapters beside it.

    Args:
        cfg: a configuration of ``configs/eval.yaml``; it is not changed. ``cfg.adapter`` is as for
            :func:`lora_mnist.config.asked_adapters`, or ``latest``; ``cfg.each`` tests each adapter
            alone too.
        run_folder: where to leave results.json and the loggers' files; ``None`` makes a new folder,
            named by the time.

    Returns:
        What results.json holds.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
        RequirementError: if the results are not what ``cfg.require`` asks for; they are kept.
    """
    clock = Clock()
    cfg = completed(cfg)
    comparisons = parse_require(cfg.require)
    data = build_data(cfg, "test")
    data.targets = adapter_targets(cfg, data.classes)
    net = build_net(cfg)
    base = load_base(cfg, net)
    require_fit(net, data, data.test_set.take([0, 0])[0])
    check_preprocessing(cfg, net, data)
    adapters = load_adapters(cfg, net, data)
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    module = ClassifierModule(
        net,
        len(data.classes),
        class_names=data.classes,
        hyperparameters={**settings, "base_sha256": base.sha256},
    )
    folder = new_run_folder(cfg) if run_folder is None else run_folder
    with quiet_lightning(), clock.measure("test"):
        each = {}
        for name in lora_names(net) if cfg.each else []:
            # Without loggers: there ``test`` means all adapters together.
            quiet = build_trainer(OmegaConf.merge(cfg, {"logger": None}), folder)  # type: ignore[arg-type]
            set_lora_enabled(net, False)
            set_lora_enabled(net, True, name)
            quiet.test(module, datamodule=data, verbose=False)
            each[name] = module.outcomes["test"]
            set_lora_enabled(net, True)
        trainer = build_trainer(cfg, folder)
        trainer.test(module, datamodule=data, verbose=False)
    results = collect_results(cfg, data, net, module.outcomes, clock)
    if each:
        results["each"] = each
    results["adapter"] = settings["adapter"]
    results["scales"] = {adapter.name: adapter.scale for adapter in adapters}
    if trainer.is_global_zero:
        write_json(folder / RESULTS_FILE, results)
        write_predictions(module.predictions, data.test_set, folder, results)
        show_run(trainer, results, folder, cfg.figures)
    check_require(comparisons, results)
    return results


def adapter_targets(cfg: DictConfig, classes: list[str]) -> list[int]:
    """The classes that the adapters of ``cfg.adapter`` repair, as results.json of their runs says.

    Empty where one of them does not say it, or says it of other classes than these.
    """
    targets: list[int] = []
    for adapter in asked_adapters(cfg):
        file = adapter.path.parent / RESULTS_FILE
        run = json.loads(file.read_text()) if file.is_file() else {}
        own = targets_of(run) if run.get("classes") == classes else []
        if not own:
            return []
        targets += [target for target in own if target not in targets]
    return targets


@rank_zero_only
def check_preprocessing(cfg: DictConfig, net: nn.Module, data: ImageDataModule) -> None:
    """Try the base on images prepared in other ways than configured, as ``cfg.check`` says.

    What was tried is printed where that was asked for; where another way is better, so is the
    command that is likely to be right.
    """
    is_ours = str(cfg.net._target_).startswith("lora_mnist.")
    if cfg.check is None or (cfg.check == "auto" and (is_ours or cfg.adapter or is_sweep())):
        return
    tried = conventions(OmegaConf.to_container(cfg.data, resolve=True))  # type: ignore[arg-type]
    with on_device(cfg, net) as device, config_group("data"):
        if cfg.check == "auto":
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
    if cfg.check == "auto" and not is_better:
        return
    changes, table = [], Table(*(f"data.{key}" for key in best.convention), "errors", "loss")
    for trial in sorted(trials, key=_LOSS):
        texts = {}
        for key, value in trial.convention.items():
            texts[key] = "null" if value is None else str(value).replace(" ", "")
            if trial is best and value != configured.convention[key]:
                changes.append(f"data.{key}={texts[key]}")
        table.add_row(*texts.values(), str(int(trial.wrong.sum())), f"{trial.loss:.3f}")
    if cfg.check == "preprocessing":
        show(table)
    said = f"in {len(best.wrong):,} validation and training images"
    if best is configured:
        log.info("the network was most likely trained as configured: %d errors %s", errors, said)
        return
    left_out = ["check=", "hydra."]
    for change in changes:
        left_out.append(f"{change.partition('=')[0]}=")
    log.warning(
        "the network was %s trained otherwise, %d errors instead of %d %s (%s): %s",
        *("most likely" if is_better else "perhaps", fewer, errors, said, p_text(p_value)),
        command_line([*typed_overrides(*left_out), *changes]),
    )
