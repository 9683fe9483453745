"""The datasets of the MNIST family: from torchvision's files on disk to tensors."""

import errno
import filecmp
import hashlib
import logging
import shutil
import zlib
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torchvision.datasets
from filelock import FileLock
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor
from torchvision.datasets.utils import check_integrity

from lora_mnist.disk.files import publish

log = logging.getLogger(__name__)
_warn = rank_zero_only(log.warning)

Batch = tuple[Tensor, Tensor]

#: Classes of ``torchvision.datasets``, and what files and results call them.
DATASETS = {
    "MNIST": "mnist",
    "FashionMNIST": "fashion_mnist",
    "KMNIST": "kmnist",
    "QMNIST": "qmnist",
}

#: SHA-256 of the official images, by dataset and whether they are the training images; as
#: ``(tail -c +17 IMAGES; tail -c +9 LABELS) | sha256sum`` gives it.
_OFFICIAL = {
    ("MNIST", True): "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b",
    ("MNIST", False): "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b",
}
#: Bytes of a file; the largest of the family, extracted, has a twentieth of it.
_MOST_BYTES = 1 << 30
_SHAPE = (28, 28)
# More blank images than this share means that a file lost its content, not that paper was scanned.
_BLANK = 0.01
# What keeps this machine from reading or writing; any other OSError comes from the network.
_OF_THE_MACHINE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG, errno.EMFILE, errno.ENFILE),
}


class Split(NamedTuple):
    """The training or the test images of a dataset.

    Attributes:
        images: uint8, shape (N, 1, 28, 28).
        labels: int64, shape (N,).
        sha256: of the pixels and then the labels, a byte each, in hexadecimal.
    """

    images: Tensor
    labels: Tensor
    sha256: str


class _UnusableError(Exception):
    """Why a dataset's files cannot be used as they are."""


def class_names(dataset: str) -> list[str]:
    """What torchvision calls the classes of ``dataset``.

    Raises:
        ValueError: if it is no dataset of the family.
    """
    return list(_family(dataset).classes)


def _family(dataset: str) -> Any:
    if dataset not in DATASETS:
        raise ValueError(f"dataset={dataset}: expected one of {', '.join(DATASETS)}")
    return getattr(torchvision.datasets, dataset)


def load_images(dataset: str, data_dir: str | Path, train: bool) -> Batch:
    """All images of one split, (N, 1, 28, 28) uint8, and their labels, (N,) int64.

    See :func:`load_split`.
    """
    split = load_split(dataset, data_dir, train)
    return split.images, split.labels


@lru_cache(maxsize=4)
def load_split(dataset: str, data_dir: str | Path, train: bool) -> Split:
    """All images of one split.

    Extracts the dataset first, or downloads it, where that has not been done yet. The result is
    kept for the life of the process: the jobs of a sweep share one copy. Images of MNIST that are
    not the official ones are used, and the log says so.

    Args:
        dataset: class in ``torchvision.datasets``: MNIST, FashionMNIST, KMNIST or QMNIST.
        data_dir: folder that holds (or will hold) ``<dataset>/raw``.
        train: the training images; else the test images.

    Raises:
        ValueError: if the files are damaged or missing and cannot be downloaded, or the folder
            cannot be read or written.
        OSError: if the disk is full.
    """
    family, root = _family(dataset), Path(data_dir)
    try:
        try:
            split = _read(family, root, train)
        except _UnusableError:
            split = _extract(family, root, train)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            message = f"no space left to extract {dataset}"
            raise OSError(error.errno, message, str(data_dir)) from error
        raise ValueError(
            f"data_dir={data_dir}: expected a folder that can be read and written ({error})"
        ) from error
    if split.sha256 != _OFFICIAL.get((dataset, train), split.sha256):
        which = "training" if train else "test"
        _warn("data_dir=%s: the %s images are not %s's official ones", data_dir, which, dataset)
    return split


def _read(family: Any, root: Path, train: bool, download: bool = False) -> Split:
    """The images and labels of one split, checked.

    Raises:
        _UnusableError: if files are missing or damaged.
        OSError: if they cannot be read.
    """
    raw = root / family.__name__ / "raw"
    files = [raw / file for file, _ in _resources(family, train)]
    for file in files:
        if file.exists() and (not file.is_file() or file.stat().st_size > _MOST_BYTES):
            raise _UnusableError(f"{file.name} damaged (no file, or too large)")
    try:
        split = family(root, train=train, download=download)
    except (OSError, HTTPException):
        raise
    # torchvision has no common class for what a damaged file causes.
    except Exception as error:
        raise _UnusableError(_why_unreadable(files)) from error
    images, labels = split.data, split.targets
    if labels.ndim == 2:  # QMNIST: the class, then where the image came from
        labels = labels[:, 0]
    try:
        _check(images, labels, len(family.classes))
    except _UnusableError as error:
        raise _UnusableError(f"{' and '.join(file.name for file in files)}: {error}") from error
    digest = hashlib.sha256(images.contiguous().numpy())
    digest.update(labels.to(torch.uint8).numpy())
    sha256 = digest.hexdigest()
    if sha256 != _OFFICIAL.get((family.__name__, train)):
        _check_against_archives(family, root, train)
    return Split(images.unsqueeze(1), labels, sha256)


