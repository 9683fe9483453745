"""A classifier: a network, its classes and its preprocessing, all that a prediction needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from lora_mnist.adapters import apply_scale, load_saved_adapter, resolve_and_load_base
from lora_mnist.data import ImageDataModule, ImageTensors, make_data
from lora_mnist.data.make import require_compatible
from lora_mnist.project import CONFIGS, Run
from lora_mnist.settings import checked_copy


class Prediction(NamedTuple):
    """The prediction of a network for one picture."""

    label: str  # the name of the class
    probability: float
    probabilities: list[float]  # of all classes, in the order of the network's outputs


@dataclass
class Classifier:
    """A network with the classes and the preprocessing of its training.

    Attributes:
        net: the network, in eval mode, with its adapter on it; with ``lora_disabled(net)`` it is
            the base.
        data: prepares pictures; it holds no images.
        base_sha256: the fingerprint of the base.
        scale: how much of the adapter is applied, 1 as trained.
        settings: the configuration that it is made of, resolved.
    """

    net: nn.Module
    data: ImageDataModule
    base_sha256: str
    scale: float
    settings: DictConfig

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the network's outputs."""
        return self.data.classes

    def prepare(self, picture: str | Path | Image.Image) -> Tensor:
        """The network's input for a file or an image of Pillow, (channels, height, width) float32.

        ``ValueError``, with the reason, if it is no picture that can be read, or shows nothing.
        """
        if isinstance(picture, str):
            picture = Path(picture)
        return self.data.normalise(self.data.read_picture(picture)[None])[0]

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """The softmax of the logits, (N, classes), for prepared images, (N, channels, h, w)."""
        device = next(self.net.parameters()).device
        batches = torch.split(images, self.data.eval_batch_size)
        return torch.cat([self.net(batch.to(device)).softmax(dim=1).cpu() for batch in batches])

    def predict(self, pictures: Sequence[str | Path | Image.Image]) -> list[Prediction]:
        """The prediction for each of the pictures, with the adapter as it is on the network."""
        if not pictures:
            return []
        rows = self.probabilities(torch.stack([self.prepare(picture) for picture in pictures]))
        return [self.prediction(row) for row in rows]

    def prediction(self, probabilities: Tensor) -> Prediction:
        """The prediction that these probabilities, shape (classes,), stand for."""
        row = probabilities.tolist()
        best = row.index(max(row))
        return Prediction(self.classes[best], row[best], row)


def open_classifier(cfg: DictConfig, run: Run | None = None) -> Classifier:
    """The classifier of a command: its base, and its adapter at ``cfg.scale``.

    Raises:
        UserError: see :func:`.adapters.resolve_and_load_base`.
    """
    cfg, net, base = resolve_and_load_base(cfg, run)
    load_saved_adapter(cfg, net, base.sha256)
    data = make_data(cfg, "predict")
    # Only scale=auto needs images, which decide it.
    images = make_data(cfg, "validate") if cfg.get("scale") == "auto" else data
    scale = apply_scale(cfg, net, images) if "scale" in cfg else 1.0
    classifier = Classifier(net.eval(), data, base.sha256, scale, cfg)
    picture = data.read_picture(Image.linear_gradient("L"))
    require_compatible(net, data, ImageTensors(picture[None], torch.zeros(1, dtype=torch.int64)))
    return classifier


def load_classifier(
    adapter: str | Path | None = None,
    base: str | Path | None = None,
    *,
    scale: float = 1.0,
    trust: bool = False,
    allow_other_base: bool = False,
) -> Classifier:
    """A repaired classifier, ready to say what pictures show.

    Network, classes and preprocessing are those of the files; no image of the training is needed.

    Args:
        adapter: the folder of an adapter, or of the run that left it; ``None``: the base alone.
        base: the file of the base; ``None``: the one in ``outputs/base`` for which the adapter was
            made, found by its SHA-256, or the current one.
        scale: how much of the adapter to apply: 1 as trained, 0 the base.
        trust: run code that a file names, such as a network of your own; Python has to find it.
        allow_other_base: accept a base that the adapter was not made for.

    Raises:
        UserError: if a file is missing, does not fit, or names code that is not trusted.
    """
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("predict")
    cfg.adapter = None if adapter is None else str(adapter)
    cfg.base_ckpt = None if base is None else str(base)
    cfg.scale, cfg.trust, cfg.allow_other_base = scale, trust, allow_other_base
    return open_classifier(checked_copy(cfg))
