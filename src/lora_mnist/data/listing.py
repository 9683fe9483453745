"""Lists the image files below a folder, by class and by split."""

import logging
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from torchvision.datasets.folder import IMG_EXTENSIONS

from lora_mnist.errors import ArgumentError, format_value, printable, require, suggest_nearest

log = logging.getLogger(__name__)

#: The splits, and other folder names for them.
SPLITS = ("train", "val", "test")
_ALSO_CALLED = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


class ImageFile(NamedTuple):
    """An image file of a folder."""

    path: str  # below the data folder, with "/" between
    label: int
    split: str  # train, val or test, by its folder; train without such folders


class Listing:
    """The folders of classes below ``root``: in train/, val/ and test/, or directly."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def splits(self) -> dict[Path, str]:
        """The folders that have folders of classes, and the split of each."""
        splits, others = {}, []
        for name in subfolders(self.root):
            split = _ALSO_CALLED.get(name.lower(), name.lower())
            if split in SPLITS and subfolders(self.root / name):  # without any, train/ is a class
                splits[self.root / name] = split
            else:
                others.append(name)
        if splits and others:
            other = printable(self.root / others[0])
            log.warning("%s is ignored: it is not called train/, val/ or test/", other)
        return splits or {self.root: "train"}

    @cached_property
    def classes(self) -> list[str]:
        """The names of the folders of classes, sorted: of those in train/, if there is one."""
        folders = [folder for folder, split in self.splits.items() if split == "train"]
        names = {name for folder in folders or self.splits for name in subfolders(folder)}
        require(len(names) > 1, "data_dir", self.root, "a folder for each of two classes")
        return sorted(names)

    def files(self, classes: Sequence[str]) -> list[ImageFile]:
        """Return the image files, sorted by path; ``classes`` sets another order of the labels."""
        expected = f"the folders of {self.root}: {format_value(self.classes)}"
        require(sorted(classes) == self.classes, "classes", classes, expected)
        files, others = [], []
        for folder, split in self.splits.items():
            for name in subfolders(folder):
                if name not in classes:
                    expected = f"expected the folders of train/, but {name} is none of them"
                    raise ArgumentError(
                        "data_dir", folder, expected + suggest_nearest(name, classes)
                    )
                label = classes.index(name)
                for file in files_below(folder / name):
                    path = file.relative_to(self.root).as_posix()
                    if file.name.lower().endswith(IMG_EXTENSIONS):
                        files.append(ImageFile(path, label, split))
                    else:
                        others.append(printable(path))
        if others:
            log.warning("%d files are not named as images: %s, ...", len(others), others[0])
        return sorted(files)


def subfolders(root: Path) -> list[str]:
    """Return the sorted names of the folders in ``root``, without ``.cache`` and ``__MACOSX``."""
    names = [path.name for path in root.iterdir() if path.is_dir()]
    return sorted(name for name in names if not name.startswith((".", "__")))


def files_below(root: Path) -> Iterator[Path]:
    """Yield the files in ``root`` and its folders, without hidden ones such as ``._cat.jpg``."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        here = Path(folder).resolve()
        if here in seen:  # links may form a cycle
            folders.clear()
        else:
            yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))
            # Of two links to a folder, the first is followed.
            folders[:] = sorted(name for name in folders if not name.startswith("."))
        seen.add(here)
