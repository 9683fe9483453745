"""Many image files into one tensor: in parallel, with a bar, and kept for the next time."""

import errno
import hashlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from filelock import FileLock
from lightning.fabric.utilities.rank_zero import rank_zero_only
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor

from lora_mnist.data.listing import Entry
from lora_mnist.data.pictures import MOST_PIXELS, open_picture
from lora_mnist.disk.files import atomic_write
from lora_mnist.errors import one_line

log = logging.getLogger(__name__)
_warn = rank_zero_only(log.warning)

# Whoever changes what is read from a file changes this number, and old caches are read no more.
_VERSION = 1
# More than a few names would bury what else a run says.
_NAMED = 10
_OF_THE_MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}


class Form(NamedTuple):
    """What images are brought to.

    Attributes:
        height, width: in pixels.
        channels: 3 for colour, 1 for grey.
        resize: "crop": scaled until it fills height and width, the middle kept, as by torchvision's
            Resize and CenterCrop. "stretch": all of it, whatever its shape.
        exact: no image is resized; one of another size is an error.
    """

    height: int
    width: int
    channels: int
    resize: str
    exact: bool = False


class OtherSizeError(ValueError):
    """An image of another size, where none is to be resized."""


class Pictures(NamedTuple):
    """What was read.

    Attributes:
        images: uint8, shape (N, channels, height, width).
        indices: which of the entries they are, int64, shape (N,).
        skipped: of the other entries, the path and why it could not be read.
        sha256: of their paths and then their pixels, in hexadecimal.
    """

    images: Tensor
    indices: Tensor
    skipped: dict[str, str]
    sha256: str


def read_pictures(
    root: Path, entries: Sequence[Entry], form: Form, cache_dir: Path | None
) -> Pictures:
    """The images of ``entries``; from the cache, where nothing has changed since.

    An image that cannot be read is named in the log and left out.

    Args:
        root: the folder below which the entries are.
        entries: which files to read.
        form: what to bring them to.
        cache_dir: where to keep what was read, one file for each ``root`` and ``form``; ``None``:
            nowhere.

    Raises:
        OtherSizeError: if ``form`` is exact and an image has another size.
        OSError: if this machine, and not a file, is why nothing can be read.
    """
    if cache_dir is None:
        pictures = _decode_all(root, entries, form)
    else:
        place = hashlib.sha256(json.dumps([str(root.resolve()), form]).encode()).hexdigest()[:12]
        path = cache_dir / f"{root.resolve().name}-{place}.safetensors"
        pictures = _cached(path, root, entries, form)
    for name, reason in list(pictures.skipped.items())[:_NAMED]:
        _warn("%s: skipped: %s", one_line(root / name), one_line(reason))
    if pictures.skipped:
        _warn("%d of %d images skipped, which cannot be read", len(pictures.skipped), len(entries))
    return pictures


def _cached(path: Path, root: Path, entries: Sequence[Entry], form: Form) -> Pictures:
    content = [_VERSION, [(entry.path, entry.size, entry.mtime_ns) for entry in entries]]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    if pictures := _load(path, key, entries, form):
        return pictures
    with _alone(path):
        # Another process may have read them while this one waited.
        if pictures := _load(path, key, entries, form):
            return pictures
        pictures = _decode_all(root, entries, form)
        try:
            _save(path, key, pictures)
        except (OSError, SafetensorError) as error:
            _warn(
                "cache_dir=%s: cannot be written, so images are read anew each time (%s)",
                path.parent,
                error,
            )
        return pictures


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time, where the folder of ``path`` can be written."""
    lock = FileLock(path.with_name(f".{path.stem}.lock"))
    with ExitStack() as stack:
        with suppress(OSError):  # whoever writes next says so
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock)
        yield


def _load(path: Path, key: str, entries: Sequence[Entry], form: Form) -> Pictures | None:
    """What ``path`` holds, if that is what is asked for; a damaged file holds nothing."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            skipped: dict[str, str] = json.loads(metadata["skipped"])
            sha256 = metadata["sha256"]
            images: Tensor = file.get_tensor("images")
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    read_ones = [i for i, entry in enumerate(entries) if entry.path not in skipped]
    indices = torch.tensor(read_ones, dtype=torch.int64)
    shape = (len(indices), form.channels, form.height, form.width)
    if images.dtype != torch.uint8 or images.shape != shape:
        return None
    return Pictures(images, indices, skipped, sha256)


