"""Which images are in a folder, of which class, and which of them are held out."""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.fabric.utilities.rank_zero import rank_zero_only
from torchvision.datasets.folder import IMG_EXTENSIONS

from lora_mnist.errors import one_line

log = logging.getLogger(__name__)
_warn = rank_zero_only(log.warning)

#: What images are for. A folder may have a folder for each of them, with the classes in it.
PARTS = ("train", "val", "test")
_ORDER = {part: i for i, part in enumerate(("", *PARTS))}


class Entry(NamedTuple):
    """An image file.

    Attributes:
        path: below the folder, with ``/`` between.
        label: number of its class.
        part: one of :data:`PARTS`, or "" where no folder says so.
        size: in bytes.
        mtime_ns: when it was written last, in nanoseconds.
    """

    path: str
    label: int
    part: str
    size: int
    mtime_ns: int


def class_folders(root: Path, classes: Sequence[Any] | None = None) -> list[str]:
    """The names of the classes in ``root``, sorted, or in the order of ``classes``.

    Args:
        root: holds ``train/``, and perhaps ``val/`` and ``test/``, with a folder a class in each;
            or one folder a class. Whatever begins with ``.`` or ``__`` does not count.
        classes: the same names in the order in which a network was trained.

    Raises:
        ValueError: if there are fewer than two classes, or ``train/``, ``val/`` and ``test/``
            differ in them, or ``classes`` names others.
    """
    (_, first), *others = ((part, _folders(path)) for part, path in _parts(root).items())
    if odd := [name for name in first if not name.isprintable()]:
        raise ValueError(f"data_dir={root}: expected a printable name of a folder, not {odd[0]!a}")
    if len(first) < 2:
        found = f"only {first[0]}" if first else "none"
        raise ValueError(
            f"data_dir={root}: expected a folder for each of two or more classes, found {found}"
        )
    for part, names in others:
        differences = [
            f"lacks {', '.join(sorted(set(first) - set(names)))}" * (not set(first) <= set(names)),
            f"has {', '.join(sorted(set(names) - set(first)))}" * (not set(names) <= set(first)),
        ]
        if set(first) != set(names):
            raise ValueError(
                f"data_dir={root}: expected the classes of train/ in {part}/ too, which "
                f"{' and '.join(filter(None, differences))}"
            )
    return first if classes is None else _in_order(first, classes)


def _in_order(found: list[str], classes: Sequence[Any]) -> list[str]:
    names = named_classes(classes)
    if unknown := [name for name in names if name not in found]:
        raise ValueError(f"classes={names}: there is no folder {unknown[0]}; expected {found}")
    if len(names) < len(found):
        raise ValueError(f"classes={names}: expected every folder: {found}")
    return names


def named_classes(classes: Any) -> list[str]:
    """The names in ``classes``; one that looks like a number may be one.

    Raises:
        ValueError: if it is no list of two or more different names.
    """
    is_list = isinstance(classes, Sequence) and not isinstance(classes, str)
    if not is_list or not all(type(name) in (str, int) for name in classes):
        raise ValueError(f"classes={classes}: expected a list of names")
    names = [str(name) for name in classes]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"classes={names}: expected two or more names, each once")
    return names


def list_images(root: Path, classes: Sequence[str]) -> tuple[Entry, ...]:
    """The image files of ``root`` by part and path.

    Args:
        root: as for :func:`class_folders`.
        classes: the classes in the order of their labels.

    Raises:
        ValueError: if a class has no image, or the folder cannot be read.
    """
    label_of = {name: label for label, name in enumerate(classes)}
    strangers: list[str] = []

    def is_image(path: str) -> bool:
        name = os.path.basename(path)  # noqa: PTH119
        if name.startswith("."):  # .DS_Store and ._cat.jpg are no images of anybody's
            return False
        if not name.lower().endswith(IMG_EXTENSIONS):
            strangers.append(path)
            return False
        return True

    entries = []
    try:
        for part, folder in _parts(root).items():
            found = [
                (path, label)
                for name, label in label_of.items()
                for path in _files_below(os.path.join(folder, name))  # noqa: PTH118
                if is_image(path)
            ]
            for name in sorted(set(classes) - {classes[label] for _, label in found}):
                raise ValueError(
                    f"data_dir={root}: no images in {folder.relative_to(root) / name}; expected "
                    f"files that end in {', '.join(IMG_EXTENSIONS)}"
                )
            # Strings, since a hundred thousand Paths would take seconds.
            start = len(os.path.join(folder, ""))  # noqa: PTH118
            for path, label in found:
                name = f"{part}/{path[start:]}" if part else path[start:]
                state = _state(path)
                entry = (name.replace(os.sep, "/"), label, part, state.st_size, state.st_mtime_ns)
                entries.append(Entry(*entry))
    except OSError as error:
        raise ValueError(
            f"data_dir={root}: expected a folder that can be read ({error})"
        ) from error
    if strangers:
        _warn(
            "%d files left out, which are no images by their names: %s, ...",
            len(strangers),
            one_line(strangers[0]),
        )
    return tuple(sorted(entries, key=lambda entry: (_ORDER[entry.part], entry.path)))