def _why_unreadable(files: list[Path]) -> str:
    if missing := [file.name for file in files if not file.exists()]:
        return f"{', '.join(missing)} missing"
    for file in files:
        try:
            read_sn3_pascalvincent_tensor(file)
        except Exception:
            return f"{file.name} damaged"
    return f"{' or '.join(file.name for file in files)} damaged"


def _check(images: Tensor, labels: Tensor, classes: int) -> None:
    """Refuse what torchvision reads without a word from a damaged file."""
    if images.dtype != torch.uint8 or images.shape[1:] != _SHAPE or not len(images):
        shape = "x".join(map(str, images.shape))
        raise _UnusableError(f"images of shape {shape} ({images.dtype})")
    if labels.shape != (len(images),):
        raise _UnusableError(f"{len(labels):,} labels for {len(images):,} images")
    if labels.dtype != torch.int64 or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise _UnusableError(f"labels from {labels.min()} to {labels.max()}")
    if labels.min() == labels.max():
        raise _UnusableError(f"all labels {labels.min()}")
    blank = int((images.flatten(1).amax(1) == 0).sum())
    if blank > _BLANK * len(images):
        raise _UnusableError(f"{blank:,} of {len(images):,} images blank")


def _check_against_archives(family: Any, root: Path, train: bool) -> None:
    """Compare files with the intact archives beside them: a checksum ends each ``.gz`` file."""
    for archive, md5 in _resources(family, train, ".gz"):
        path = root / family.__name__ / "raw" / archive
        content = path.with_suffix("")
        if not (_is_no_larger(path) and content.exists()):
            continue
        with path.open("rb") as handle:
            handle.seek(-min(8, path.stat().st_size), 2)
            expected = int.from_bytes(handle.read(4), "little")
        found = 0
        with content.open("rb") as handle:
            while block := handle.read(1 << 20):
                found = zlib.crc32(block, found)
        if found != expected and check_integrity(path, md5):
            raise _UnusableError(f"{content.name} differs from {archive}")


def _is_no_larger(archive: Path) -> bool:
    """Whether it is a file, and no larger than what it should hold."""
    return archive.is_file() and archive.stat().st_size <= _MOST_BYTES


def _extract(family: Any, root: Path, train: bool) -> Split:
    """Let torchvision verify, download where it must, and extract, one process at a time.

    It works in a folder of its own, from where the complete files are renamed into place: whoever
    looks meanwhile, or comes after a crash, finds no half-written file.
    """
    raw = root / family.__name__ / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        # Whoever made such a folder held the lock, and lost it by dying.
        for abandoned in root.glob(".extract-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        # Another process may have extracted while this one waited for the lock.
        try:
            return _read(family, root, train)
        except _UnusableError as error:
            state = str(error)
        with TemporaryDirectory(dir=root, prefix=".extract-") as temporary:
            work = Path(temporary) / family.__name__ / "raw"
            work.mkdir(parents=True)
            for archive in filter(_is_no_larger, raw.glob("*.gz")):
                shutil.copyfile(archive, work / archive.name)
            try:
                split = _read(family, Path(temporary), train, download=True)
            except (_UnusableError, OSError, HTTPException, EOFError, zlib.error) as error:
                own = isinstance(error, OSError) and error.errno in _OF_THE_MACHINE
                if own:
                    raise
                state = _damaged_archives(family, raw) or state
                raise ValueError(
                    f"data_dir={root}: {family.__name__}: {state}, and no download possible; "
                    f"expected the official .gz files in {raw}"
                ) from error
            for file in work.iterdir():
                place = raw / file.name
                if not (place.exists() and filecmp.cmp(file, place, shallow=False)):
                    publish(file, place)
            return split


def _damaged_archives(family: Any, raw: Path) -> str:
    archives = {**dict(_resources(family, True, ".gz")), **dict(_resources(family, False, ".gz"))}
    names = [
        name
        for name, md5 in archives.items()
        if (raw / name).exists()
        and not (_is_no_larger(raw / name) and check_integrity(raw / name, md5))
    ]
    return f"{', '.join(names)} damaged (wrong MD5)" if names else ""


def _resources(family: Any, train: bool, suffix: str = "") -> list[tuple[str, str]]:
    """Files of a split: extracted, or archives (``suffix=".gz"``), each with its archive's MD5."""
    resources = family.resources
    if isinstance(resources, dict):  # QMNIST: a list for each split
        resources = resources["train" if train else "test"]
    names = [(Path(url).name, md5) for url, md5 in resources]
    if not isinstance(family.resources, dict):
        names = [(n, md5) for n, md5 in names if n.startswith("train-" if train else "t10k-")]
    return [(n.removesuffix(".gz") + suffix, md5) for n, md5 in names]
