"""A folder of images as a Lightning DataModule."""

import hashlib
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor

from lora_mnist.data.datamodule import ImageDataModule
from lora_mnist.data.images import Augment, Batch, Images, ImageTensors
from lora_mnist.data.pictures import open_picture
from lora_mnist.errors import is_number

_warn = rank_zero_only(logging.getLogger(__name__).warning)

#: Folders with the classes in them, and what their images are for.
_PART_OF = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
#: Decoded images up to this many bytes are held in memory by ``in_memory="auto"``.
MOST_IN_MEMORY = 10**9


class Entry(NamedTuple):
    """An image file of a folder."""

    path: str  # below the folder, with "/" between
    label: int
    part: str  # train, val or test, as its folder says; train where none does


class ImageFiles(Images):
    """Images on the disk, each decoded when it is asked for; ``transform`` is a :func:`fit`."""

    def __init__(self, paths: Sequence[Path], labels: Tensor, transform: partial[Tensor]) -> None:
        self.paths, self.labels, self.transform = paths, labels, transform

    def take(self, indices: Sequence[int], augment: Augment | None = None) -> Batch:
        form = self.transform.keywords
        shape = len(indices), form["channels"], form["height"], form["width"]
        images = torch.empty(shape, dtype=torch.uint8)
        for place, i in enumerate(indices):
            try:
                image = self.transform(open_picture(self.paths[i], upright=False))
            except ValueError as error:
                raise ValueError(f"{self.paths[i]}: {error}") from error
            images[place] = augment(image) if augment else image
        return images, self.labels[torch.as_tensor(indices, dtype=torch.int64)]


