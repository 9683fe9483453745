"""Splits the images of a folder into train, val and test, by the names of the files."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora_mnist.data.listing import PARTS, ImageFile
from lora_mnist.errors import ArgumentError, require


def split(
    files: Iterable[ImageFile], classes: Sequence[str], settings: Mapping[str, Any]
) -> tuple[dict[ImageFile, str], dict[str, str]]:
    """Return each file's split and, for splits without a folder, the split they were taken from."""
    val_from, seed = settings["val_from"], settings["split_seed"]
    parts = {file: file.part for file in files}
    if val_from == "test":  # then images in val/ are trained on
        parts = {file: "test" if part == "test" else "train" for file, part in parts.items()}
    existing, held_out = set(parts.values()), {}
    if "test" not in existing:
        require(val_from == "train", "val_from", val_from, "train, since there is no folder test/")
        share = settings["test_size"]
        require(share > 0, "test_size", share, "a share above 0, since there is no folder test/")
        held_out["test"] = "train"
    if "val" not in existing:
        held_out["val"] = val_from

    def place(file: ImageFile) -> bytes:  # a hash: adding files changes the choice little
        return hashlib.sha256(os.fsencode(f"{seed} {file.path}")).digest()

    members: dict[tuple[int, str], list[ImageFile]] = defaultdict(list)
    for file in sorted(parts, key=place):
        members[file.label, parts[file]].append(file)
    for label, name in enumerate(classes):
        counts = {part: len(members[label, part]) for part in PARTS}
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
