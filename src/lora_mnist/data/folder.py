"""A folder of images as a Lightning DataModule."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_mnist.data.arguments import (
    MOST_SEED,
    Channelwise,
    checked_folder,
    checked_int,
    checked_size,
)
from lora_mnist.data.datamodule import ImageDataModule
from lora_mnist.data.decode import Form, OtherSizeError, decode, read_pictures
from lora_mnist.data.listing import PARTS, Entry, class_folders, list_images, named_classes, split
from lora_mnist.data.memory import free_memory
from lora_mnist.data.pictures import picture_size
from lora_mnist.data.sampler import ImageTensors


class FolderDataModule(ImageDataModule):
    """Images in folders, one folder a class.

    The folder holds ``train/``, and perhaps ``val/`` and ``test/``, with the classes in each of
    them; or the classes alone. Where ``val/`` or ``test/`` is missing, images of each class are
    held out of the others; see :func:`lora_mnist.data.listing.split`. The files are read as
    torchvision's ImageFolder reads them, and held in memory as uint8. One that cannot be read is
    named in the log and left out.

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
        val_size: images held out for validation where there is no ``val/``: a share of each class,
            or a number in all.
        test_size: images kept for the test where there is no ``test/``, likewise.
        split_seed: another one holds out other images. It has to stay the same for a base and its
            adapters: else one is tested on images that the other was trained on.
        cache_dir: folder to keep what was read in, so that it is there at once the next time;
            ``None``: nowhere.

    The other arguments are those of :class:`ImageDataModule`.

    Attributes:
        skipped: files that could not be read, and why; filled by :meth:`prepare_data`.

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
        val_size: int | float = 0.1,
        test_size: int | float = 0.1,
        split_seed: int = 0,
        cache_dir: str | Path | None = None,
        mean: Channelwise = None,
        std: Channelwise = None,
        target: int | str | Sequence[int | str] | None = None,
        batch_size: int = 10,
        replay: int = 0,
        hardness: float = 0.0,
        eval_batch_size: int = 250,
        seed: int | None = 0,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.data_dir = None if data_dir is None else checked_folder("data_dir", data_dir)
        if self.data_dir is not None:
            names = class_folders(self.data_dir, classes)
        elif classes is None:
            raise ValueError("data_dir=null: expected a folder of images")
        else:
            names = named_classes(classes)
        if type(channels) is not int or channels not in (1, 3):
            raise ValueError(f"channels={channels}: expected 1 or 3")
        if resize not in ("crop", "stretch"):
            raise ValueError(f"resize={resize}: expected crop or stretch")
        super().__init__(
            name or (self.data_dir.resolve().name if self.data_dir else "folder"),
            names,
            channels,
            target=target,
            batch_size=batch_size,
            replay=replay,
            hardness=hardness,
            eval_batch_size=eval_batch_size,
            mean=mean,
            std=std,
            seed=seed,
            augment=augment,
        )
        self.image_size = _checked_image_size(image_size)
        self.resize = resize
        self.val_size = checked_size("val_size", val_size)
        self.test_size = checked_size("test_size", test_size)
        self.split_seed = checked_int("split_seed", split_seed, 0, MOST_SEED)
        self.cache_dir = None if cache_dir is None else checked_folder("cache_dir", cache_dir)
        self.skipped: dict[str, str] = {}
        self._listed: tuple[Entry, ...] | None = None
        self._own_size: tuple[int, int] | None = None

    def prepare_data(self) -> None:
        """Read the images, or what an earlier run has kept of them.

        Raises:
            ValueError: if a class has no images, none would be left to train on, they would not fit
                in memory, or the folder cannot be read.
        """
        self.skipped = dict(self._load().skipped)

    def measure(self) -> None:
        if self.data_dir is None:
            for name in ("image_size", "mean", "std"):
                if getattr(self, name) is None:
                    raise ValueError(
                        f"{name}=null: expected what the network was trained with, since "
                        "data_dir=null has no images to find it out from"
                    )
        super().measure()

    def training_images(self) -> tuple[ImageTensors, ImageTensors]:
        images = self._load()
        return images.train, images.val

    def test_images(self) -> ImageTensors:
        return self._load().test

    def read_picture(self, path: Path) -> Tensor:
        """A picture, read and resized as those of the folder: (channels, height, width) uint8.

        Raises:
            ValueError: saying why, if the file cannot be used.
        """
        return decode(path, self._form()._replace(exact=False))

    def _load(self) -> "_Images":
        entries = self._entries()
        assert self.data_dir is not None
        sizes = (self.val_size, self.test_size, self.split_seed)
        images = _load(
            self.data_dir, entries, self._form(), self.cache_dir, tuple(self.classes), *sizes
        )
        self.sha256["all"] = images.sha256
        return images

    def _entries(self) -> tuple[Entry, ...]:
        if self.data_dir is None:
            raise ValueError("data_dir=null: expected a folder of images")
        if self._listed is None:
            self._listed = list_images(self.data_dir, self.classes)
        return self._listed

    def _form(self) -> Form:
        if self.image_size is not None:
            return Form(*self.image_size, self.channels, self.resize)
        if self.data_dir is None:
            raise ValueError("image_size=null: expected a size, since data_dir=null has no images")
        if self._own_size is None:
            self._own_size = _size_of_first(self.data_dir, self._entries())
        return Form(*self._own_size, self.channels, self.resize, exact=True)


