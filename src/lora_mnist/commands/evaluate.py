"""Testing, from a configuration to results.json: a base alone, or beside a saved adapter."""

from typing import Any

from omegaconf import DictConfig

from lora_mnist.classifier.choose_point import apply_point
from lora_mnist.config.keys import resolve_configuration
from lora_mnist.config.make import read_point
from lora_mnist.config.run import Run
from lora_mnist.run_paths import plan_run_folder
from lora_mnist.show.reasons import log_choices
from lora_mnist.training.check_preprocessing import check_base
from lora_mnist.training.opening import open_session
from lora_mnist.training.results import finish
from lora_mnist.training.trainer import quiet_lightning


def evaluate(cfg: DictConfig, run: Run | None = None) -> dict[str, Any]:
    """Test the base and, where ``cfg.adapter`` names one, the base with the adapter beside it.

    Args:
        cfg: a configuration of ``configs/eval.yaml``; it is not changed.
        run: the folder for results.json and the loggers' files, and the command line;
            ``None`` makes a new folder, named by the time.

    Returns:
        The content of results.json.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
    """
    run = run or Run(plan_run_folder(cfg.paths.outputs, cfg.stage))
    cfg = resolve_configuration(cfg, run)
    with quiet_lightning():
        session = open_session(cfg, run)
        classifier = session.classifier
        session.switch_to_eval()  # also for the search for the point
        choices = apply_point(classifier, read_point(cfg), session.images.val)
        log_choices(choices)
        tables = session.predict_splits(with_val=classifier.adapter is None)
        better_preprocessing = check_base(session, tables.get("val"))  # of a base alone
        about = {"steps": 0, "better_preprocessing": better_preprocessing}
        return finish(session, tables, choices, about)