class FolderDataModule(ImageDataModule):
    """Images in folders, one folder a class.

    The folder holds ``train/``, and perhaps ``val/`` (or ``validation/``) and ``test/``, with the
    classes in each of them; or the classes alone. Where ``val/`` or ``test/`` is missing, images of
    each class are held out of the others; see :func:`split`. The files are listed and read as
    torchvision's ImageFolder does it, but of 16 bits a channel the upper eight are taken. One that
    cannot be read is named in the log and left out.

    ``sha256`` holds one entry, "all": in memory, of paths and pixels; from the disk, of paths,
    sizes and times of change, since reading every byte would take as long as an epoch.

    Args:
        data_dir: the folder. ``None``: there are no images, and ``classes``, ``image_size``,
            ``mean`` and ``std`` have to say what :meth:`read_picture` needs.
        name: what files and results call the dataset; ``None``: as the folder is called.
        classes: the folders' names in the order in which the network was trained; ``None``: sorted.
        image_size: height and width of the images, or both in one number; ``None``: their own,
            which has to be the same for all.
        resize: "crop" scales an image until it fills ``image_size``, and keeps its middle, as
            torchvision's Resize and CenterCrop; "stretch" scales height and width apart.
        channels: 3 for colour, 1 for grey.
        color_order: "bgr" where the network takes blue first, as after OpenCV's ``imread``.
        in_memory: ``True``: decode all images once, to uint8. ``False``: decode each when it is
            needed; a file that looks whole and is not then ends the run. "auto": in memory where
            the images take at most 1 GB there.
        val_size: share of each class that is held out for validation where there is no ``val/``.
        test_size: share of each class that is kept for the test where there is no ``test/``.
        split_seed: another one holds out other images. It has to stay the same for a base and its
            adapters: else one is tested on images that the other was trained on.
        common: the other arguments of :class:`ImageDataModule`.

    Raises:
        ValueError: if an argument is out of range, or the folder does not hold what is expected.
    """

    def __init__(
        self,
        data_dir: str | Path | None,
        *,
        name: str | None = None,
        classes: Sequence[str | int] | None = None,
        image_size: int | Sequence[int] | None = None,
        resize: str = "crop",
        channels: int = 3,
        color_order: str = "rgb",
        in_memory: bool | str = "auto",
        val_size: float = 0.1,
        test_size: float = 0.1,
        split_seed: int = 0,
        **common: Any,
    ) -> None:
        self.data_dir = None if data_dir is None else Path(data_dir).expanduser()
        self._folders: dict[str, Path] = {}
        if self.data_dir is not None:
            self._folders = _part_folders(self.data_dir)
            names = _subfolders(next(iter(self._folders.values())))
            if len(names) < 2:
                raise ValueError(f"data_dir={data_dir}: expected a folder for each of two classes")
            if classes is not None and sorted(map(str, classes)) != names:
                raise ValueError(f"classes={classes}: expected every folder once: {names}")
            classes = classes or names
        elif not classes or None in (image_size, common.get("mean"), common.get("std")):
            raise ValueError(
                "data_dir=null: expected a folder of images, or classes, image_size, mean and std "
                "that the network was trained with"
            )
        for key, value, accepted in (
            ("channels", channels, (1, 3)),
            ("resize", resize, ("crop", "stretch")),
            ("color_order", color_order, ("rgb", "bgr") if channels == 3 else ("rgb",)),
            ("in_memory", in_memory, ("auto", True, False)),
        ):
            if value not in accepted:
                raise ValueError(f"{key}={value}: expected one of {', '.join(map(str, accepted))}")
        for key, share in {"val_size": val_size, "test_size": test_size}.items():
            if not is_number(share) or not 0 <= share < 1:
                raise ValueError(f"{key}={share}: expected a share from 0 to below 1")
        size: Any = [image_size, image_size] if is_number(image_size) else image_size
        if size is not None and ([type(side) for side in size] != [int, int] or min(size) < 1):
            raise ValueError(f"image_size={image_size}: expected null, pixels, or [height, width]")
        name = name or (self.data_dir.resolve().name if self.data_dir else "folder")
        # The command line reads the name 7 as a number.
        super().__init__(name, [str(name) for name in classes], channels, **common)
        self.image_size = None if size is None else (size[0], size[1])
        self.resize, self.color_order, self.in_memory = resize, color_order, in_memory
        self.val_size, self.test_size, self.split_seed = val_size, test_size, split_seed
        self._files: list[ImageFiles] = []

    def prepare_data(self) -> None:
        """List and check the images; decode them, where they are held in memory."""
        self.test_images()

    def training_images(self) -> tuple[Images, Images]:
        train, val, _ = self._sets
        return train, val

    def test_images(self) -> Images:
        return self._sets[2]

    def resized(self, resize: str) -> list[ImageFiles]:
        """The images of :meth:`training_images`, from the disk, with another ``resize``."""
        self.training_images()
        return [
            ImageFiles(files.paths, files.labels, partial(files.transform, resize=resize))
            for files in self._files[:2]
        ]

    def read_picture(self, path: Path) -> Tensor:
        return fit(open_picture(path, upright=False), *self._size, self.channels, self.resize)

    @cached_property
    def _entries(self) -> list[Entry]:
        """The image files of the folder, by path."""
        if self.data_dir is None:
            raise ValueError("data_dir=null: expected a folder of images")
        labels = {name: label for label, name in enumerate(self.classes)}
        entries, others = [], []
        for part, folder in self._folders.items():
            files = ImageFolder.make_dataset(
                str(folder), labels, is_valid_file=lambda _: True, allow_empty=True
            )
            for file, label in files:
                path = Path(file).relative_to(self.data_dir)
                if path.name.startswith("."):  # macOS puts a ._cat.jpg beside cat.jpg
                    continue
                if path.name.lower().endswith(IMG_EXTENSIONS):
                    entries.append(Entry(path.as_posix(), label, part))
                else:
                    others.append(path)
        if others:
            message = "%d files left out, which are no images by their names: %s, ..."
            _warn(message, len(others), others[0])
        return sorted(entries)

    @cached_property
    def _size(self) -> tuple[int, int]:
        """Height and width that the images are brought to; by default those of the first."""
        if self.image_size is not None:
            return self.image_size
        for entry in self._entries:
            with suppress(ValueError):  # a broken image is named when all are read
                picture = open_picture(Path(self.data_dir or "", entry.path), decode=False)
                return picture.height, picture.width
        raise ValueError(f"data_dir={self.data_dir}: expected images; none can be read")

    @cached_property
    def _sets(self) -> list[Images]:
        """The training, validation and test images."""
        entries, root = self._entries, Path(self.data_dir or "")
        height, width = self._size
        shape = (self.channels, height, width)
        in_memory = bool(self.in_memory)
        if self.in_memory == "auto":
            in_memory = len(entries) * math.prod(shape) <= MOST_IN_MEMORY
        transform = partial(
            fit, height=height, width=width, channels=self.channels, resize=self.resize
        )

        def read(entry: Entry) -> Tensor | ValueError | None:
            """The image, where it is to be held in memory; why, where it cannot be read."""
            try:
                picture = open_picture(root / entry.path, upright=False, decode=in_memory)
            except ValueError as error:
                return error
            if self.image_size is None and picture.size != (width, height):
                raise ValueError(
                    f"image_size=null: expected images of one size, but {root / entry.path} is "
                    f"{picture.height}x{picture.width} and another {height}x{width}"
                )
            return transform(picture) if in_memory else None

        digest = hashlib.sha256()
        images: dict[Entry, Any] = {}
        with ThreadPoolExecutor() as pool:  # Pillow lets other threads run while it decodes
            for entry, image in zip(entries, pool.map(read, entries), strict=True):
                if isinstance(image, ValueError):
                    _warn("%s: skipped: %s", root / entry.path, image)
                    continue
                images[entry] = image
                digest.update(entry.path.encode())
                if image is not None:
                    digest.update(image.numpy().data)
                else:
                    state = (root / entry.path).stat()
                    digest.update(f" {state.st_size} {state.st_mtime_ns} ".encode())
        self.sha256["all"] = digest.hexdigest()
        # Who is held out depends on how many there are: the broken ones do not count.
        entries = list(images)
        parts = split(entries, self.classes, self.val_size, self.test_size, self.split_seed)
        sets: list[Images] = []
        for part in ("train", "val", "test"):
            chosen = [entry for entry in entries if parts[entry] == part]
            labels = torch.tensor([entry.label for entry in chosen], dtype=torch.int64)
            files = ImageFiles([root / entry.path for entry in chosen], labels, transform)
            self._files.append(files)
            if in_memory:
                tensor = torch.empty(len(chosen), *shape, dtype=torch.uint8)
                for i, entry in enumerate(chosen):  # one by one: never in memory twice
                    tensor[i] = images.pop(entry)
                sets.append(ImageTensors(tensor, labels))
            else:
                sets.append(files)
        return sets


