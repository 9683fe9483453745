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
) -> tuple[dict[Entry, str], dict[str, str]]:
    """The purpose of each image, "train", "val" or "test", and which part is held out of which.

    Where there is no ``val/`` or ``test/``, a share of each class, and one image at least, is taken
    from those to train on, by a hash of ``seed`` and the file's path. So adding files changes the
    choice little. With ``val_from="test"`` the validation images are such a share of the test
    images, and those of ``val/`` are trained on. ``ValueError``, if no image would be left to train
    on, or there are none to test on.
    """
    parts = {entry: entry.part for entry in entries}
    if val_from == "test":
        parts = {entry: "test" if part == "test" else "train" for entry, part in parts.items()}
    existing, held_out = set(parts.values()), {}
    if "val" not in existing:
        held_out["val"] = val_from
    if "test" not in existing:
        held_out["test"] = "train"
    if not test_size and "test" in held_out:
        raise ValueError("test_size=0: expected more, since there is no folder test/")
    members: dict[tuple[int, str], list[Entry]] = defaultdict(list)
    for entry in sorted(parts, key=lambda e: hashlib.sha256(f"{seed} {e.path}".encode()).digest()):
        members[entry.label, parts[entry]].append(entry)
    for label, name in enumerate(classes):
        train, val, test = (members[label, part] for part in ("train", "val", "test"))
        readable = len(train)
        if "test" in held_out:
            test = _take(train, test_size, readable)
        if "val" in held_out and val_from == "train":
            val = _take(train, val_size, readable)
        elif "val" in held_out:
            val = _take(test, val_size, len(test))
        is_trained = existing != {"test"}  # a test/ alone is enough to test
        if (is_trained and not train) or (val and val_from == "test" and not test):
            raise ValueError(
                f"val_size={val_size} test_size={test_size}: expected to leave some images of "
                f"{name} to train on, and to test on; {readable} of those to train on are readable"
            )
        for part, images in (("train", train), ("val", val), ("test", test)):
            parts |= dict.fromkeys(images, part)
    return parts, held_out


def _take(images: list[Entry], share: float, total: int) -> list[Entry]:
    """Take the first ``share`` of ``total`` images out of a list; one at least, if any."""
    count = max(1, round(share * total)) if share else 0
    taken = images[:count]
    del images[:count]
    return taken


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
