"""Which images of a folder are for training, validation and test."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lora_mnist.data.image_files import Entry


def split(
    entries: Iterable[Entry],
    classes: Sequence[str],
    val_size: float,
    test_size: float,
    seed: int,
    val_from: str = "train",
) -> dict[Entry, str]:
    """The purpose of each image: "train", "val" or "test".

    Where there is no ``val/`` or ``test/``, a share of each class, and one image at least, is taken
    from those to train on, by a hash of ``seed`` and the file's path. So adding files changes the
    choice little. With ``val_from="test"`` the validation images are such a share of the test
    images, and those of ``val/`` are trained on. ``ValueError``, if no image would be left to train
    on, or there are none to test on.
    """
    parts = {entry: entry.part for entry in entries}
    if val_from == "test":
        parts = {entry: "test" if part == "test" else "train" for entry, part in parts.items()}
    existing = set(parts.values())
    if not test_size and "test" not in existing:
        raise ValueError("test_size=0: expected more, since there is no folder test/")
    members: dict[tuple[int, str], list[Entry]] = defaultdict(list)
    for entry in sorted(parts, key=lambda e: hashlib.sha256(f"{seed} {e.path}".encode()).digest()):
        members[entry.label, parts[entry]].append(entry)
    for label, name in enumerate(classes):
        train, val, test = (members[label, part] for part in ("train", "val", "test"))
        readable = len(train)
        if "test" not in existing:
            count = max(1, round(test_size * readable))
            test, train = train[:count], train[count:]
        if val_size and "val" not in existing and (train or val_from == "test"):
            source, total = (test, len(test)) if val_from == "test" else (train, readable)
            count = max(1, round(val_size * total))
            val = source[:count]
            del source[:count]
        has_training = "train" in existing or "val" in existing  # a test/ alone is enough to test
        if (has_training and not train) or (val and val_from == "test" and not test):
            raise ValueError(
                f"val_size={val_size} test_size={test_size}: expected to leave some images of "
                f"{name} to train on, and to test on; {readable} of those to train on are readable"
            )
        parts |= dict.fromkeys(train, "train") | dict.fromkeys(val, "val")
        parts |= dict.fromkeys(test, "test")
    return parts


def repeated(root: Path, parts: Mapping[Entry, str]) -> list[Entry]:
    """Validation and test images whose file is, byte for byte, also that of a training image.

    So are test images that are also validation images. Only files of equal size are read.
    """
    sizes = {entry: (root / entry.path).stat().st_size for entry in parts}
    counts = Counter(sizes.values())
    first_part: dict[bytes, str] = {}
    repeats = []
    for entry in sorted(parts, key=lambda entry: ("train", "val", "test").index(parts[entry])):
        if counts[sizes[entry]] > 1:
            digest = hashlib.sha256((root / entry.path).read_bytes()).digest()
            if first_part.setdefault(digest, parts[entry]) != parts[entry]:
                repeats.append(entry)
    return repeats
