"""Testing, from a configuration to results.json: a base alone, or beside saved adapters."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.config import (
    adapter_targets,
    build_data,
    build_net,
    build_trainer,
    is_sweep,
    load_adapters,
    load_base,
    quiet_lightning,
    require_fit,
    require_known_keys,
    with_run,
)
from lora_mnist.disk.numbers import check_require, parse_require
from lora_mnist.disk.predictions import write_predictions
from lora_mnist.disk.results import Clock, collect_results, new_run_folder, write_results
from lora_mnist.errors import UserError
from lora_mnist.lora import lora_names, set_lora_enabled
from lora_mnist.show.report import make_report
from lora_mnist.show.tables import print_results
from lora_mnist.show.tensorboard import show_outcome

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig, run_folder: Path | None = None) -> dict[str, Any]:
    """Test the base and, where ``cfg.adapter`` names some, the base with adapters beside it.

    Args:
        cfg: a configuration of ``configs/eval.yaml``; it is not changed. ``cfg.adapter`` is as for
            :func:`lora_mnist.config.adapter_specs`, or ``latest``; ``cfg.each`` tests each adapter
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
    require_known_keys(cfg, "eval")
    for key in ("each", "allow_other_base"):
        if not isinstance(cfg[key], bool):
            raise UserError(f"{key}={cfg[key]}: expected true or false")
    if not (isinstance(cfg.figures, bool) or cfg.figures == "auto"):
        raise UserError(f"figures={cfg.figures}: expected true, false or auto")
    comparisons = parse_require(cfg.require)
    cfg = with_run(cfg)
    data = build_data(cfg, "test")
    data.targets = adapter_targets(cfg, data.classes)
    data.target = data.targets[0] if data.targets and len(data.targets) == 1 else data.targets
    net = build_net(cfg)
    base = load_base(cfg, net)
    require_fit(net, data, data.test_set.__getitems__([0, 0])[0])
    scales = load_adapters(cfg, net, data)
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    module = ClassifierModule(
        net,
        len(data.classes),
        class_names=data.short_names,
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
    results |= {"each": each} if each else {}
    results |= {"adapter": settings["adapter"], "scales": scales}
    if trainer.is_global_zero:
        write_results(results, folder)
        write_predictions(
            module.predictions, lambda n: data.test_set.__getitems__(n)[0], folder, results
        )
        print_results(results)
        if cfg.figures is True or (cfg.figures == "auto" and not is_sweep()):
            log.info("report: %s", make_report(folder))
        show_outcome(trainer, results, folder)
        log.info("run: %s", folder)
    check_require(comparisons, results)
    return results
