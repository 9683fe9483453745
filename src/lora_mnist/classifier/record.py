"""The record in the file of a base or an adapter: settings and history, in resolved values."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_mnist.lora.errors import check_types
from lora_mnist.measure.class_weights import MEASURES

#: The version of the records that are written and read.
VERSION = 2
#: The types of the entries, checked since a stranger may have written the file; then of ``made``.
_TYPES: dict[str, Any] = {"dataset": str, **dict.fromkeys(("net", "prepare", "data", "made"), dict)}
_TYPES |= {"base_sha256": str | None, "targets": list | tuple, "train_digests": str | None}
_OF_MADE = {"choose_by": str | None, "seed": int | None, "augment": dict | None}


@dataclass(frozen=True)
class Record:
    """The description in the file of a base or an adapter; the last three are an adapter's."""

    dataset: str = ""  # its name
    net: Mapping[str, Any] = field(default_factory=dict)  # _target_ and arguments
    prepare: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(
        default_factory=dict
    )  # the folder of the images, and their split
    made: Mapping[str, Any] = field(default_factory=dict)  # overrides, choices, versions
    base_sha256: str | None = None
    targets: Sequence[str] = ()  # the names of the classes that it repairs
    train_digests: str | None = None  # the SHA-256 of its training images' digests

    @property
    def settings(self) -> dict[str, Mapping[str, Any]]:
        """The arguments of network, preprocessing and images."""
        return {"net": self.net, "prepare": self.prepare, "data": self.data}

    @property
    def choose_by(self) -> str:
        """The measure that decided: see :func:`.scale_curve.scale_curve`."""
        return str(self.made.get("choose_by", next(iter(MEASURES))))

    @property
    def seed(self) -> int:
        """The seed of its training."""
        return int(self.made.get("seed") or 0)

    @property
    def is_refit(self) -> bool:
        """True if the adapter was trained on the validation images too."""
        return bool(self.made.get("refit"))

    @property
    def knows_augment(self) -> bool:
        """True if the record says how training images were augmented."""
        return "augment" in self.made

    @property
    def augment(self) -> Any:
        """The arguments of the augmentation, or None if there was none or it is not known."""
        return self.made.get("augment")

    def content(self) -> dict[str, Any]:
        """Return the content for a file, which :func:`read_record` reads."""
        content = {"version": VERSION, **vars(self)}
        if self.base_sha256 is None:  # of a base
            del content["base_sha256"], content["targets"], content["train_digests"]
        return content


#: The record of a file from elsewhere.
NO_RECORD = Record()


def read_record(content: Mapping[str, Any]) -> Record:
    """Read the record in a file. Raise ValueError if it is damaged or of another version."""
    values = {name: content[name] for name in _TYPES if name in content}
    try:
        json.dumps(values)
    except (TypeError, ValueError) as error:  # a tensor, a mapping that holds itself
        raise ValueError(f"its record is damaged: {error}") from error
    record = Record(**values)
    if any(record.settings.values()):  # somebody else's file has none
        if (version := content.get("version")) != VERSION:
            raise ValueError(
                f"its record has the version {version}, of another release of lora-mnist; expected "
                f"{VERSION}: make the file again with this release"
            )
        for group in ("net", "prepare"):
            if not record.settings[group]:
                raise ValueError(f"its record is damaged: {group} is missing")
    check_types(vars(record), _TYPES)
    check_types(record.made, _OF_MADE)
    return record