def _files_below(folder: str) -> Iterator[str]:
    """The files in a folder and those in it; links are followed, but no folder comes twice."""
    seen = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        state = os.stat(path)  # noqa: PTH116
        if (place := (state.st_dev, state.st_ino)) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(place)
        yield from (os.path.join(path, name) for name in names)  # noqa: PTH118


def _state(path: str) -> os.stat_result:
    try:
        return os.stat(path)  # noqa: PTH116
    except OSError:  # a link to nowhere; when it is read, it is named and left out
        return os.lstat(path)


def _parts(root: Path) -> dict[str, Path]:
    """The folders that hold classes, by what their images are for; "" where nothing says so."""
    if not root.is_dir():
        raise ValueError(f"data_dir={root}: expected a folder of images; there is none")
    names, train = _folders(root), root / "train"
    # A folder called train may also be the class of the trains.
    if "train" in names and _folders(train):
        if others := [name for name in names if name not in PARTS]:
            raise ValueError(
                f"data_dir={root}: expected train/, val/ and test/ alone, or classes alone, not "
                f"{others[0]}/ beside train/"
            )
        return {part: root / part for part in PARTS if part in names}
    if names and set(names) <= set(PARTS) and any(_folders(root / name) for name in names):
        raise ValueError(f"data_dir={root}: expected train/ beside {names[0]}/")
    return {"": root}


def _folders(root: Path) -> list[str]:
    """The names of the folders in ``root``, sorted."""
    try:
        with os.scandir(root) as found:
            names = [entry.name for entry in found if entry.is_dir()]
    except OSError as error:
        raise ValueError(
            f"data_dir={root}: expected a folder that can be read ({error})"
        ) from error
    return sorted(name for name in names if not name.startswith((".", "__")))


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
        val_size: share of each class, one image at least; or a number of images in all, of each
            class in proportion to its size.
        test_size: likewise.
        seed: another seed holds out other images.

    Raises:
        ValueError: if no image would be left to train on, or there are none to test on.
    """
    parts = [entry.part or "train" for entry in entries]
    sizes = {
        part: size
        for part, size in (("test", test_size), ("val", val_size))
        if part not in parts and size
    }
    if "test" not in parts and not test_size:
        raise ValueError("test_size=0: expected more, since there is no folder test/")
    by_class: list[list[int]] = [[] for _ in classes]
    for i, entry in enumerate(entries):
        if parts[i] == "train":
            by_class[entry.label].append(i)
    counts = {part: _apportion(size, [len(of) for of in by_class]) for part, size in sizes.items()}
    for label, members in enumerate(by_class):
        taken = {part: of_class[label] for part, of_class in counts.items()}
        if sum(taken.values()) >= len(members):
            part = max(taken, key=lambda part: taken[part])
            uses = " and ".join(f"{count} go to {part}" for part, count in taken.items())
            raise ValueError(
                f"{part}_size={sizes[part]}: expected less: of the {len(members)} images of "
                f"{classes[label]}, {uses}, and none is left to train on"
            )
        members.sort(key=lambda i: _rank(entries[i].path, seed))
        for part, count in taken.items():
            for i in members[:count]:
                parts[i] = part
            del members[:count]
    return parts


def _rank(path: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {path}".encode(errors="surrogateescape")).digest()


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
