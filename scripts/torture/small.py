"""Runs that are small enough to have hundreds of: few images, a small network, one thread."""

import json
import logging
import os
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from lora_mnist import MLP
from lora_mnist.data import load_images
from lora_mnist.project import PROJECT
from torture.forks import Command

#: For images of 8 x 8 pixels in colour, in folders.
_OWN_NET = (
    *("net._target_=lora_mnist.MLP", "net.in_features=192", "net.hidden_sizes=[4]"),
    "net.num_classes=2",
)
#: A network of 12,730 parameters.
SMALL = ("net.hidden_sizes=[16]", "trainer=cpu", "figures=false")


def few_images(folder: Path, train: int = 2_000, test: int = 300) -> tuple[str, ...]:
    """Write the first images of MNIST to ``folder``; the overrides with which a command sees them.

    A tenth of the training images is held out for validation.
    """
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, is_train, count in (("train", True, train), ("t10k", False, test)):
        images, labels = load_images("MNIST", PROJECT / "data", train=is_train)
        for kind, tensor in (("images-idx3", images[:count, 0]), ("labels-idx1", labels[:count])):
            # Type and number of dimensions, the dimensions, the bytes.
            header = struct.pack(f">BBBB{tensor.ndim}I", 0, 0, 8, tensor.ndim, *tensor.shape)
            content = tensor.to(torch.uint8).contiguous().numpy().tobytes()
            (raw / f"{name}-{kind}-ubyte").write_bytes(header + content)
    return (f"data.data_dir={folder}", f"data.val_size={train // 10}")


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder for scratch files; the environment is that of a process with one thread, offline."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in ("http_proxy", "https_proxy"):  # what is missing stays missing
        os.environ[name] = "http://127.0.0.1:9"
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.CRITICAL)  # of this process; each command sets up its own
    with TemporaryDirectory(prefix="torture-") as folder:
        yield Path(folder)


def prepare(place: Path) -> dict[str, tuple[str, ...]]:
    """Leave in ``place``/template what commands start from.

    Returns:
        By entry, the overrides that it has to be given; "folder": with images in folders.
    """
    template = place / "template"
    template.mkdir(parents=True)
    outputs = ("paths.outputs=outputs",)
    parts = (*few_images(place / "data"), SMALL[0], *outputs)
    common = {"report": outputs, "folder": (*SMALL[1:], *outputs, "base_ckpt=mine.pt", *_OWN_NET)}
    common |= dict.fromkeys(("predict", "export", "demo"), parts)
    common |= dict.fromkeys(("train", "eval"), (*parts, *SMALL[1:]))
    for stage, steps in (("pretrain", 100), ("lora", 3)):
        chosen = [f"stage={stage}", f"trainer.max_steps={steps}", "logger=none"]
        answer = Command("train", [*common["train"], *chosen], template).wait(limit=120)
        if answer.code:
            raise RuntimeError(answer.err)
    image = load_images("MNIST", place / "data", train=False)[0][0, 0]
    Image.fromarray(image.numpy()).save(template / "nine.png")
    torch.save(MLP(192, (4,), 2).state_dict(), template / "mine.pt")
    chance = random.Random(0)
    for label, number in product(("cat", "dog"), range(12)):
        folder = template / "photos" / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (8, 8), chance.randbytes(192)).save(folder / f"{number}.png")
    return common


def unreadable(folder: Path) -> str | None:
    """The first file in ``folder`` that does not load; ``None``: all do, but for temporary ones."""
    temporary = temporary_files(folder)
    readers: dict[str, Callable[[Path], Any]] = {
        ".ckpt": lambda path: torch.load(path, weights_only=True),
        ".safetensors": load_file,
        ".json": lambda path: json.loads(path.read_text()),
    }
    for path in folder.rglob("*"):
        if path.suffix in readers and path.is_file() and path not in temporary:
            try:
                readers[path.suffix](path)
            except Exception as error:  # whatever a damaged file causes
                return f"{path.relative_to(folder)}: {error}"
    return None


def with_defaults(overrides: Sequence[str], defaults: Sequence[str]) -> list[str]:
    """``overrides``, and of ``defaults`` those of other keys; flags such as -m stay in front."""
    chosen = {override.partition("=")[0] for override in overrides}
    return [*overrides, *(o for o in defaults if o.partition("=")[0] not in chosen)]


def temporary_files(folder: Path) -> list[Path]:
    """What :func:`lora_mnist.disk.files.atomic_write` and the extraction of data left unfinished."""
    found = [*folder.rglob(".*.tmp*"), *folder.rglob(".extract-*")]
    return [path for path in found if path.exists()]
