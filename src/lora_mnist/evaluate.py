"""Testing, from a configuration to results.json: a base alone, or beside a saved adapter."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from lora_mnist.adapters import (
    apply_scale,
    load_saved_adapter,
    repaired_classes,
    resolve_and_load_base,
)
from lora_mnist.check_preprocessing import check_preprocessing
from lora_mnist.classifier.module import ClassifierModule
from lora_mnist.classifier.net import eval_on_device
from lora_mnist.data import make_data
from lora_mnist.data.make import require_compatible
from lora_mnist.data.mistakes import wrong_pictures
from lora_mnist.disk.predictions import predictions_table
from lora_mnist.disk.results import Clock, collect_results, write_results
from lora_mnist.disk.resume import require_new
from lora_mnist.disk.run_paths import folder_without_command_line
from lora_mnist.errors import config_group
from lora_mnist.project import Run
from lora_mnist.settings import checked_copy
from lora_mnist.show.end_of_run import report_and_close_loggers
from lora_mnist.trainer import make_trainer, quiet_lightning


def evaluate(cfg: DictConfig, run: Run | None = None) -> dict[str, Any]:
    """Test the base and, where ``cfg.adapter`` names one, the base with the adapter beside it.

    Args:
        cfg: a configuration of ``configs/eval.yaml``; it is not changed. ``cfg.adapter`` is as
            :mod:`lora_mnist.adapters` says.
        run: the folder for results.json and the loggers' files, and how the command was typed;
            ``None`` makes a new folder, named by the time.

    Returns:
        The content of results.json.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
    """
    clock = Clock()
    run = run or Run(folder_without_command_line(cfg))
    require_new(run.folder)
    cfg = checked_copy(cfg)
    cfg.paths.run = str(run.folder)
    trainer = make_trainer(cfg, run)
    cfg, net, base = resolve_and_load_base(cfg, run)
    data = make_data(cfg, "test")
    require_compatible(net, data, data.test_set)
    better = check_preprocessing(cfg, run, trainer, net, data, base)
    if data.mistakes is not None:
        with eval_on_device(net, trainer.strategy.root_device) as device:
            data = data.with_mistakes(*wrong_pictures(net, data, device))
    load_saved_adapter(cfg, net, base.sha256)
    if cfg.scale == "auto" and cfg.adapter is not None:  # validation images decide it
        with config_group("data"):
            data.setup("validate")
    with eval_on_device(net, trainer.strategy.root_device) as device:
        scale = apply_scale(cfg, net, data, device)
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    module = ClassifierModule(net, data, repaired_classes(cfg, data), hyperparameters=settings)
    with quiet_lightning(), clock.measure("test"):
        trainer.test(module, datamodule=data, verbose=False)
    results = collect_results(cfg, run.typed, data, module, module.outcomes, clock, base=base)
    results |= {"adapter": cfg.adapter, "scale": scale, "better_preprocessing": better}
    table = predictions_table(module.predictions["test"])
    write_results(run.folder, results, table, data.test_set)
    report_and_close_loggers(trainer, results, run, cfg.figures, table, data.test_set)
    return results
