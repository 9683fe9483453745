"""A folder of images as a Lightning DataModule."""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor

from lora_mnist.data.datamodule import Channelwise, ImageDataModule, checked_int
from lora_mnist.data.pictures import open_picture
from lora_mnist.data.sampler import Batch, ImageTensors
from lora_mnist.errors import one_line

log = logging.getLogger(__name__)
_warn = rank_zero_only(log.warning)

#: What images are for.
PARTS = ("train", "val", "test")
#: Folders with the classes in them, and what their images are for.
_PART_OF = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
#: Decoded images up to this many bytes are held in memory by ``in_memory="auto"``.
MOST_IN_MEMORY = 10**9
# More than a few names would bury what else a run says.
_MOST_NAMED = 10


class Form(NamedTuple):
    """What images are brought to; ``resize`` is that of :class:`FolderDataModule`."""

    height: int
    width: int
    channels: int
    resize: str
    exact: bool = False  # no image is resized; one of another size is an error


class OtherSizeError(ValueError):
    """An image of another size, where none is to be resized."""


class Entry(NamedTuple):
    """An image file of a folder."""

    path: str  # below the folder, with "/" between
    label: int
    part: str  # one of PARTS, or "" where no folder says so


class ImageFiles(Dataset[Batch]):
    """Images on the disk, each decoded when it is asked for; what a ``DataLoader`` takes.

    Args:
        root: the folder below which the files are.
        paths: of the files.
        labels: int64, shape (N,).
        form: what the images are brought to.
    """

    def __init__(self, root: Path, paths: Sequence[str], labels: Tensor, form: Form) -> None:
        self.root, self.paths, self.labels, self.form = root, list(paths), labels, form

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Images, uint8, (B, channels, height, width), and labels, int64, (B,).

        Raises:
            ValueError: naming a file that cannot be read, or has another size than the others.
        """
        images = []
        for i in indices:
            path = self.root / self.paths[i]
            try:
                images.append(decode(path, self.form))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        return torch.stack(images), self.labels[indices]


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
            ``mean`` and ``std`` say what :meth:`read_picture` needs.
        name: what files and results call the dataset; ``None``: as the folder is called.
        classes: the folders' names in the order in which the network was trained; ``None``: sorted.
        image_size: height and width of the images, or both in one number; ``None``: their own,
            which has to be the same for all.
        resize: "crop" scales an image until it fills ``image_size``, and keeps its middle, as
            torchvision's Resize and CenterCrop; "stretch" scales height and width apart.
        channels: 3 for colour, 1 for grey.
        in_memory: ``True``: decode all images once, to uint8. ``False``: decode each when it is
            needed; a file that looks whole and is not then ends the run. "auto": in memory where
            the images take at most 1 GB there.
        val_size: images held out for validation where there is no ``val/``: a share of each class,
            or a number in all.
        test_size: images kept for the test where there is no ``test/``, likewise.
        split_seed: another one holds out other images. It has to stay the same for a base and its
            adapters: else one is tested on images that the other was trained on.
        mean: of the training pixels, on the scale 0 to 1; ``None``: measured.
        std: of the training pixels, on the same scale; ``None``: measured.
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
        in_memory: bool | str = "auto",
        val_size: int | float = 0.1,
        test_size: int | float = 0.1,
        split_seed: int = 0,
        mean: Channelwise = None,
        std: Channelwise = None,
        **common: Any,
    ) -> None:
        self.data_dir = None if data_dir is None else Path(data_dir).expanduser()
        names = _class_names(self.data_dir, classes)
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: expected 1 or 3")
        if resize not in ("crop", "stretch"):
            raise ValueError(f"resize={resize}: expected crop or stretch")
        if in_memory not in ("auto", True, False):
            raise ValueError(f"in_memory={in_memory}: expected auto, true or false")
        name = name or (self.data_dir.resolve().name if self.data_dir else "folder")
        super().__init__(name, names, channels, mean=mean, std=std, **common)
        self.image_size: tuple[int, int] | None = None
        if image_size is not None:
            sides = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
            if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
                raise ValueError(
                    f"image_size={image_size}: expected null, a number of pixels, or "
                    "[height, width]"
                )
            self.image_size = (sides[0], sides[1])
        self.resize, self.in_memory = resize, in_memory
        for key, size in {"val_size": val_size, "test_size": test_size}.items():
            is_share = type(size) is float and 0 <= size < 1
            if not is_share and (type(size) is not int or size < 0):
                raise ValueError(
                    f"{key}={size}: expected a number of images or a share from 0 to below 1"
                )
        self.val_size, self.test_size = val_size, test_size
        self.split_seed = checked_int("split_seed", split_seed)
        self._entries: list[Entry] = []
        self._sets: list[ImageTensors | ImageFiles] = []

    def prepare_data(self) -> None:
        """List and check the images; decode them, where they are held in memory.

        Raises:
            ValueError: if a class has no images, or none would be left to train on.
        """
        self._load()

    def measure(self) -> None:
        if self.data_dir is None:
            for name in ("image_size", "mean", "std"):
                if getattr(self, name) is None:
                    raise ValueError(
                        f"{name}=null: expected what the network was trained with, since "
                        "data_dir=null has no images to find it out from"
                    )
        super().measure()

    def training_images(self) -> tuple[Any, Any]:
        train, val, _ = self._load()
        return train, val

    def test_images(self) -> Any:
        return self._load()[2]

    def read_picture(self, path: Path) -> Tensor:
        """A picture, read and resized as those of the folder: (channels, height, width) uint8.

        Raises:
            ValueError: saying why, if the file cannot be used.
        """
        return decode(path, self._form()._replace(exact=False))

    def _list(self) -> tuple[Path, list[Entry]]:
        if self.data_dir is None:
            raise ValueError("data_dir=null: expected a folder of images")
        if not self._entries:
            self._entries = list_images(self.data_dir, self.classes)
        return self.data_dir, self._entries

    def _form(self) -> Form:
        if self.image_size is not None:
            return Form(*self.image_size, self.channels, self.resize)
        root, entries = self._list()
        for entry in entries:
            with suppress(ValueError):  # a broken image is named when all are read
                width, height = open_picture(root / entry.path, decode=False).size
                return Form(height, width, self.channels, self.resize, exact=True)
        raise ValueError(f"data_dir={root}: none of the images can be read")

    def _load(self) -> list[ImageTensors | ImageFiles]:
        """The training, validation and test images."""
        if self._sets:
            return self._sets
        root, entries = self._list()
        form = self._form()
        shape = (form.channels, form.height, form.width)
        in_memory = self.in_memory
        if in_memory == "auto":
            in_memory = len(entries) * math.prod(shape) <= MOST_IN_MEMORY
        images = None
        while True:
            parts = split(entries, self.classes, self.val_size, self.test_size, self.split_seed)
            order = sorted(range(len(entries)), key=lambda i: PARTS.index(parts[i]))
            ordered = [entries[i] for i in order]
            if in_memory:  # once, and each image right where it belongs: no copy is ever made
                images = torch.empty(len(ordered), *shape, dtype=torch.uint8)
            broken = _read(root, ordered, form, images)
            if not broken:
                break
            for path in sorted(broken)[:_MOST_NAMED]:
                _warn("%s/%s: skipped: %s", root, one_line(path), one_line(broken[path]))
            _warn("%d of %d images skipped, which cannot be read", len(broken), len(entries))
            # Who is held out depends on how many there are: begin again without them.
            readable = [entry for entry in entries if entry.path not in broken]
            left = {(entry.part, entry.label) for entry in readable}
            for path, label, part in entries:
                if (part, label) not in left:
                    name = self.classes[label]
                    raise ValueError(
                        f"data_dir={root}: expected images of {name}; none can be read, such as "
                        f"{path}"
                    )
            entries = readable
        paths = [entry.path for entry in ordered]
        labels = torch.tensor([entry.label for entry in ordered])
        start = 0
        for part in PARTS:
            rows = slice(start, start + parts.count(part))
            start = rows.stop
            if images is None:
                self._sets.append(ImageFiles(root, paths[rows], labels[rows], form))
            else:
                self._sets.append(ImageTensors(images[rows], labels[rows]))
        by_entry = None if images is None else [images[row] for row in numpy.argsort(order)]
        self.sha256["all"] = _sha256(root, entries, by_entry)
        return self._sets


def _class_names(root: Path | None, classes: Sequence[Any] | None) -> list[str]:
    """The names of the class folders in ``root``, sorted, or in the order of ``classes``."""
    names = [str(name) for name in classes or []]  # the command line reads 7 as a number
    if root is None:
        if not names:
            raise ValueError("data_dir=null: expected a folder of images")
        if isinstance(classes, str) or len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"classes={classes}: expected two or more names, each once")
        return names
    parts = _part_folders(root)
    found = _folders(parts.get("train", root))
    if len(found) < 2:
        raise ValueError(f"data_dir={root}: expected a folder for each of two or more classes")
    for folder in parts.values():
        if _folders(folder) != found:
            raise ValueError(
                f"data_dir={root}: expected the classes of train/ in {folder.name}/ too: {found}"
            )
    if names and sorted(names) != found:
        raise ValueError(f"classes={classes}: expected every folder once: {found}")
    return names or found


def _part_folders(root: Path) -> dict[str, Path]:
    """The folders that hold classes, by what their images are for; "" where nothing says so."""
    if not root.is_dir():
        raise ValueError(f"data_dir={root}: expected a folder of images; there is none")
    names = _folders(root)
    # A folder called train may also be the class of the trains.
    if "train" not in names or not _folders(root / "train"):
        if names and set(names) <= set(_PART_OF) and any(_folders(root / name) for name in names):
            raise ValueError(f"data_dir={root}: expected train/ beside {names[0]}/")
        return {"": root}
    parts: dict[str, Path] = {}
    for name in names:
        part = _PART_OF.get(name)
        if part is None or part in parts:
            raise ValueError(
                f"data_dir={root}: expected train/, val/ and test/ alone, or classes alone, not "
                f"{name}/ beside {', '.join(other for other in names if other != name)}"
            )
        parts[part] = root / name
    return parts


def _folders(root: Path) -> list[str]:
    """The names of the folders in ``root``, sorted; none of ``.cache`` or ``__MACOSX``."""
    names = [path.name for path in root.iterdir() if path.is_dir()]
    return sorted(name for name in names if not name.startswith((".", "__")))


def list_images(root: Path, classes: Sequence[str]) -> list[Entry]:
    """The image files of ``root``, by part and path.

    Raises:
        ValueError: if a class has no image.
    """
    labels = {name: label for label, name in enumerate(classes)}
    others: list[str] = []

    def is_image(path: str) -> bool:
        name = Path(path).name
        if name.startswith("."):  # .DS_Store and ._cat.jpg are no images of anybody's
            return False
        if not name.lower().endswith(IMG_EXTENSIONS):
            others.append(path)
            return False
        return True

    entries = []
    for part, folder in _part_folders(root).items():
        try:
            files = ImageFolder.make_dataset(str(folder), labels, is_valid_file=is_image)
        except FileNotFoundError as error:
            raise ValueError(
                f"data_dir={root}: expected files that end in {', '.join(IMG_EXTENSIONS)} in every "
                f"class ({one_line(error)})"
            ) from error
        for path, label in files:
            entries.append(Entry(Path(path).relative_to(root).as_posix(), label, part))
    if others:
        _warn(
            "%d files left out, which are no images by their names: %s, ...",
            *(len(others), one_line(others[0])),
        )
    return sorted(entries, key=lambda entry: (("", *PARTS).index(entry.part), entry.path))


def split(
    entries: Sequence[Entry],
    classes: Sequence[str],
    val_size: int | float,
    test_size: int | float,
    seed: int,
) -> list[str]:
    """What each image is for: "train", "val" or "test".

    Images in folders of that name stay what they are. Where there is no ``val/`` or ``test/``,
    images of each class are taken from the others by a hash of ``seed`` and the file's path. So
    the choice depends on nothing else, and adding files changes it little.

    Args:
        entries: the images.
        classes: names of the classes, by label.
        val_size: share of each class (float), one image at least; or a number of images in all
            (int), of each class in proportion to its size.
        test_size: likewise.
        seed: another seed holds out other images.

    Raises:
        ValueError: if no image would be left to train on, or there are none to test on.
    """
    parts = [entry.part or "train" for entry in entries]
    by_class: list[list[int]] = [[] for _ in classes]
    for i, entry in enumerate(entries):
        if parts[i] == "train":
            by_class[entry.label].append(i)
    if not test_size and "test" not in parts:
        raise ValueError("test_size=0: expected more, since there is no folder test/")
    sizes = {"test": test_size, "val": val_size}
    counts = {}
    for part, size in sizes.items():
        if size and part not in parts:
            counts[part] = _apportion(size, [len(members) for members in by_class])

    def rank(i: int) -> bytes:
        text = f"{seed} {entries[i].path}"
        return hashlib.sha256(text.encode(errors="surrogateescape")).digest()

    for label, members in enumerate(by_class):
        if sum(of_class[label] for of_class in counts.values()) >= len(members):
            largest = max(counts, key=lambda part: counts[part][label])
            raise ValueError(
                f"{largest}_size={sizes[largest]}: expected less: none of the {len(members)} "
                f"images of {classes[label]} is left to train on"
            )
        members.sort(key=rank)
        for part, of_class in counts.items():
            for i in members[: of_class[label]]:
                parts[i] = part
            del members[: of_class[label]]
    return parts


def _apportion(size: int | float, classes: Sequence[int]) -> list[int]:
    """How many images of each class make up ``size``, given how many each class has."""
    if isinstance(size, float):
        return [max(1, round(size * count)) for count in classes]
    quotas = [size * count / sum(classes) for count in classes]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda c: counts[c] - quotas[c])
    for c in by_remainder[: size - sum(counts)]:
        counts[c] += 1
    return counts


def _read(
    root: Path, entries: Sequence[Entry], form: Form, images: Tensor | None
) -> dict[str, str]:
    """Decode ``entries`` into ``images``; only check them where that is ``None``.

    Returns:
        Of the images that cannot be read, the path and why.
    """
    broken: dict[str, str] = {}

    def read(i: int) -> None:
        path = root / entries[i].path
        try:
            if images is None:
                _require_size(open_picture(path, decode=False), form, path)
            else:
                images[i] = decode(path, form)
        except OtherSizeError:
            raise
        except ValueError as error:
            broken[entries[i].path] = str(error)

    # Pillow lets other threads run while it decodes and resizes.
    pool = ThreadPoolExecutor()
    try:
        for _ in pool.map(read, range(len(entries))):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return broken


def _require_size(picture: Image.Image, form: Form, path: Path) -> None:
    if form.exact and picture.size != (form.width, form.height):
        raise OtherSizeError(
            f"image_size=null: expected images of one size, but {path} is {picture.height}x"
            f"{picture.width} and another {form.height}x{form.width}"
        )


def decode(path: Path, form: Form) -> Tensor:
    """An image file as torchvision's ImageFolder reads it, brought to ``form``.

    Returns:
        uint8, shape (channels, height, width).

    Raises:
        ValueError: saying why, if the file cannot be read as a picture.
        OtherSizeError: if ``form`` is exact and the image has another size.
    """
    # Not turned by its EXIF data: neither does ImageFolder, with which networks are trained.
    picture = open_picture(path, upright=False)
    _require_size(picture, form, path)
    if picture.mode.startswith("I"):  # more than eight bits a channel, which Pillow would clip
        levels = numpy.asarray(picture.convert("I"))
        levels = levels >> 8 if levels.max() > 255 else levels
        picture = Image.fromarray(levels.clip(0, 255).astype("uint8"))
    picture = picture.convert("RGB" if form.channels == 3 else "L")
    height, width = form.height, form.width
    if form.resize == "crop":  # one side fits; the other is rounded down, as in torchvision
        height = max(height, form.width * picture.height // picture.width)
        width = max(width, form.height * picture.width // picture.height)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    image: Tensor = pil_to_tensor(center_crop(picture, [form.height, form.width]))
    return image


def _sha256(root: Path, entries: Sequence[Entry], images: Sequence[Tensor] | None) -> str:
    """In hexadecimal, of paths and pixels; without ``images``, of paths, sizes and times."""
    digest = hashlib.sha256(json.dumps([entry.path for entry in entries]).encode())
    for i, entry in enumerate(entries):
        if images is None:
            state = (root / entry.path).stat()
            digest.update(f"{state.st_size} {state.st_mtime_ns} ".encode())
        else:
            digest.update(images[i].numpy().data)
    return digest.hexdigest()
