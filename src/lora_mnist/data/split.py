"""Splits the images of a folder into train, val and test, by the names of the files."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora_mnist.data.listing import SPLITS, ImageFile
from lora_mnist.errors import ArgumentError, require


def split_files(
    files: Iterable[ImageFile], classes: Sequence[str], settings: Mapping[str, Any]
) -> tuple[dict[ImageFile, str], dict[str, str]]:
    """Return each file's split and, for splits without a folder, the split they were taken from."""
    val_from, seed = settings["val_from"], settings["split_seed"]
    splits = {file: file.split for file in files}
    if val_from == "test":  # then images in val/ are trained on
        splits = {file: "test" if split == "test" else "train" for file, split in splits.items()}
    existing, held_out = set(splits.values()), {}
    if "test" not in existing:
        require(val_from == "train", "val_from", val_from, "train, since there is no folder test/")
        share = settings["test_size"]
        require(share > 0, "test_size", share, "a share above 0, since there is no folder test/")
        held_out["test"] = "train"
    if "val" not in existing:
        held_out["val"] = val_from

    def place(file: ImageFile) -> bytes:  # by hash: new files change the split little
        return hashlib.sha256(os.fsencode(f"{seed} {file.path}")).digest()

    members: dict[tuple[int, str], list[ImageFile]] = defaultdict(list)
    for file in sorted(splits, key=place):
        members[file.label, splits[file]].append(file)
    for label, name in enumerate(classes):
        counts = {split: len(members[label, split]) for split in SPLITS}
        for split, source in held_out.items():  # the test images first
            share = settings[f"{split}_size"]
            count = max(1, round(share * counts[source])) if share else 0
            splits |= dict.fromkeys(members[label, source][:count], split)
            del members[label, source][:count]
            if counts[source] and not members[label, source]:
                expected = f"expected an image of {name} to be left in {source}, which has "
                expected += f"{counts[source]}; a share above 0 takes one at least"
                raise ArgumentError(f"{split}_size", share, expected)
    return splits, held_out
