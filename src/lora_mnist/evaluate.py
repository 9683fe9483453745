"""Testing, from a configuration to results.json: a base alone, or beside saved adapters."""

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.config import (
    build_data,
    build_net,
    require_bool,
    require_figures,
    require_fit,
    require_known_keys,
)
from lora_mnist.data import ImageDataModule
from lora_mnist.disk.predictions import write_answers
from lora_mnist.disk.results import Clock, collect_results, new_run_folder, write_results
from lora_mnist.load import load_adapters, load_base, with_latest_adapter
from lora_mnist.lora import lora_names, set_lora_enabled
from lora_mnist.process import keep_freed_memory
from lora_mnist.show.report import show_run
from lora_mnist.show.tables import print_results
from lora_mnist.trainer import build_trainer, trainer_at_work

log = logging.getLogger(__name__)

_KEYS = (
    *("stage", "data", "net", "base_name", "base_ckpt", "adapter", "each", "allow_other_base"),
    *("trainer", "logger", "paths", "sweep", "figures"),
)


def evaluate(cfg: DictConfig, run_folder: Path | None = None) -> dict[str, Any]:
    """Test the base and, where ``cfg.adapter`` names some, the base with adapters beside it.

    Args:
        cfg: a configuration of ``configs/eval.yaml``; it is not changed. ``cfg.adapter`` is as for
            :func:`lora_mnist.load.adapter_specs`, or ``latest``; ``cfg.each`` tests each adapter
            alone too.
        run_folder: where to leave results.json and the logger's files; ``None`` makes a new folder,
            named by the time.

    Returns:
        What results.json holds.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
    """
    clock = Clock()
    require_known_keys(cfg, *_KEYS)
    require_bool(cfg, "each")
    require_figures(cfg)
    keep_freed_memory()
    cfg = with_latest_adapter(cfg)
    data = build_data(cfg, "test")
    net = build_net(cfg)
    base = load_base(cfg, net)
    require_fit(net, data, data.test_set.images[:2])
    load_adapters(cfg, net)
    hyperparameters: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    module = ClassifierModule(
        net,
        len(data.classes),
        hyperparameters={**hyperparameters, "base_sha256": base.sha256},
    )
    folder = new_run_folder(cfg) if run_folder is None else run_folder
    trainer = build_trainer(cfg, folder)
    with clock.measure("test"), trainer_at_work():
        each = _test_each(module, trainer, data) if cfg.each else {}
        trainer.test(module, datamodule=data, verbose=False)
    results = collect_results(cfg, data, net, module.outcomes, clock)
    results |= {"each": each} if each else {}
    results["adapter"] = hyperparameters["adapter"]
    if trainer.is_global_zero:
        write_results(results, folder)
        write_answers(module.answers, data.test_set.images, folder)
        print_results(results, data.classes)
        show_run(trainer, results, folder, cfg.figures)
        log.info("run: %s", folder)
    return results


def _test_each(
    module: ClassifierModule, trainer: Trainer, data: ImageDataModule
) -> dict[str, dict[str, Any]]:
    """What each adapter does alone, by its name, as results.json has it."""
    loggers, trainer.loggers = trainer.loggers, []  # there ``test`` means all of them together
    each = {}
    for name in lora_names(module.net):
        set_lora_enabled(module.net, False)
        set_lora_enabled(module.net, True, name)
        trainer.test(module, datamodule=data, verbose=False)
        each[name] = module.outcomes["test"]
    set_lora_enabled(module.net, True)
    trainer.loggers = loggers
    return each
