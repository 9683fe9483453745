"""A folder of images, one folder a class."""

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from lora_mnist.data.dataset import Channelwise, ImageDataset, ImageSets, measured_pixels
from lora_mnist.data.image_files import Entry, Preparation, class_names, list_entries
from lora_mnist.data.images import Images
from lora_mnist.data.pictures import open_picture
from lora_mnist.data.split import repeated, split
from lora_mnist.errors import require_number
from lora_mnist.progress import progress

log = logging.getLogger(__name__)

#: Decoded images up to this many bytes are held in memory; others are read when they are needed.
MAX_IN_MEMORY = 300_000_000


class Folder(ImageDataset):
    """Images in folders, one folder a class, as ``configs/`` explains.

    Where ``val/`` or ``test/`` is missing, images of each class are held out of the others; see
    :func:`~lora_mnist.data.split.split`. The files are listed and read as torchvision's
    ImageFolder does it, except that the upper eight of 16 bits a channel are taken. Unreadable
    files are named and left out; so are validation and test images that are also training images.

    ``sha256["all"]`` is of paths and pixels or, from the disk, of paths, sizes and times of change,
    since reading every byte would take as long as an epoch.

    ``common`` are the arguments of :class:`.ImageDataset`. The folder is only looked at where
    ``classes``, ``image_size``, ``mean`` or ``std`` have to be found there, or its images are asked
    for. With a ``transform``, images are read from the disk, and of the arguments from
    ``image_size`` to ``std`` only ``channels`` may be given. ``ValueError`` for one out of range.
    """

    def __init__(
        self,
        data_dir: str | Path | None = None,
        *,
        name: str | None = None,
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
        **common: Any,
    ) -> None:
        self.data_dir = None if data_dir is None else Path(data_dir).expanduser()
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: expected one of 1, 3")
        if resize not in ("crop", "stretch"):
            raise ValueError(f"resize={resize}: expected one of crop, stretch")
        require_number("crop_pct", crop_pct, 0.1, 1)
        size: Any = [image_size, image_size] if isinstance(image_size, int) else image_size
        if size is not None and ([type(side) for side in size] != [int, int] or min(size) < 1):
            raise ValueError(f"image_size={image_size}: expected null, pixels, or [height, width]")
        for key, value, default in (
            ("image_size", image_size, None),
            ("resize", resize, "crop"),
            ("crop_pct", crop_pct, 1.0),
            ("interpolation", interpolation, "bilinear"),
            ("mean", mean, None),
            ("std", std, None),
        ):
            if transform is not None and value != default:
                raise ValueError(f"{key}={value}: expected null, since transform is given")
        if classes is None:
            classes = class_names(self.root)
        name = name or (self.data_dir.resolve().name if self.data_dir else "folder")
        # The command line reads the name 7 as a number.
        named = [str(each) for each in classes]
        super().__init__(name, named, channels, eval_batch_size=eval_batch_size, **common)
        self.val_size, self.test_size, self.split_seed = val_size, test_size, split_seed
        self.has_own_size = image_size is None and transform is None
        if transform is not None:
            self.prepare = Preparation(channels, transform=transform)
            self.mean, self.std = 0.0, 1.0
            return
        height, width = size if size is not None else self._size_of_the_first()
        self.prepare = Preparation(channels, (height, width), resize, crop_pct, interpolation)
        if mean is None or std is None:
            if not len(self.sets.train):
                raise ValueError(
                    "mean=null: expected mean and std, as in the network's training, since there "
                    "are no training images to measure"
                )
            measured_mean, measured_std = measured_pixels(self.sets.train)
            mean = measured_mean if mean is None else mean
            std = measured_std if std is None else std
        self.normalise_by(mean, std)

    @property
    def root(self) -> Path:
        """The folder of images; ValueError, if there is none."""
        if self.data_dir is None or not self.data_dir.is_dir():
            raise ValueError(
                f"data_dir={self.data_dir}: expected a folder of images; without one, classes, "
                "image_size, mean and std have to be those of the network's training"
            )
        return self.data_dir

    def resized(self, images: Images, **sizing: Any) -> Images:
        """Images of this folder, read from the disk, and brought to their size in another way."""
        files = [self.root / str(name) for name in images.names()]
        return replace(images, pixels=files, read=replace(self.prepare, **sizing).read)

    def read_picture(self, picture: Path | Image) -> Tensor:
        return self.prepare(open_picture(picture))

    def preprocessing(self) -> dict[str, Any]:
        settings = {"classes": self.classes, "channels": self.channels}
        if self.prepare.transform is not None:
            return settings
        sizing = {"image_size": list(self.prepare.size)}
        for key in ("resize", "crop_pct", "interpolation"):
            sizing[key] = getattr(self.prepare, key)
        return {**settings, **sizing, **super().preprocessing()}

    def normalise(self, images: Tensor) -> Tensor:
        return super().normalise(images) if self.prepare.transform is None else images

    @cached_property
    def _entries(self) -> list[Entry]:
        """The image files of the folder, by path."""
        names = class_names(self.root)
        if sorted(self.classes) != names:
            raise ValueError(
                f"classes={self.classes}: expected every folder of {self.root} once: {names}"
            )
        return list_entries(self.root, self.classes)

    def _size_of_the_first(self) -> tuple[int, int]:
        """Height and width of the first image, which all others have to have."""
        for entry in self._entries:
            with suppress(ValueError):  # broken images are named later, when all are read
                picture = open_picture(self.root / entry.path, decode=False)
                return picture.height, picture.width
        raise ValueError(f"data_dir={self.data_dir}: expected images; none can be read")

    @cached_property
    def sets(self) -> ImageSets:
        entries, root, prepare = self._entries, self.root, self.prepare
        count_of_bytes = len(entries) * self.channels * math.prod(prepare.size)
        in_memory = prepare.transform is None and count_of_bytes <= MAX_IN_MEMORY

        def read(entry: Entry) -> Tensor | Path | ValueError:
            """The image, or its file where images are not held in memory; or what is wrong."""
            path = root / entry.path
            try:
                picture = open_picture(path, decode=in_memory)
            except ValueError as error:
                return error
            height, width = prepare.size
            if self.has_own_size and picture.size != (width, height):
                raise ValueError(
                    f"image_size=null: expected images of one size, but {path} is "
                    f"{picture.height}x{picture.width} and another {height}x{width}"
                )
            return prepare(picture) if in_memory else path

        digest = hashlib.sha256()
        images: dict[Entry, Tensor | Path] = {}
        with ThreadPoolExecutor() as pool:  # Pillow lets other threads run while it decodes
            pairs = zip(entries, pool.map(read, entries), strict=True)
            for entry, image in progress(pairs, "reading", len(entries)):
                if isinstance(image, ValueError):
                    log.warning("%s: skipped: %s", root / entry.path, image)
                    continue
                images[entry] = image
                digest.update(f"{entry.path} {entry.label} ".encode())
                if isinstance(image, Tensor):
                    digest.update(image.numpy().data)
                else:
                    state = image.stat()
                    digest.update(f" {state.st_size} {state.st_mtime_ns} ".encode())
        # The split depends on the number of images: broken ones do not count.
        shares = self.val_size, self.test_size, self.split_seed, self.val_from
        parts, held_out = split(images, self.classes, *shares)
        repeats = repeated(root, parts)
        if repeats:
            log.warning(
                "%s: %d validation or test images are left out because train/ or val/ has them "
                "too: %s, ...",
                *(root, len(repeats), repeats[0].path),
            )
        for entry in repeats:
            del parts[entry]
        sets: dict[str, Images] = {}
        for part in ("train", "val", "test"):
            chosen = [entry for entry in images if parts.get(entry) == part]
            sets[part] = Images(
                [images[entry] for entry in chosen],
                torch.tensor([entry.label for entry in chosen], dtype=torch.int64),
                [entry.path for entry in chosen],
                None if in_memory else prepare.read,
            )
        if not len(sets["test"]):
            raise ValueError(f"data_dir={root}: expected test images that are not trained on")
        sha256 = {"all": digest.hexdigest()}
        return ImageSets(**sets, sha256=sha256, held_out=held_out, copies=len(repeats))