def _part_folders(root: Path) -> dict[str, Path]:
    """The folders that hold classes, by what their images are for."""
    if not root.is_dir():
        raise ValueError(f"data_dir={root}: expected a folder of images; there is none")
    parts: dict[str, Path] = {}
    for name, part in _PART_OF.items():
        if _subfolders(root / name):  # else it may be a class, of the trains
            parts[part] = root / name
    return parts or {"train": root}


def _subfolders(root: Path) -> list[str]:
    """The names of the folders in ``root``, sorted; none of ``.cache`` or ``__MACOSX``."""
    names = [path.name for path in root.glob("*") if path.is_dir()]
    return sorted(name for name in names if not name.startswith((".", "__")))


def split(
    entries: Sequence[Entry],
    classes: Sequence[str],
    val_size: float,
    test_size: float,
    seed: int,
) -> dict[Entry, str]:
    """What each image is for: "train", "val" or "test".

    Where there is no ``val/`` or ``test/``, a share of each class, and one image at least, is taken
    from those to train on, by a hash of ``seed`` and the file's path. So adding files changes the
    choice little.

    Raises:
        ValueError: if no image would be left to train on, or there are none to test on.
    """
    parts = {entry: entry.part for entry in entries}
    given = set(parts.values())
    if not test_size and "test" not in given:
        raise ValueError("test_size=0: expected more, since there is no folder test/")
    by_class: list[list[Entry]] = [[] for _ in classes]
    for entry in entries:
        if entry.part == "train":
            by_class[entry.label].append(entry)
    for name, members in zip(classes, by_class, strict=True):
        members.sort(key=lambda entry: hashlib.sha256(f"{seed} {entry.path}".encode()).digest())
        taken = 0
        for part, size in (("test", test_size), ("val", val_size)):
            if size and part not in given:
                count = max(1, round(size * len(members)))
                for entry in members[taken : taken + count]:
                    parts[entry] = part
                taken += count
        if taken >= len(members):
            raise ValueError(
                f"val_size={val_size} test_size={test_size}: expected to leave some of the "
                f"{len(members)} readable images of {name} to train on"
            )
    return parts


def fit(picture: Image.Image, height: int, width: int, channels: int, resize: str) -> Tensor:
    """A picture as uint8, (channels, height, width), as torchvision's transforms bring it there."""
    if picture.mode == "I;16":  # Pillow would clip it at 255
        picture = Image.fromarray((numpy.asarray(picture) >> 8).astype("uint8"))
    picture = picture.convert("RGB" if channels == 3 else "L")
    scaled = [height, width]
    if resize == "crop":  # one side fits; the other is rounded down, as in torchvision
        scaled[0] = max(height, width * picture.height // picture.width)
        scaled[1] = max(width, height * picture.width // picture.height)
    picture = picture.resize((scaled[1], scaled[0]), Image.Resampling.BILINEAR)
    image: Tensor = pil_to_tensor(center_crop(picture, [height, width]))
    return image.contiguous()
