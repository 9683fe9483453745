"""A folder of images, one folder a class: listed, prepared as torchvision does it, and split."""

import hashlib
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from lora_mnist.data.images import (
    Augment,
    Channelwise,
    ImageDataset,
    Images,
    ImageSets,
    digests_of,
    measured_pixels,
    open_picture,
    size_of_picture,
)
from lora_mnist.errors import (
    SIZING,
    ArgumentError,
    PictureError,
    UserError,
    config_group,
    nearest_to,
    printable,
    require,
    require_number,
    require_one_of,
)
from lora_mnist.files import read_json, write_json
from lora_mnist.progress import progress

log = logging.getLogger(__name__)

#: Decoded images up to this many bytes are held in memory; others are read when they are needed.
MAX_IN_MEMORY = 300_000_000
#: A file that has changed within so many nanoseconds may change again at the same time.
_IN_DOUBT = 2_000_000_000
#: What the images of a folder are for, and other names of these folders.
_PARTS = ("train", "val", "test")
_ALSO_CALLED = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


class ImageFile(NamedTuple):
    """An image file of a folder."""

    path: str  # below the data folder, with "/" between
    label: int
    part: str  # train, val or test, by its folder; train where the folder holds classes alone


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes an image: with ``transform``, or as torchvision's transforms do it."""

    channels: int
    size: tuple[int, int]  # height and width; a transform does not ask for it
    resize: str
    crop_pct: float
    interpolation: str
    transform: Callable[[Any], Any] | None

    def __post_init__(self) -> None:
        require_one_of("channels", self.channels, [1, 3])
        require_one_of("resize", self.resize, ["crop", "stretch"])
        require_number("crop_pct", self.crop_pct, 0.1, 1)
        require_one_of("interpolation", self.interpolation, [m.value for m in InterpolationMode])

    def __call__(self, picture: Image, augment: Augment | None = None) -> Tensor:
        """The image, uint8, (channels, height, width), or what ``transform`` makes of it."""
        picture = picture.convert("RGB" if self.channels == 3 else "L")
        if self.transform is not None:
            image = self.transform(augment(picture) if augment else picture)
            if not isinstance(image, Tensor):
                kind = type(image).__name__
                raise UserError(f"prepare.transform: gives a {kind}; expected a tensor")
            return image
        height, width = size_before_crop(self.size, self.crop_pct)
        if self.resize == "crop":
            # The picture keeps its shape. Its longer side is rounded down, as in torchvision.
            whole_height = width * picture.height // picture.width
            width = max(width, height * picture.width // picture.height)
            height = max(height, whole_height)
        resized: Any = resize(picture, [height, width], InterpolationMode(self.interpolation))
        cropped: Any = center_crop(resized, list(self.size))
        pixels: Tensor = pil_to_tensor(cropped)
        return augment(pixels) if augment else pixels.contiguous()

    def read(self, path: Path, augment: Augment | None = None) -> Tensor:
        """The image of a file; a ``PictureError`` names the file."""
        try:
            picture = open_picture(path)
        except PictureError as error:
            raise PictureError(f"{printable(path)}: {error}") from error
        return self(picture, augment)


def size_before_crop(size: Iterable[int], crop_pct: float) -> list[int]:
    """The height and width to which a picture is brought before it is cropped to ``size``."""
    # Rounded down, as in timm; 0.02 is for a rounded crop_pct: 32 / 0.889 is 35.996, for 36.
    return [math.floor(side / crop_pct + 0.02) for side in size]


class Folder(ImageDataset):
    """Images in folders, one folder a class, read as torchvision's ImageFolder does it.

    The folder is looked at where ``classes``, ``image_size``, ``mean`` or ``std`` have to be found
    there, or its images are asked for. It is not there with somebody else's adapter.
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
        # On the command line a folder, or a class, may be called 7, which is read as a number.
        self.data_dir = None if data_dir is None else Path(str(data_dir)).expanduser()
        for key, share in (("val_size", val_size), ("test_size", test_size)):
            require_number(key, share, 0, 1)
        size: Any = [image_size, image_size] if isinstance(image_size, int) else image_size
        is_size = size is None or ([type(side) for side in size] == [int, int] and min(size) > 0)
        require(is_size, "image_size", image_size, "null, pixels, or [height, width]")
        if transform is not None:
            expected = "a function or class of a picture: {_target_: my_nets.prepare}"
            require(callable(transform), "transform", transform, expected)
            others = [image_size, mean, std, resize, crop_pct, interpolation]
            is_alone = others == [None, None, None, "crop", 1.0, "bilinear"]
            expected = "null, or neither image_size, resize, crop_pct, interpolation, mean nor std"
            require(is_alone, "transform", transform, f"{expected}, which it has in itself")
            size, mean, std = (0, 0), 0.0, 1.0
        is_list = isinstance(classes, list | tuple | None)
        are_names = is_list and {type(each) for each in classes or ()} <= {str, int, float}
        require(are_names, "classes", classes, "a list of names, as in [cat,dog]")
        named = [str(each) for each in classes or self._folders_of_classes()]
        name = name or (self.data_dir.resolve().name if self.data_dir else "folder")
        super().__init__(name, named, channels, eval_batch_size=eval_batch_size, **common)
        self.split_settings = {"val_size": val_size, "test_size": test_size}
        self.split_settings |= {"split_seed": split_seed, "val_from": self.val_from}
        self._has_own_size = size is None
        size = tuple(size or self._size_of_the_first())
        self.prepare = Preparation(channels, size, resize, crop_pct, interpolation, transform)
        self.normalise_by(mean, std)

    @cached_property
    def _measured(self) -> tuple[Channelwise, Channelwise]:
        """The mean and the standard deviation of training images, where one is not set."""
        with config_group("data"):
            expected = "mean and std, as in the network's training, since there are no training "
            require(len(self.sets.train) > 0, "mean", None, f"{expected}images to measure")
        return measured_pixels(self.sets.train)

    @cached_property
    def mean(self) -> Channelwise:  # type: ignore[override]
        return self._measured[0]

    @cached_property
    def std(self) -> Channelwise:  # type: ignore[override]
        return self._measured[1]

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
        sizing = {"image_size": list(self.prepare.size)}
        for key in SIZING[1:]:
            sizing[key] = getattr(self.prepare, key)
        return {**prepare, **sizing, **super().preprocessing()}

    def normalise(self, images: Tensor) -> Tensor:
        return super().normalise(images) if self.prepare.transform is None else images

    @cached_property
    def _parts(self) -> dict[Path, str]:
        """The folders that hold folders of classes, and the part of the images in each."""
        root = self.root
        parts, others = {}, []
        for name in _subfolders(root):
            part = _ALSO_CALLED.get(name.lower(), name.lower())
            if part in _PARTS and _subfolders(root / name):  # without any, train/ is a class
                parts[root / name] = part
            else:
                others.append(name)
        if parts and others:
            other = printable(root / others[0])
            log.warning("%s is ignored, as it is no train/, val/ or test/", other)
        return parts or {root: "train"}

    def _folders_of_classes(self) -> list[str]:
        """The names of the folders of classes, sorted: of those in train/, if there is one."""
        folders = [folder for folder, part in self._parts.items() if part == "train"]
        names = {name for folder in folders or self._parts for name in _subfolders(folder)}
        require(len(names) > 1, "data_dir", self.root, "a folder for each of two classes")
        return sorted(names)

    @cached_property
    def _files(self) -> list[ImageFile]:
        """The image files in the folders of classes, by path, as torchvision lists them."""
        root, names = self.root, self._folders_of_classes()
        if sorted(self.classes) != names:
            others = [name for name in self.classes if name not in names]
            odd = f"; {others[0]} is none of them{nearest_to(others[0], names)}" if others else ""
            expected = f"expected the folders of {root}: {names}{odd}"
            raise ArgumentError("classes", self.classes, expected)
        files, others = [], []
        for folder, part in self._parts.items():
            for name in _subfolders(folder):
                if name not in names:
                    expected = f"expected the folders of train/, but {name} is none of them"
                    raise ArgumentError("data_dir", folder, expected + nearest_to(name, names))
                label = self.classes.index(name)
                for file in files_below(folder / name):
                    path = file.relative_to(root).as_posix()
                    if file.name.startswith("."):  # macOS puts a ._cat.jpg beside cat.jpg
                        continue
                    if file.name.lower().endswith(IMG_EXTENSIONS):
                        files.append(ImageFile(path, label, part))
                    else:
                        others.append(printable(path))
        if others:
            log.warning("%d files are not named as images: %s, ...", len(others), others[0])
        return sorted(files)

    def _size_of_the_first(self) -> tuple[int, int]:
        """Height and width of the first image; all others have to have them."""
        for file in self._files:
            with suppress(PictureError):  # broken ones are named later, when all are read
                return size_of_picture(self.root / file.path)
        raise ArgumentError("data_dir", self.data_dir, "expected images; none can be read")

    @cached_property
    def _are_in_memory(self) -> bool:
        """Whether decoded images are held in memory."""
        count_of_bytes = len(self._files) * self.channels * math.prod(self.prepare.size)
        return self.prepare.transform is None and count_of_bytes <= MAX_IN_MEMORY

    def _read(
        self, file: ImageFile, known: "_KnownFiles | None"
    ) -> tuple[Tensor | Path, int] | None:
        """An image, or its file where it is not to be held in memory, and its digest.

        None: it is broken.
        """
        path = self.root / file.path
        image: Tensor | Path = path
        try:
            if known is not None:
                digest, *size = known.look_at(file.path)
            else:
                picture = open_picture(path)
                image, size = self.prepare(picture), [picture.height, picture.width]
                digest = int(digests_of([path]))
        except (PictureError, OSError) as error:
            log.warning("%s: skipped: %s", printable(path), error)
            return None
        if self._has_own_size and tuple(size) != self.prepare.size:
            here, there = ("x".join(map(str, each)) for each in (size, self.prepare.size))
            expected = f"expected images of one size, but {path} is {here}, another {there}"
            raise ArgumentError("image_size", None, expected)
        return image, digest

    def _read_all(self) -> dict[ImageFile, tuple[Tensor | Path, int]]:
        """What :meth:`_read` gives for the images that can be read."""
        known = None if self._are_in_memory else _KnownFiles(self.root)
        with ThreadPoolExecutor() as pool:  # Pillow lets other threads run while it decodes
            read = pool.map(self._read, self._files, repeat(known))
            pairs = progress(zip(self._files, read, strict=True), "reading", len(self._files))
            images = {file: image for file, image in pairs if image is not None}
        if known is not None:
            known.save()
        return images

    @cached_property
    def sets(self) -> ImageSets:
        root = self.root
        images = self._read_all()
        trained = {file.label for file in images if file.part == "train"}
        for label, name in enumerate(self.classes):
            expected = f"images of each class; {name} has no readable one to train on"
            require(not trained or label in trained, "data_dir", root, expected)
        # The split depends on the number of images: broken ones do not count.
        parts, held_out = split(images, self.classes, self.split_settings)
        whole = Images(
            [image for image, _ in images.values()],
            torch.tensor([file.label for file in images], dtype=torch.int64),
            [file.path for file in images],
            None if self._are_in_memory else self.prepare.read,
            digests=torch.tensor([digest for _, digest in images.values()], dtype=torch.int64),
        )
        sets = []
        for part in _PARTS:
            places = [place for place, file in enumerate(images) if parts[file] == part]
            sets.append(whole.subset(torch.tensor(places, dtype=torch.int64)))
        sha256 = hashlib.sha256()
        for file, (_, digest) in images.items():
            sha256.update(os.fsencode(f"{file.path} {file.label} {digest} "))
        train, val, test = sets
        apart = ImageSets(train, val, test, {"all": sha256.hexdigest()}, held_out).apart()
        require(len(apart.test) > 0, "data_dir", root, "test images that are not trained on")
        return apart


class _KnownFiles:
    """What a folder's files hold, from command to command, in a file among the user's caches.

    Whatever writes into a file changes the second of its times, which cannot be set. Of two
    commands at once the last one's knowledge stays.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._sure_before = folder, time.time_ns() - _IN_DOUBT
        self._before, self._now = dict[str, Any](), dict[str, Any]()
        with suppress(OSError, RuntimeError, ValueError):  # no home; damaged: it is made again
            self._before = read_json(self._file)

    @property
    def _file(self) -> Path:
        own = os.environ.get("XDG_CACHE_HOME")
        name = hashlib.sha256(os.fsencode(self._folder.resolve())).hexdigest()[:16]
        return (Path(own) if own else Path.home() / ".cache") / "lora_mnist" / f"{name}.json"

    def look_at(self, name: str) -> tuple[int, int, int]:
        """The digest of a file of the folder, and the height and width of its picture."""
        path = self._folder / name
        about = path.stat()
        times = (about.st_mtime_ns, about.st_ctime_ns)
        key = f"{name} {about.st_size} {about.st_ino} {times}"
        try:
            digest, height, width = map(int, self._before[key])
        except (KeyError, OverflowError, TypeError, ValueError):  # unknown, or damaged
            digest, (height, width) = int(digests_of([path])), size_of_picture(path)
        if max(times) < self._sure_before:
            self._now[key] = [digest, height, width]
        return digest, height, width

    def save(self) -> None:
        """Keep what was looked at."""
        if self._now != self._before:
            with suppress(OSError, RuntimeError):  # without it a command takes longer, no more
                write_json(self._file, self._now)


def _subfolders(root: Path) -> list[str]:
    """The names of the folders in ``root``, sorted, without ``.cache`` and ``__MACOSX``."""
    names = [path.name for path in root.iterdir() if path.is_dir()]
    return sorted(name for name in names if not name.startswith((".", "__")))


def files_below(root: Path) -> Iterator[Path]:
    """The files in ``root`` and in its folders; links may go in a circle."""
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        here = Path(folder).resolve()
        if here in seen:
            subfolders.clear()
        else:
            yield from (Path(folder, name) for name in sorted(names))
            subfolders.sort()  # of two links to a folder, the first is followed
        seen.add(here)


def split(
    files: Iterable[ImageFile], classes: Sequence[str], settings: Mapping[str, Any]
) -> tuple[dict[ImageFile, str], dict[str, str]]:
    """The part of each image, and for a part without a folder, the part it is held out of.

    ``settings`` are the keys of ``data`` for it. A hash of the seed and the file's path decides, so
    that adding files changes the choice little.
    """
    val_from, seed = settings["val_from"], settings["split_seed"]
    parts = {file: file.part for file in files}
    if val_from == "test":  # then images in val/ are trained on
        parts = {file: "test" if part == "test" else "train" for file, part in parts.items()}
    existing, held_out = set(parts.values()), {}
    if "test" not in existing:
        expected = "expected train, since there is no folder test/"
        if val_from == "test":
            raise ArgumentError("val_from", "test", expected)
        held_out["test"] = "train"
    if "val" not in existing:
        held_out["val"] = val_from

    def place(file: ImageFile) -> bytes:
        return hashlib.sha256(os.fsencode(f"{seed} {file.path}")).digest()

    members: dict[tuple[int, str], list[ImageFile]] = defaultdict(list)
    for file in sorted(parts, key=place):
        members[file.label, parts[file]].append(file)
    for label, name in enumerate(classes):
        counts = {part: len(members[label, part]) for part in _PARTS}
        for part, source in held_out.items():  # the test images first
            share = settings[f"{part}_size"]
            count = max(1, round(share * counts[source])) if share else 0
            parts |= dict.fromkeys(members[label, source][:count], part)
            del members[label, source][:count]
            if counts[source] and not members[label, source]:
                expected = f"expected an image of {name} to be left in {source}, which has "
                expected += f"{counts[source]}; a share above 0 takes one at least"
                raise ArgumentError(f"{part}_size", share, expected)
    return parts, held_out
