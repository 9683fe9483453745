"""Lightning's checkpoints: written whole or not at all, and refused where they do not fit."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lora_mnist.disk.files import atomic_write
from lora_mnist.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints whole or not at all (Lightning issue 19970)."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        with atomic_write(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


def refuse_other_base(path: Path, sha256: str | None) -> None:
    """Refuse a checkpoint whose training had another base; ``None``: it must be a pretraining's."""
    try:
        settings = torch.load(path, map_location="cpu", weights_only=True)["hyper_parameters"]
        its_base = settings["base_sha256"]
    except Exception as error:  # torch has no one class for what a file may hold
        raise UserError(
            f"ckpt_path={path}: expected a checkpoint of a training, RUN/checkpoints/last.ckpt "
            f"({type(error).__name__})"
        ) from error
    if its_base != sha256:
        names = []
        for each in (sha256, its_base):
            names.append(f"an adapter on the base {each[:12]}" if each else "a base")
        raise UserError(
            f"ckpt_path={path}: expected a checkpoint of {names[0]}; it is of {names[1]}"
        )