class _Images(NamedTuple):
    train: ImageTensors
    val: ImageTensors
    test: ImageTensors
    skipped: tuple[tuple[str, str], ...]
    sha256: str


# The jobs of a sweep share one copy.
@lru_cache(maxsize=1)
def _load(
    root: Path,
    entries: tuple[Entry, ...],
    form: Form,
    cache_dir: Path | None,
    classes: tuple[str, ...],
    val_size: int | float,
    test_size: int | float,
    split_seed: int,
) -> _Images:
    _require_memory(len(entries), form)
    try:
        pictures = read_pictures(root, entries, form, cache_dir)
    except OtherSizeError as error:
        raise ValueError(
            f"image_size=null: expected images of one size, but {error} and another "
            f"{form.height}x{form.width}; expected a size, such as {form.height}"
        ) from error
    except OSError as error:
        raise ValueError(f"data_dir={root}: cannot be read ({error})") from error
    kept = [entries[i] for i in pictures.indices.tolist()]
    asked, found = ({(entry.part, entry.label) for entry in some} for some in (entries, kept))
    for part, label in sorted(asked - found):
        where = f"{part}/{classes[label]}" if part else classes[label]
        raise ValueError(f"data_dir={root}: none of the images in {where} can be read")
    parts = split(kept, classes, val_size, test_size, split_seed)
    # Stable: where folders say what images are for, they stand in this order already.
    order = sorted(range(len(kept)), key=lambda i: PARTS.index(parts[i]))
    images, labels = pictures.images, torch.tensor([entry.label for entry in kept])
    if order != list(range(len(kept))):
        images, labels = images[torch.tensor(order)], labels[order]
    counts = [parts.count(part) for part in PARTS]
    splits = zip(torch.split(images, counts), torch.split(labels, counts), strict=True)
    train, val, test = (ImageTensors(*tensors) for tensors in splits)
    return _Images(train, val, test, tuple(pictures.skipped.items()), pictures.sha256)


def _require_memory(count: int, form: Form) -> None:
    """Refuse what would not fit, while nothing has been read yet."""
    # Twice: as read, and in the order of training, validation and test images.
    one = 2 * form.channels * form.height * form.width
    free = free_memory()
    if free is None or (needed := one * count) <= free:
        return
    largest = int((free / (2 * form.channels * count)) ** 0.5)
    size = "null" if form.exact else f"[{form.height}, {form.width}]"
    raise ValueError(
        f"image_size={size}: expected at most about {largest}: {count:,} images of "
        f"{form.channels}x{form.height}x{form.width} take {needed / 1e9:.1f} GB while they are "
        f"read, and {free / 1e9:.1f} GB of memory are free"
    )


def _size_of_first(root: Path, entries: tuple[Entry, ...]) -> tuple[int, int]:
    """Height and width of the first image that says so."""
    for entry in entries:
        with suppress(ValueError):  # a broken image is named when all are read
            return picture_size(root / entry.path)
    raise ValueError(f"data_dir={root}: none of the images can be read")


def _checked_image_size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else size
    is_pair = isinstance(sides, Sequence) and not isinstance(sides, str) and len(sides) == 2
    if not is_pair or not all(type(side) is int and 0 < side <= _LARGEST for side in sides):
        raise ValueError(
            f"image_size={size}: expected null, a number of pixels from 1 to {_LARGEST}, or "
            "[height, width]"
        )
    return (sides[0], sides[1])


_LARGEST = 8192
