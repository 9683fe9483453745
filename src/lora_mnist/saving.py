"""What a run says of itself: the content of results.json, the records of bases and adapters."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lora_mnist.classifier import Classifier
from lora_mnist.data import ImageSets
from lora_mnist.data.plan import Plan
from lora_mnist.disk.base import find_base, read_base, versioned_base_path, write_base
from lora_mnist.disk.numbers import affects_results
from lora_mnist.disk.record import SPLIT_KEYS, make_record
from lora_mnist.disk.run_paths import ADAPTER_FOLDER, base_name
from lora_mnist.lora.adapter import save_adapter
from lora_mnist.lora.base_state import count_parameters
from lora_mnist.run import Run
from lora_mnist.trials import Trained


def common_results(
    cfg: DictConfig,
    overrides: Sequence[str] | None,
    classifier: Classifier,
    images: ImageSets,
    outcomes: Mapping[str, Mapping[str, Any]],
    plan: Plan | None = None,
    targets: Sequence[int] = (),
) -> dict[str, Any]:
    """What results.json says of every run.

    ``overrides`` are those of the command; ``None``: it was called from Python. ``outcomes`` are
    the counts by split, ``targets`` the classes to repair.
    """
    base, dataset = classifier.base, classifier.dataset
    is_ours = base is None or base.is_pretrained_here
    # A run that was resumed leaves the same results.
    kept = None
    if overrides is not None:
        kept = [text for text in overrides if not re.match(r"[+~]*(hydra|resume|sweep)\b", text)]
    preprocessing = dataset.preprocessing()
    return {
        "stage": cfg.stage,
        "dataset": dataset.name,
        "overrides": kept,
        "seed": cfg.get("seed"),
        "targets": list(targets),
        "targets_chosen": cfg.get("target") == "weakest",
        "replay": plan.replay if plan else 0,
        "target_weight": OmegaConf.select(cfg, "loss.target_weight"),
        "classes": dataset.classes,
        "data_sha256": dict(images.sha256),
        "training_images_per_class": images.train.labels.bincount(
            minlength=len(dataset.classes)
        ).tolist(),
        "validation_images": len(images.val),
        "mean": preprocessing.get("mean"),
        "std": preprocessing.get("std"),
        "val_from": dataset.val_from,
        "held_out": dict(images.held_out),
        "copies": images.copies,
        # A network of somebody else's may have been trained on these images.
        "base_pretrained_here": is_ours,
        "test_held_out_now": "test" in images.held_out and not is_ours,
        "parameters": count_parameters(classifier.net),
        **outcomes,
        "base_sha256": base and base.sha256,
        "base_unchanged": None,
        "adapter": None,
        "steps": 0,
        "best": None,
    }


def record_of(cfg: DictConfig, run: Run, classifier: Classifier) -> dict[str, Any]:
    """The record of a training, for the file of its base or adapter."""
    typed = [text for text in run.typed or () if affects_results(text.partition("=")[0])]
    made = {"stage": cfg.stage, "overrides": typed, "folder": str(Path.cwd()), "seed": cfg.seed}
    dataset = classifier.dataset
    return make_record(classifier.settings, str(dataset.name), dataset.preprocessing(), made)


def save_adapter_and_base(
    cfg: DictConfig, run: Run, classifier: Classifier, targets: list[int], trained: Trained
) -> None:
    """Save the adapter with its record in the run's folder.

    The base gets a file of its own, where it has none, so that it is found later. An adapter that
    has learnt the validation images keeps what these advised before.
    """
    base, bases, record = classifier.base, Path(cfg.paths.bases), record_of(cfg, run, classifier)
    assert base is not None
    if find_base(bases, base.sha256) is None:
        settings = classifier.settings
        name = base_name(settings["data"], settings["net"])
        about = None if classifier.base_path is None else read_base(classifier.base_path).record
        if not about:  # somebody else's: which images are held out is each command's choice
            data = {key: value for key, value in record["data"].items() if key not in SPLIT_KEYS}
            about = {**record, "data": data}
        write_base(base.tensors, versioned_base_path(bases, name, base.sha256), about)
    if trained.is_refit:
        advised = trained.dial["advised"] if trained.dial is not None else None
        record["made"] |= {"dropout": trained.dropout, "refit": True, "advised_scale": advised}
    names = [classifier.classes[target] for target in targets]
    metadata = {"base_sha256": base.sha256, "targets": names, **record}
    save_adapter(classifier.net, run.folder / ADAPTER_FOLDER, metadata=metadata)
