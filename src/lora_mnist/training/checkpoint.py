"""Lightning's checkpoints: written whole or not at all, and checked against the training."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lora_mnist.config.run import is_in
from lora_mnist.errors import UserError, format_value
from lora_mnist.files import atomic_write, flatten
from lora_mnist.run_paths import LAST_CHECKPOINT


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints whole or not at all (Lightning issue 19970)."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        with atomic_write(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


def read_hparams(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint's description of its training.

    Raises:
        UserError: if the file is no checkpoint of a training.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return dict(content["hyper_parameters"])
    except Exception as error:  # torch has no common class for the errors of damaged files
        raise UserError(
            f"ckpt_path={path}: expected a checkpoint of a training, RUN/{LAST_CHECKPOINT} "
            f"({type(error).__name__})"
        ) from error


def refuse_other_training(
    path: str | Path,
    saved: Mapping[str, Any],
    hparams: Mapping[str, Any],
    groups: Iterable[str],
    ignored: Iterable[str] = (),  # keys in the groups that may differ
) -> None:
    """Raise if the training at ``path`` had other ``hparams`` in one of ``groups``."""
    before, now = flatten(dict(saved)), flatten(dict(hparams))
    for group in groups:
        for key in [*now, *before]:
            one, other = now.get(key), before.get(key)
            if one != other and is_in(key, group) and key not in ignored:
                raise UserError(
                    f"ckpt_path={path}: its training had {key}={format_value(other)}, this one has "
                    f"{format_value(one)}; expected the same command and the same images"
                )
