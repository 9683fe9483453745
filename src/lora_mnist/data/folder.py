"""A folder of images as a Lightning DataModule."""

import hashlib
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

from lora_mnist.data.datamodule import ImageDataModule
from lora_mnist.data.image_files import (
    Entry,
    ImageFiles,
    Preparation,
    list_entries,
    part_folders,
    subfolders,
    warn,
)
from lora_mnist.data.images import Images, ImageTensors
from lora_mnist.data.pictures import open_picture
from lora_mnist.data.split import repeated, split
from lora_mnist.errors import is_number, require_number
from lora_mnist.progress import progress

#: Decoded images up to this many bytes are held in memory; others are read when they are needed.
MAX_IN_MEMORY = 300_000_000


class FolderDataModule(ImageDataModule):
    """Images in folders, one folder a class, as ``configs/data/folder.yaml`` explains.

    Where ``val/`` or ``test/`` is missing, images of each class are held out of the others; see
    :func:`~lora_mnist.data.split.split`. The files are listed and read as torchvision's
    ImageFolder does it, except that the upper eight of 16 bits a channel are taken. Unreadable
    files are named and left out; so are validation and test images that are also training images.

    ``sha256["all"]`` is of paths and pixels or, from the disk, of paths, sizes and times of change,
    since reading every byte would take as long as an epoch.

    ``common`` are the arguments of :class:`ImageDataModule`. Without a ``data_dir`` there are no
    images, and ``classes``, ``image_size``, ``mean`` and ``std`` have to say what
    :meth:`read_picture` needs. Training applies ``transform`` after ``augment``, and reads the
    images from the disk. ``ValueError``, if an argument is out of range.
    """

    no_validation = (
        "expected data.val_size > 0 and, if there is a val/, images that are not in train/, or "
        "data.val_from=test"
    )

    def __init__(
        self,
        data_dir: str | Path | None = None,
        *,
        name: str | None = None,
        classes: Sequence[str | int] | None = None,
        image_size: int | Sequence[int] | None = None,
        resize: str | None = None,
        crop_pct: float | None = None,
        interpolation: str | None = None,
        channels: int = 3,
        transform: Callable[[Any], Any] | None = None,
        val_size: float = 0.1,
        test_size: float = 0.1,
        split_seed: int = 0,
        **common: Any,
    ) -> None:
        self.data_dir = None if data_dir is None else Path(data_dir).expanduser()
        self._folders: dict[Path, str] = {}
        if self.data_dir is not None:
            self._folders = part_folders(self.data_dir)
            names = sorted({name for folder in self._folders for name in subfolders(folder)})
            if len(names) < 2:
                raise ValueError(f"data_dir={data_dir}: expected a folder for each of two classes")
            classes = names if classes is None else [str(name) for name in classes]
            if sorted(classes) != names:
                raise ValueError(
                    f"classes={classes}: expected every folder of {data_dir} once: {names}"
                )
        elif not classes or (
            transform is None and None in (image_size, common.get("mean"), common.get("std"))
        ):
            raise ValueError(
                "data_dir=null: expected a folder of images, or classes, image_size, mean and std "
                "that the network was trained with"
            )
        sizing: dict[str, Any] = {
            "resize": resize,
            "crop_pct": crop_pct,
            "interpolation": interpolation,
        }
        replaced = {**sizing, "image_size": image_size}
        replaced |= {"mean": common.get("mean"), "std": common.get("std")}
        for key, value in replaced.items() if transform else ():
            if value is not None:
                raise ValueError(f"{key}={value}: expected null, since transform is given")
        for key, value, accepted in (
            ("channels", channels, (1, 3)),
            ("resize", resize, (None, "crop", "stretch")),
        ):
            if value not in accepted:
                raise ValueError(f"{key}={value}: expected one of {', '.join(map(str, accepted))}")
        if crop_pct is not None:
            require_number("crop_pct", crop_pct, 0.1, 1)
        size: Any = [image_size, image_size] if is_number(image_size) else image_size
        if size is not None and ([type(side) for side in size] != [int, int] or min(size) < 1):
            raise ValueError(f"image_size={image_size}: expected null, pixels, or [height, width]")
        name = name or (self.data_dir.resolve().name if self.data_dir else "folder")
        # The command line reads the name 7 as a number.
        super().__init__(name, [str(name) for name in classes], channels, **common)
        self.image_size = None if size is None else (size[0], size[1])
        self.transform = transform
        self._sizing = {key: value for key, value in sizing.items() if value is not None}
        self.val_size, self.test_size, self.split_seed = val_size, test_size, split_seed
        self._files: list[ImageFiles] = []

    def prepared(self, **changes: Any) -> list[ImageFiles]:
        """The images to train and to validate on, from the disk, with ``changes`` of preparation.

        :attr:`sets` have been read before.
        """
        prepare = replace(self._preparation, **changes)
        return [replace(files, prepare=prepare) for files in self._files[:2]]

    def read_picture(self, picture: Path | Image) -> Tensor:
        return self._preparation(open_picture(picture, upright=False))

    def preprocessing(self) -> dict[str, Any]:
        settings = {"classes": self.classes, "channels": self.channels}
        if self.transform is not None:
            return settings
        settings |= {"image_size": list(self._size)}
        for key in ("resize", "crop_pct", "interpolation"):
            settings[key] = getattr(self._preparation, key)
        return {**settings, **super().preprocessing()}

    def measure(self, images: Images | None = None) -> None:
        if self.transform is None:
            super().measure(images)

    def normalise(self, images: Tensor) -> Tensor:
        return super().normalise(images) if self.transform is None else images

    @cached_property
    def _preparation(self) -> Preparation:
        size = (0, 0) if self.transform is not None else self._size
        return Preparation(self.channels, size, transform=self.transform, **self._sizing)

    @cached_property
    def _entries(self) -> list[Entry]:
        """The image files of the folder, by path."""
        if self.data_dir is None:
            raise ValueError("data_dir=null: expected a folder of images")
        return list_entries(self.data_dir, self._folders, self.classes)

    @cached_property
    def _size(self) -> tuple[int, int]:
        """Height and width of all images; by default those of the first."""
        if self.image_size is not None:
            return self.image_size
        for entry in self._entries:
            with suppress(ValueError):  # broken images are named later, when all are read
                picture = open_picture(Path(self.data_dir or "", entry.path), decode=False)
                return picture.height, picture.width
        raise ValueError(f"data_dir={self.data_dir}: expected images; none can be read")

    @cached_property
    def sets(self) -> tuple[Images, Images, Images]:
        entries, root, prepare = self._entries, Path(self.data_dir or ""), self._preparation
        shape = (self.channels, *prepare.size)
        size = len(entries) * math.prod(shape)
        in_memory = self.transform is None and size <= MAX_IN_MEMORY

        def read(entry: Entry) -> Tensor | ValueError | None:
            """The image, if it is held in memory; the error, if it cannot be read."""
            try:
                picture = open_picture(root / entry.path, upright=False, decode=in_memory)
            except ValueError as error:
                return error
            height, width = prepare.size
            has_own_size = self.image_size is None and self.transform is None
            if has_own_size and picture.size != (width, height):
                raise ValueError(
                    f"image_size=null: expected images of one size, but {root / entry.path} is "
                    f"{picture.height}x{picture.width} and another {height}x{width}"
                )
            return prepare(picture) if in_memory else None

        digest = hashlib.sha256()
        images: dict[Entry, Any] = {}
        with ThreadPoolExecutor() as pool:  # Pillow lets other threads run while it decodes
            pairs = zip(entries, pool.map(read, entries), strict=True)
            for entry, image in progress(pairs, "reading", len(entries)):
                if isinstance(image, ValueError):
                    warn("%s: skipped: %s", root / entry.path, image)
                    continue
                images[entry] = image
                digest.update(entry.path.encode())
                if image is not None:
                    digest.update(image.numpy().data)
                else:
                    state = (root / entry.path).stat()
                    digest.update(f" {state.st_size} {state.st_mtime_ns} ".encode())
        self.sha256["all"] = digest.hexdigest()
        # The split depends on the number of images: broken ones do not count.
        given = {entry.part for entry in images}
        if "val" in given and self.val_from == "train":
            del self.held_out["val"]
        if "test" not in given:
            self.held_out["test"] = "train"
        shares = self.val_size, self.test_size, self.split_seed, self.val_from
        parts = split(images, self.classes, *shares)
        repeats = repeated(root, parts)
        self.copies = len(repeats)
        if repeats:
            message = (
                "%s: %d validation or test images are left out: an earlier part has them: %s, ..."
            )
            warn(message, root, len(repeats), repeats[0].path)
        for entry in repeats:
            del parts[entry]
        sets: list[Images] = []
        for part in ("train", "val", "test"):
            chosen = [entry for entry in images if parts.get(entry) == part]
            labels = torch.tensor([entry.label for entry in chosen], dtype=torch.int64)
            files = ImageFiles(root, [entry.path for entry in chosen], labels, prepare)
            self._files.append(files)
            if in_memory:
                tensor = torch.empty(len(chosen), *shape, dtype=torch.uint8)
                for i, entry in enumerate(chosen):  # one by one: never in memory twice
                    tensor[i] = images.pop(entry)
                sets.append(ImageTensors(tensor, labels, files.files))
            else:
                sets.append(files)
        if not len(sets[2]):
            raise ValueError(f"data_dir={root}: expected test images that are not trained on")
        return sets[0], sets[1], sets[2]
