"""What the file of a base or an adapter says of it, in resolved values: its record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from lora_mnist.measure.counts import MEASURES

#: The version of the records that are written and read.
VERSION = 1


@dataclass(frozen=True)
class Record:
    """All that a command needs to know; the last three are of an adapter alone."""

    dataset: str = ""  # its name
    net: Mapping[str, Any] = field(default_factory=dict)  # _target_ and arguments
    prepare: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)  # where images lay, how some are held out
    made: Mapping[str, Any] = field(default_factory=dict)  # by what: overrides, choices, versions
    base_sha256: str | None = None
    targets: Sequence[str] = ()  # the names of the classes that it repairs
    learnt: str | None = None  # the fingerprint of the digests of what it has learnt

    @property
    def settings(self) -> dict[str, Mapping[str, Any]]:
        """The arguments of network, preparation and images."""
        return {"net": self.net, "prepare": self.prepare, "data": self.data}

    @property
    def choose_by(self) -> str:
        """What decided: see :func:`.dial.dial_curve`."""
        return str(self.made.get("choose_by", MEASURES[0]))

    @property
    def seed(self) -> int:
        """The seed of its training."""
        return int(self.made.get("seed") or 0)

    @property
    def is_refit(self) -> bool:
        """Whether it has learnt the validation images, too."""
        return bool(self.made.get("refit"))

    @property
    def knows_augment(self) -> bool:
        """Whether it says how training images were changed."""
        return "augment" in self.made

    @property
    def augment(self) -> Any:
        """What changed training images, as arguments; ``None``: nothing, or it is not known."""
        return self.made.get("augment")

    def content(self) -> dict[str, Any]:
        """What is written into a file, for :func:`read_record`."""
        content = {"version": VERSION, "dataset": self.dataset, **self.settings, "made": self.made}
        if self.base_sha256 is not None:
            content |= {"base_sha256": self.base_sha256, "targets": self.targets}
            content["learnt"] = self.learnt
        return content


#: Of somebody else's file.
NO_RECORD = Record()


def read_record(content: Mapping[str, Any]) -> Record:
    """The record in a file; ``ValueError``, if it is damaged or of another version."""
    names = [each.name for each in fields(Record)]
    record = Record(**{name: content[name] for name in names if name in content})
    if any(record.settings.values()):  # somebody else's file has none
        if (version := content.get("version")) != VERSION:
            raise ValueError(f"its record has the version {version}; expected {VERSION}")
        for group in ("net", "prepare"):
            if not record.settings[group]:
                raise ValueError(f"its record is damaged: {group} is missing")
    return record
