"""Lightning's checkpoints: written whole or not at all, and refused where they do not fit."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lora_mnist.config.run import is_in
from lora_mnist.errors import UserError, as_value
from lora_mnist.files import atomic_write, flatten


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints whole or not at all (Lightning issue 19970)."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        with atomic_write(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


def refuse_other_training(
    path: str | Path, hparams: Mapping[str, Any], groups: Iterable[str]
) -> None:
    """Refuse a checkpoint of a training that had other ``hparams`` in one of ``groups``."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        its = flatten(dict(content["hyper_parameters"]))
    except Exception as error:  # torch has no one class for what a file may hold
        raise UserError(
            f"ckpt_path={path}: expected a checkpoint of a training, RUN/checkpoints/last.ckpt "
            f"({type(error).__name__})"
        ) from error
    own = flatten(dict(hparams))
    of_finished = ("lora.scale", "lora.offset")  # these may be others
    for group in groups:
        for key in [*own, *its]:
            one, other = own.get(key), its.get(key)
            if one != other and is_in(key, group) and key not in of_finished:
                raise UserError(
                    f"ckpt_path={path}: its training had {key}={as_value(other)}, this one has "
                    f"{as_value(one)}; expected its command once more, for the same images"
                )
