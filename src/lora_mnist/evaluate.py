"""Testing, from a configuration to results.json: a base alone, or beside a saved adapter."""

from typing import Any

from omegaconf import DictConfig

from lora_mnist.check_preprocessing import check_preprocessing, warn_of_wrong_settings
from lora_mnist.configuration import checked_copy, classifier_of
from lora_mnist.data import mistakes
from lora_mnist.disk.results import Clock, write_results
from lora_mnist.disk.run_paths import new_run_folder, refuse_used_folder
from lora_mnist.errors import UserError, config_group
from lora_mnist.recipe import mistakes_of
from lora_mnist.repair.predictions import outcomes_by_split
from lora_mnist.run import Run
from lora_mnist.saving import common_results
from lora_mnist.show.report import report_and_close_loggers
from lora_mnist.trainer import evaluate_on, make_trainer, quiet_lightning


def evaluate(cfg: DictConfig, run: Run | None = None) -> dict[str, Any]:
    """Test the base and, where ``cfg.adapter`` names one, the base with the adapter beside it.

    Args:
        cfg: a configuration of ``configs/eval.yaml``; it is not changed.
        run: the folder for results.json and the loggers' files, and how the command was typed;
            ``None`` makes a new folder, named by the time.

    Returns:
        The content of results.json.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
    """
    clock = Clock()
    run = run or Run(new_run_folder(cfg.paths.outputs, cfg.stage))
    refuse_used_folder("hydra.run.dir", run.folder)
    cfg = checked_copy(cfg, run)
    trainer = make_trainer(cfg, run)
    if trainer.world_size > 1:
        raise UserError(f"trainer.devices={trainer.num_devices}: expected 1; one process evaluates")
    classifier = classifier_of(cfg, run)
    net, dataset = classifier.net, classifier.dataset
    with config_group("data"):
        images = dataset.sets
    classifier.check(images.test)
    better_preprocessing = check_preprocessing(classifier, run, trainer)
    wrong = mistakes_of(cfg, trainer, classifier)
    if wrong is not None:
        images = mistakes.with_mistakes(images, wrong)
    scale = classifier.set_scale(cfg.scale, trainer.strategy.root_device)
    targets = [c for c, name in enumerate(dataset.classes) if name in classifier.targets]
    with quiet_lightning(), clock.measure("test"):
        tables = {"test": evaluate_on(trainer, net, dataset, images.test, "test")}
        for split, pictures in mistakes.by_split(wrong).items():
            tables[split] = evaluate_on(trainer, net, dataset, pictures, split)
    outcomes = outcomes_by_split(tables, targets)
    if not better_preprocessing:
        warn_of_wrong_settings(outcomes.get("test_base", outcomes["test"]))
    results = common_results(cfg, run.typed, classifier, images, outcomes, targets=targets)
    results |= {
        "adapter": classifier.adapter and str(classifier.adapter),
        "scale": scale,
        "better_preprocessing": better_preprocessing,
        "seconds": clock.seconds(),
    }
    write_results(run.folder, results, tables["test"], images.test)
    report_and_close_loggers(trainer, results, run, cfg.figures, tables["test"], images.test)
    return results
