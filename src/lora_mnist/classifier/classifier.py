"""The classifier: a network, its classes and its preprocessing, all that a prediction needs."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from lora_mnist.classifier.build import build_dataset, build_network
from lora_mnist.classifier.check import check_outputs, use_channels_last
from lora_mnist.classifier.find_files import find_adapter, find_base
from lora_mnist.classifier.huggingface import read_folder
from lora_mnist.classifier.record import NO_RECORD, Record
from lora_mnist.classifier.settings import Settings
from lora_mnist.classifier.train_digests_file import read_train_digests
from lora_mnist.classifier.weights_file import Base, load_weights, read_base
from lora_mnist.data.dataset import ImageDataset
from lora_mnist.data.images import Images, ImageSets
from lora_mnist.errors import UserError, format_value, one_line, report_as, report_group_errors
from lora_mnist.lora.adapter import load_adapter
from lora_mnist.lora.point import Point
from lora_mnist.measure.predictions import logits_at

log = logging.getLogger(__name__)

#: The number of images on which the outputs of a network are checked.
_CHECKED = 4


class Prediction(NamedTuple):
    """The prediction of a network for one picture."""

    label: str  # the name of the class
    probability: float
    probabilities: list[float]  # of all classes, in the order of the network's outputs


@dataclass
class Classifier:
    """A network with the classes and the preprocessing of its training.

    ``net`` is in eval mode, with its adapter on it; with ``lora_disabled(net)`` it is the base.
    """

    net: nn.Module
    dataset: ImageDataset  # prepares pictures; it reads its own images on demand
    settings: Settings  # resolved
    base: Base | None = None  # the network's tensors before an adapter; None: untrained
    adapter: Path | None = None  # its folder
    record: Record = NO_RECORD  # of the adapter

    @classmethod
    def load(
        cls,
        adapter: str | Path | None = None,
        base: str | Path | None = None,
        *,
        net: Mapping[str, Any] | nn.Module | None = None,
        prepare: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        bases: str | Path = Path("outputs", "base"),
        base_prefix: str | None = None,
    ) -> "Classifier":
        """Load the classifier that the files of an adapter and its base describe.

        Each value comes from the first source that has it, and the log names that source.
        :mod:`.settings` has the order, and the sources are asked in this order here.

        Args:
            adapter: as in :func:`.api.load_classifier`.
            base: as in :func:`.api.load_classifier`.
            net: arguments of the network from the command line, ``_target_`` among them, in which
                ``None`` stands for a value that is not set; or the network itself.
            prepare: arguments of the preprocessing, in this form; ``transform`` may be a function.
            data: arguments of the images, in this form.
            bases: the folder of all bases.
            base_prefix: the beginning of the weights' names, such as ``ema.``, in a base's file
                that holds several networks.

        Raises:
            UserError: if a file is missing, does not fit, or names code that is not allowed.
        """
        own_net = None
        if isinstance(net, nn.Module):
            own_net, net = net, {"_target_": f"{type(net).__module__}.{type(net).__qualname__}"}
        # 1. the command line
        arguments, folder = read_folder(net or {})
        settings = Settings.from_command_line(arguments, prepare or {}, data or {}, folder)
        # 2. the adapter's record
        adapter, record = find_adapter(adapter)
        settings = settings.with_record("the adapter", record, f"adapter={adapter}")
        # 3. the base's record
        named = folder if base is None else base
        path = find_base(named, Path(bases), settings, adapter, record)
        with report_as(f"base_ckpt={path}"):
            file = read_base(path)
        settings = settings.with_record("the base", file.record, f"base_ckpt={path}")
        # 4. the default network
        settings = settings.with_default_targets()
        network = build_network(settings.net) if own_net is None else own_net
        with report_as(f"base_ckpt={path}"):
            made_of = settings.net if own_net is None else None
            loaded = load_weights(network.eval(), file, base_prefix, made_of)
        # 5. the network's makers; 6 and 7. its own defaults, and the images
        settings = settings.with_makers_preprocessing(network)
        dataset = build_dataset(settings)
        if settings.notes:
            log.info("%s", one_line("; ".join(settings.notes)))
        if unknown := [name for name in record.targets if name not in dataset.classes]:
            why = f"its record repairs {format_value(unknown)}; expected classes of the network"
            raise UserError(f"adapter={adapter}: {why}, {format_value(dataset.classes)}")
        if adapter is not None:
            with report_as("adapter", joined="="):  # the error begins with its folder
                load_adapter(network, adapter, base_sha256=loaded.sha256).eval()
        return cls(network, dataset, settings, loaded, adapter, record)

    @classmethod
    def new(
        cls, net: Mapping[str, Any], prepare: Mapping[str, Any], data: Mapping[str, Any]
    ) -> "Classifier":
        """Return an untrained classifier of these arguments and the defaults."""
        arguments, folder = read_folder(net)
        settings = Settings.from_command_line(
            arguments, prepare, data, folder
        ).with_default_targets()
        network = build_network(settings.net)
        settings = settings.with_makers_preprocessing(network)
        return cls(network, build_dataset(settings), settings)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.net.parameters()).device

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the network's outputs."""
        return self.dataset.classes

    def prepare(self, picture: str | Path | Image.Image) -> Tensor:
        """Return the network's input for a picture, (channels, height, width) float32.

        Raise ValueError, with the reason, if the picture cannot be read.
        """
        return self.dataset.normalize(self.read(picture)[None])[0]

    def read(self, picture: str | Path | Image.Image) -> Tensor:
        """Return a picture's pixels, uint8, as :meth:`prepare` without the normalization."""
        if isinstance(picture, str):
            picture = Path(picture)
        return self.dataset.read_picture(picture)

    def predict(
        self, pictures: str | Path | Image.Image | Iterable[str | Path | Image.Image]
    ) -> list[Prediction]:
        """Return the prediction for each picture, or for a single one, at the adapter's point.

        Raise ValueError, with the reason, if a picture cannot be read, or shows nothing.
        """
        if isinstance(pictures, str | Path | Image.Image):
            pictures = [pictures]
        images = ((self.read(picture), 0) for picture in pictures)
        return [prediction for _, (prediction,) in self.predict_at(images, [None])]

    def predict_at(
        self, images: Iterable[tuple[Tensor, int]], points: Sequence[Point | None]
    ) -> Iterator[tuple[int, list[Prediction]]]:
        """Yield each image's label, which may be any number, and its prediction at each point."""
        batches = self.dataset.stack_pictures(images, self.device)
        for labels, at_points in logits_at(self.net, batches, points):
            rows = torch.stack(at_points, dim=1).softmax(dim=2).tolist()
            for label, of_image in zip(labels.tolist(), rows, strict=True):
                predictions = []
                for row in of_image:
                    best = row.index(max(row))
                    predictions.append(Prediction(self.classes[best], row[best], row))
                yield label, predictions

    @cached_property
    def train_digests(self) -> dict[str, Tensor | None]:
        """The digests of the base's and the adapter's training images; ``None``: not known."""
        train_digests = {}
        if self.base is not None:
            train_digests["base"] = self.base.train_digests
        if self.adapter is not None:
            train_digests["adapter"] = read_train_digests(self.adapter, self.record.train_digests)
        return train_digests

    @cached_property
    def images(self) -> ImageSets:
        """The images of the data set, without validation and test images that were trained on.

        UserError, if they cannot be read.
        """
        with report_group_errors("data"):
            sets = self.dataset.sets
        return sets.without_train_images(self.train_digests)

    @cached_property
    def test_prior(self) -> list[int]:
        """The number of test images of each class, which says how common the class is in use.

        Class weights follow from it (:func:`.class_weights.class_weights`), and nothing else.
        """
        return self.images.test.labels.bincount(minlength=len(self.classes)).tolist()

    def test_images(self) -> Images | None:
        """Return the test images that the model was not trained on, or None."""
        try:
            return self.images.test if len(self.images.test) else None
        except UserError as error:
            log.info("no test images here (%s)", error)
            return None

    def check_network(self, images: Images | None = None) -> None:
        """Raise if the network does not take the images or return logits; set its memory format."""
        if images is None:  # a picture of ours is tried
            if self.settings.prepare.get("transform") is not None:
                return  # it may keep a picture's size
            pixels = self.dataset.read_picture(Image.linear_gradient("L")).float() / 255
            batch = torch.stack([pixels] * _CHECKED).to(self.device)
        else:
            some = torch.linspace(0, len(images) - 1, _CHECKED).long()
            batch = self.dataset.normalize(images.take(some.tolist())[0].to(self.device))
        check_outputs(self.net, batch, len(self.classes), self.dataset.name)
        use_channels_last(self.net, batch)