def _save(path: Path, key: str, pictures: Pictures) -> None:
    skipped = json.dumps(pictures.skipped)
    metadata = {"key": key, "skipped": skipped, "sha256": pictures.sha256}
    with atomic_write(path) as temporary:
        save_file({"images": pictures.images}, temporary, metadata)


def _decode_all(root: Path, entries: Sequence[Entry], form: Form) -> Pictures:
    images = torch.empty(len(entries), form.channels, form.height, form.width, dtype=torch.uint8)
    reasons: list[str | None] = [None] * len(entries)

    def read(i: int) -> None:
        try:
            images[i] = decode(root / entries[i].path, form)
        except OtherSizeError as error:
            raise OtherSizeError(f"{entries[i].path} is {error}") from None
        except ValueError as error:
            reasons[i] = str(error)

    # Pillow lets other threads run while it decodes and resizes.
    pool = ThreadPoolExecutor(_threads())
    bar = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    try:
        with bar, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # what is damaged is named below
            for _ in bar.track(
                pool.map(read, range(len(entries))),
                len(entries),
                description=f"reading {escape(one_line(root.name))}",
            ):
                pass
    finally:
        pool.shutdown(cancel_futures=True)
    read_ones = [i for i, reason in enumerate(reasons) if reason is None]
    indices = torch.tensor(read_ones, dtype=torch.int64)
    skipped = {e.path: why for e, why in zip(entries, reasons, strict=True) if why is not None}
    images = images[indices] if skipped else images
    digest = hashlib.sha256(json.dumps([entries[i].path for i in read_ones]).encode())
    digest.update(images.numpy().data)
    return Pictures(images, indices, skipped, digest.hexdigest())


def _threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def decode(path: Path, form: Form) -> Tensor:
    """An image file as torchvision's ImageFolder reads it, brought to ``form``.

    Args:
        path: of the file.
        form: what to bring it to.

    Returns:
        uint8, shape (channels, height, width).

    Raises:
        ValueError: saying why, if the file cannot be read as a picture.
        OtherSizeError: if ``form`` is exact and the image has another size.
        OSError: if this machine, and not the file, is the reason.
    """
    try:
        # Not turned by its EXIF data: neither does ImageFolder, with which networks are trained.
        picture = open_picture(path, upright=False)
    except ValueError as error:
        cause = error.__cause__
        if isinstance(cause, MemoryError):
            raise cause from error
        if isinstance(cause, OSError) and cause.errno in _OF_THE_MACHINE:
            raise cause from error
        raise
    if form.exact and picture.size != (form.width, form.height):
        raise OtherSizeError(f"{picture.height}x{picture.width}")
    picture = _eight_bits(picture).convert("RGB" if form.channels == 3 else "L")
    image: Tensor = pil_to_tensor(_resized(picture, form))
    return image


def _eight_bits(picture: Image.Image) -> Image.Image:
    """``picture``, if it has more bits a channel, with the upper eight: Pillow would clip them."""
    if picture.mode == "F":
        raise ValueError("no readable picture (floating-point pixels)")
    if not picture.mode.startswith("I"):
        return picture
    levels = numpy.asarray(picture.convert("I"))
    return Image.fromarray(
        (levels >> 8 if levels.max() > 255 else levels).clip(0, 255).astype("uint8")
    )


def _resized(picture: Image.Image, form: Form) -> Image.Image:
    size = (form.width, form.height)
    if picture.size == size:
        return picture
    if form.resize == "stretch":
        return picture.resize(size, Image.Resampling.BILINEAR)
    width, height = picture.size
    # One side fits; the other is rounded down, as in torchvision's Resize.
    if width * form.height >= height * form.width:
        scaled = (max(form.width, int(form.height * width / height)), form.height)
    else:
        scaled = (form.width, max(form.height, int(form.width * height / width)))
    if scaled[0] * scaled[1] > MOST_PIXELS:
        raise ValueError(f"a strip of {width}x{height} pixels, too narrow to be scaled")
    cut: Image.Image = center_crop(
        picture.resize(scaled, Image.Resampling.BILINEAR), [form.height, form.width]
    )
    return cut
