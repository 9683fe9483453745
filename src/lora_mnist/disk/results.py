"""A run's times, and results.json."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from lora_mnist.classifier.significance import mcnemar
from lora_mnist.data import ImageDataModule, Images
from lora_mnist.disk.base import Base
from lora_mnist.disk.files import write_json
from lora_mnist.disk.predictions import Predictions, write_predictions
from lora_mnist.disk.run_paths import RESULTS_FILE
from lora_mnist.lora.base_state import count_parameters, fingerprint


@dataclass
class Clock:
    """Seconds since the run began, and of its measured parts."""

    started: float = field(default_factory=time.perf_counter)
    parts: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Around one part of the run."""
        started = time.perf_counter()
        yield
        self.parts[part] = time.perf_counter() - started

    def seconds(self) -> dict[str, float]:
        """Seconds of each part, and in total, to the millisecond."""
        parts = {**self.parts, "total": time.perf_counter() - self.started}
        return {part: round(seconds, 3) for part, seconds in parts.items()}


@rank_zero_only
def write_results(
    folder: Path, results: Mapping[str, Any], table: Predictions, images: Images
) -> None:
    """Write results.json, and the predictions for the test ``images``, into a run's folder."""
    write_json(folder / RESULTS_FILE, results)
    write_predictions(table, images.names(), folder, results["classes"])


def collect_results(
    cfg: DictConfig,
    overrides: Sequence[str] | None,
    data: ImageDataModule,
    module: Any,
    outcomes: Mapping[str, Mapping[str, Any]],
    clock: Clock,
    best: Mapping[str, Any] | None = None,
    base: Base | None = None,
) -> dict[str, Any]:
    """The content of results.json.

    ``overrides`` are those of the command; ``None``: it was called from Python. ``module`` is a
    :class:`.module.ClassifierModule` as it ended, ``outcomes`` are the counts by split. ``best``
    has monitor, value and step of the best weights, if they replaced the last ones. ``base`` is
    what the network started from.
    """
    targets, is_ours = module.targets, base is None or base.is_pretrained_here
    # A run that was resumed leaves the same results.
    kept = None
    if overrides is not None:
        kept = [text for text in overrides if not re.match(r"[+~]*(hydra|resume|sweep)\b", text)]
    splits = {split: dict(outcome) for split, outcome in outcomes.items()}
    for outcome in splits.values():
        if not targets:
            continue
        for key in ("errors", "false_calls"):
            outcome[f"{key}_of_target"] = sum(outcome[f"{key}_per_class"][c] for c in targets)
        if "repaired" in outcome:
            repaired = sum(outcome["repaired_per_class"][c] for c in targets)
            broken = sum(outcome["broken_per_class"][c] for c in targets)
            rest = outcome["repaired"] - repaired, outcome["broken"] - broken
            outcome["p_value_of_target"] = mcnemar(repaired, broken)
            outcome["p_value_elsewhere"] = mcnemar(*rest)
    return {
        "stage": cfg.stage,
        "dataset": data.name,
        "overrides": kept,
        "seed": cfg.get("seed"),
        "targets": targets,
        "targets_chosen": cfg.get("target") == "weakest",
        "replay": data.replay,
        "target_weight": OmegaConf.select(cfg, "loss.target_weight"),
        "classes": data.classes,
        "data_sha256": data.sha256,
        "mean": data.mean,
        "std": data.std,
        "val_from": data.val_from,
        "held_out": data.held_out,
        "copies": data.copies,
        # A network of somebody else's may have been trained on these images.
        "base_pretrained_here": is_ours,
        "test_held_out_now": "test" in data.held_out and not is_ours,
        "steps": module.global_step,
        "best": best,
        "parameters": count_parameters(module.net),
        **splits,
        "base_unchanged": None,
        # Without a base to start from, the network itself is a new one.
        "base_sha256": base.sha256 if base else fingerprint(module.net.state_dict()),
        "adapter": None,
        "seconds": clock.seconds(),
    }
