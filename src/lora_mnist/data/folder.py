"""A data set in a folder with a subfolder for each class, read and prepared as in torchvision.

:mod:`.listing` finds the files, :mod:`.split` splits them, and :mod:`.pictures` reads them.
"""

import hashlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from lora_mnist.data.dataset import Channelwise, ImageDataset
from lora_mnist.data.digest_cache import DigestCache
from lora_mnist.data.images import Images, ImageSets
from lora_mnist.data.listing import SPLITS, ImageFile, Listing
from lora_mnist.data.pictures import Preprocessing, examine, open_picture
from lora_mnist.data.split import split_files
from lora_mnist.data.threads import ReadOnce, map_in_threads
from lora_mnist.errors import ArgumentError, PictureError, printable, require, require_number
from lora_mnist.progress import progress
from lora_mnist.project import expand_path

log = logging.getLogger(__name__)

#: Decoded images up to this many bytes are held in memory; more are read on demand.
MAX_IN_MEMORY = 300_000_000
#: The largest side of an image: more would not fit into memory.
_LONGEST_SIDE = 10_000


class Folder(ImageDataset):
    """Images in folders, one folder a class, read as torchvision's ImageFolder does it.

    The folder is only read to find missing ``classes``, ``image_size``, ``mean`` or ``std``, or to
    get images: with somebody else's adapter it does not exist.
    """

    def __init__(
        self,
        data_dir: str | Path | None = None,
        *,
        name: str | int | None = None,
        classes: Sequence[str | int] | None = None,
        image_size: int | Sequence[int] | None = None,
        resize: str = "crop",
        crop_pct: float = 1.0,
        interpolation: str = "bilinear",
        channels: int = 3,
        mean: Channelwise | None = None,
        std: Channelwise | None = None,
        transform: Callable[[Any], Any] | None = None,
        val_size: float = 0.1,
        test_size: float = 0.1,
        split_seed: int = 0,
        eval_batch_size: int = 250,
        val_from: str = "train",
        num_workers: int = 0,
    ) -> None:
        # On the command line the name 7 of a folder, a class or a set is read as a number.
        self.data_dir = None if data_dir is None else expand_path(data_dir)
        for key, share in (("val_size", val_size), ("test_size", test_size)):
            require_number(key, share, 0, 1)
        size: Any = image_size if isinstance(image_size, list | tuple | None) else [image_size] * 2
        sides = [1, 1] if size is None else list(size)
        is_size = [type(side) for side in sides] == [int, int]
        is_size = is_size and 1 <= min(sides) <= max(sides) <= _LONGEST_SIDE
        expected = f"null, pixels, or [height, width], each from 1 to {_LONGEST_SIDE}"
        require(is_size, "image_size", image_size, expected)
        if transform is not None:
            expected = "a function or class of a picture: {_target_: my_nets.prepare}"
            require(callable(transform), "transform", transform, expected)
            others = [image_size, mean, std, resize, crop_pct, interpolation]
            is_alone = others == [None, None, None, "crop", 1.0, "bilinear"]
            expected = "no image_size, resize, crop_pct, interpolation, mean or std beside it"
            require(is_alone, "transform", transform, f"{expected}, since it replaces them")
            size = (0, 0)
        is_list = isinstance(classes, list | tuple | None)
        are_names = is_list and {type(each) for each in classes or ()} <= {str, int, float}
        require(are_names, "classes", classes, "a list of names, as in [cat,dog]")
        named = [str(each) for each in classes or self._listing.classes]
        if name is None:
            name = self.data_dir.resolve().name if self.data_dir else "folder"
        super().__init__(
            *(name, named, channels),
            mean=mean,
            std=std,
            val_from=val_from,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
        )
        self.split_settings = {"val_size": val_size, "test_size": test_size}
        self.split_settings |= {"split_seed": split_seed, "val_from": self.val_from}
        self._has_size_of_first = size is None
        size = tuple(size or self._size_of_the_first())
        self.prepare = Preprocessing(channels, size, resize, crop_pct, interpolation, transform)

    @property
    def root(self) -> Path:
        """The folder of images; ValueError, if there is none."""
        if self.data_dir is None:
            expected = "a folder of images, or classes, image_size, mean and std, as in the "
            raise ArgumentError("data_dir", None, f"expected {expected}network's training")
        if not self.data_dir.is_dir():
            missing = f"no such folder ({self.data_dir.absolute()})"
            raise ArgumentError("data_dir", self.data_dir, missing)
        return self.data_dir

    def read_picture(self, picture: Path | Image) -> Tensor:
        return self.prepare(open_picture(picture))

    def preprocessing(self) -> dict[str, Any]:
        prepare = {"classes": self.classes, "channels": self.channels}
        if self.prepare.transform is not None:
            return prepare
        return {**prepare, **self.prepare.sizing, **super().preprocessing()}

    def normalize(self, images: Tensor) -> Tensor:
        return super().normalize(images) if self.prepare.transform is None else images

    @cached_property
    def _listing(self) -> Listing:
        return Listing(self.root)

    @cached_property
    def _files(self) -> list[ImageFile]:
        return self._listing.files(self.classes)

    def _size_of_the_first(self) -> tuple[int, int]:
        """Return height and width of the first image, which all others must have."""
        for file in self._files:
            with suppress(PictureError):  # broken ones are named when all are read
                _, height, width = examine(self.root / file.path)
                return height, width
        raise ArgumentError("data_dir", self.data_dir, "expected images; none can be read")

    @cached_property
    def _are_in_memory(self) -> bool:
        """True if decoded images are held in memory."""
        count_of_bytes = len(self._files) * self.channels * math.prod(self.prepare.size)
        return self.prepare.transform is None and count_of_bytes <= MAX_IN_MEMORY

    def _examine_all(self) -> dict[ImageFile, int]:
        """Return the readable images and their digests; log the others."""
        root, known, digests = self.root, DigestCache(self.root), dict[ImageFile, int]()

        def describe_file(file: ImageFile) -> tuple[int, int, int] | None:
            try:
                return known.describe_file(file.path)
            except (PictureError, OSError) as error:
                log.warning("%s: skipped: %s", printable(root / file.path), error)
                return None

        found = progress(map_in_threads(describe_file, self._files), "reading", len(self._files))
        for file, about in zip(self._files, found, strict=True):
            if about is None:
                continue
            digests[file], *size = about
            if self._has_size_of_first and tuple(size) != self.prepare.size:
                here, there = ("x".join(map(str, each)) for each in (size, self.prepare.size))
                path = root / file.path
                expected = f"expected images of one size, but {path} is {here}, another {there}"
                raise ArgumentError("image_size", None, expected)
        known.save()
        return digests

    @cached_property
    def sets(self) -> ImageSets:
        root = self.root
        digests = self._examine_all()
        trained = {file.label for file in digests if file.split == "train"}
        for label, name in enumerate(self.classes):
            expected = f"images of each class; {name} has no readable one to train on"
            require(not trained or label in trained, "data_dir", root, expected)
        # The split depends on the number of images: broken ones do not count.
        splits, held_out = split_files(digests, self.classes, self.split_settings)
        whole = Images(
            [root / file.path for file in digests],
            torch.tensor([file.label for file in digests], dtype=torch.int64),
            [file.path for file in digests],
            ReadOnce(self.prepare.read) if self._are_in_memory else self.prepare.read,
            digests=torch.tensor(list(digests.values()), dtype=torch.int64),
        )
        sets = []
        for split in SPLITS:
            places = [place for place, file in enumerate(digests) if splits[file] == split]
            sets.append(whole.subset(torch.tensor(places, dtype=torch.int64)))
        sha256 = hashlib.sha256()
        for file, digest in digests.items():
            sha256.update(os.fsencode(f"{file.path} {file.label} {digest} "))
        train, val, test = sets
        found = ImageSets(train, val, test, {"all": sha256.hexdigest()}, held_out)
        found = found.without_duplicates()
        require(len(found.test) > 0, "data_dir", root, "test images that are no duplicates")
        return found
