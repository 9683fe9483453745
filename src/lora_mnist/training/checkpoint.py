"""Lightning's checkpoints: written whole or not at all, and refused where they do not fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lora_mnist.errors import UserError, as_value
from lora_mnist.files import atomic_write
from lora_mnist.show.keys import flatten


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints whole or not at all (Lightning issue 19970)."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        with atomic_write(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


def refuse_other_training(path: str | Path, expected: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of a training that has not the ``expected`` settings, by dotted keys."""
    try:
        hyperparameters = torch.load(path, map_location="cpu", weights_only=True)[
            "hyper_parameters"
        ]
        hyperparameters = flatten(dict(hyperparameters))
    except Exception as error:  # torch has no one class for what a file may hold
        raise UserError(
            f"ckpt_path={path}: expected a checkpoint of a training, RUN/checkpoints/last.ckpt "
            f"({type(error).__name__})"
        ) from error
    for key, value in expected.items():
        its = hyperparameters.get(key)
        if its != value:
            raise UserError(
                f"ckpt_path={path}: its training had {key}={as_value(its)[:20]}, this one has "
                f"{as_value(value)[:20]}; expected its command once more, for the same images"
            )
