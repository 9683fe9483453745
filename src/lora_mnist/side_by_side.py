"""A base and its adapters side by side, asked about one image at a time."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from lora_mnist.cache import Cache
from lora_mnist.config import build_data, build_net, require_fit
from lora_mnist.data import ImageDataModule
from lora_mnist.errors import UserError
from lora_mnist.load import adapter_specs, load_adapters, load_base, with_latest_adapter
from lora_mnist.lora import CONFIG_NAME, lora_adapters, lora_disabled, lora_layers


class Answer(NamedTuple):
    """What base and adapted network say to an image: a probability for each class."""

    base: list[float]
    adapted: list[float]


class _Network(NamedTuple):
    """A base with adapters on it."""

    net: nn.Module
    base_sha256: str


class SideBySide:
    """A base and its adapters, asked about one image at a time.

    Several threads may ask at once.

    Args:
        cfg: a configuration of ``configs/demo.yaml``; it is not changed.

    Attributes:
        data: its test images; it also brings drawings to the form of its images.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self._cfg = cfg = with_latest_adapter(cfg)
        self._named = {self._name(spec["path"]): spec for spec in adapter_specs(cfg)}
        self._networks = Cache[_Network | UserError](limit=2)
        self._wrong = Cache[Tensor](limit=2)
        self._lock = Lock()
        self.data: ImageDataModule = build_data(cfg, "test")

    @property
    def named(self) -> list[str]:
        """The adapters that the configuration names."""
        return list(self._named)

    def adapters(self) -> dict[str, Path]:
        """Where each adapter is, by its name: those under outputs, newest first, and those named.

        What was loaded before is forgotten, since a base or an adapter may have been made anew.
        """
        with self._lock:
            self._networks = Cache[_Network | UserError](limit=2)
        found = {}
        for place, _, files in os.walk(self._outputs):
            with suppress(OSError):  # a run that is cleared away meanwhile
                if CONFIG_NAME in files:
                    found[Path(place)] = Path(place, CONFIG_NAME).stat().st_mtime
        newest_first = sorted(found, key=lambda folder: -found[folder])
        named = {name: Path(spec["path"]) for name, spec in self._named.items()}
        return {**{self._name(folder): folder for folder in newest_first}, **named}

    def read(self, picture: bytes) -> Tensor:
        """A drawing in the form of the dataset's images: uint8, (channels, height, width).

        Args:
            picture: a file of any kind that Pillow reads.

        Raises:
            ValueError: if it is no picture, or there is nothing on it.
        """
        with TemporaryDirectory() as folder:
            path = Path(folder, "drawing.png")
            path.write_bytes(picture)
            return self.data.read_picture(path)

    def prepare(self, adapters: Sequence[str]) -> None:
        """Load a base and ``adapters``, so that the next answers come at once.

        Raises:
            UserError: if an adapter, or the base, cannot be used.
        """
        with self._lock:
            self._network(adapters)

    @torch.no_grad()
    def ask(
        self,
        image: Tensor,
        adapters: Sequence[str] = (),
        scale: float = 1.0,
        enabled: bool = True,
    ) -> Answer:
        """What the base says, and the network with the weights ``W + scale * sum_i s_i B_i A_i``.

        With ``scale=0``, as with ``enabled=False``, both answers are the same, bit for bit.

        Args:
            image: uint8, (channels, height, width).
            adapters: names out of :meth:`adapters`; ``s_i`` is the scaling of each. The first one
                decides on the base, unless the configuration names one.
            scale: factor of all of them, a finite number.
            enabled: whether they are switched on.

        Raises:
            UserError: if an adapter, or the base, cannot be used.
            ValueError: if ``scale`` is not finite.
        """
        if not math.isfinite(scale):
            raise ValueError(f"scale={scale}: expected a finite number")
        with self._lock:
            net = self._network(adapters).net
            with _scaled(net, 0.0):
                base = self._probabilities(net, image)
            with _scaled(net, scale if enabled else 0.0):
                return Answer(base, self._probabilities(net, image))

    def _probabilities(self, net: nn.Module, image: Tensor) -> list[float]:
        batch, _ = self.data.on_after_batch_transfer((image[None], torch.empty(0)), 0)
        probabilities: list[float] = net(batch).softmax(dim=1)[0].tolist()
        return probabilities

    @torch.no_grad()
    def mistakes(self, adapters: Sequence[str] = (), label: int | None = None) -> list[int]:
        """Numbers of the test images that the base gets wrong.

        Args:
            adapters: as in :meth:`ask`; their base is meant.
            label: only those of this class; ``None``: of all.

        Raises:
            UserError: if an adapter, or the base, cannot be used.
        """
        with self._lock:
            net, base_sha256 = self._network(adapters)
            wrong = self._wrong.get(base_sha256)
            if wrong is None:
                with _scaled(net, 0.0):
                    wrong = self._wrong.keep(base_sha256, self._errs(net))
        chosen = wrong if label is None else wrong & (self.data.test_set.labels == label)
        numbers: list[int] = chosen.nonzero()[:, 0].tolist()
        return numbers

    def _errs(self, net: nn.Module) -> Tensor:
        """Whether ``net`` gets each test image wrong; bool, (N,)."""
        images, labels = self.data.test_set.images, self.data.test_set.labels
        answers = []
        for pixels in torch.split(images, self.data.eval_batch_size):
            batch, _ = self.data.on_after_batch_transfer((pixels, torch.empty(0)), 0)
            answers.append(net(batch).argmax(dim=1))
        return torch.cat(answers) != labels

    def _network(self, adapters: Sequence[str]) -> _Network:
        """The base that belongs to ``adapters``, with them on it, in eval mode."""
        kept = self._networks.get(key := str(list(adapters)))
        if kept is None:
            try:
                kept = self._load(adapters)
            except UserError as error:  # a visitor who goes on drawing need not wait for it again
                kept = error
            self._networks.keep(key, kept)
        if isinstance(kept, UserError):
            raise kept
        return kept

    def _load(self, adapters: Sequence[str]) -> _Network:
        cfg = self._cfg.copy()
        cfg.adapter = [self._spec(name) for name in adapters] or None
        net = build_net(cfg)
        base = load_base(cfg, net)
        load_adapters(cfg, net)
        require_fit(net.eval(), self.data, self.data.test_set.images[:2])
        return _Network(net, base.sha256)

    def _spec(self, name: str) -> dict[str, Any]:
        if spec := self._named.get(name):
            return {**spec, "path": str(spec["path"]), "name": name}
        path = (self._outputs / name).resolve()
        # A visitor's browser sends the name.
        if not path.is_relative_to(self._outputs.resolve()) or not path.is_dir():
            raise UserError(f"adapter={name}: expected an adapter in {self._outputs}")
        return {"path": str(path), "name": name}

    @property
    def _outputs(self) -> Path:
        return Path(self._cfg.paths.outputs)

    def _name(self, folder: Path) -> str:
        """An adapter's name: its folder, or its run's, as seen from outputs."""
        run = (folder.parent if folder.name == "adapter" else folder).resolve()
        outputs = self._outputs.resolve()
        return str(run.relative_to(outputs) if run.is_relative_to(outputs) else run)


@contextmanager
def _scaled(net: nn.Module, factor: float) -> Iterator[None]:
    """Inside the ``with`` block all adapters on ``net`` count ``factor`` times; at 0 none does."""
    adapters = [adapter for _, layer in lora_layers(net) for adapter in lora_adapters(layer)]
    with lora_disabled(net) if adapters and not factor else nullcontext():
        before = [adapter.scaling for adapter in adapters]
        for adapter in adapters:
            adapter.scaling *= factor
        try:
            yield
        finally:
            for adapter, scaling in zip(adapters, before, strict=True):
                adapter.scaling = scaling
