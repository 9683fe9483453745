"""The settings of a classifier: each value comes from the first source that has it.

The sources, in the order in which :meth:`.Classifier.load` asks them:

1. the command line, the user's own file, and the config.json of a Hugging Face folder
2. the adapter's record
3. the base's record
4. the default network and data set: ``_DEFAULT_TARGETS``
5. the preprocessing that the network's makers recommend: timm, torchvision, Hugging Face
6. the defaults of the network's and the data set's arguments
7. the images, on which missing values are found or measured: :class:`.Folder`

A record may be a stranger's, and a ``_target_`` names code: :mod:`.foreign_code`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from lora_mnist.classifier.foreign_code import refuse_foreign_code
from lora_mnist.classifier.networks import DEFAULT
from lora_mnist.classifier.preprocessing import find_preprocessing
from lora_mnist.classifier.record import Record
from lora_mnist.data import PUBLISHED, is_published
from lora_mnist.errors import SIZING, format_value

_GROUPS = ("net", "prepare", "data")
#: The default network and data set. A network is built before it is asked for its preprocessing.
_DEFAULT_TARGETS = {"net": {"_target_": DEFAULT}, "data": {"_target_": PUBLISHED[0]}}


@dataclass(frozen=True)
class Settings:
    """Arguments of network, preprocessing and images; ``None`` stands for one that is missing.

    Each source is a method that adds values which earlier sources lack.
    """

    net: dict[str, Any]
    prepare: dict[str, Any]
    data: dict[str, Any]
    given: Mapping[str, Mapping[str, Any]]  # all three as the user set them
    folder: Path | None = None  # of Hugging Face, if the network is from one
    notes: tuple[str, ...] = ()  # the sources of values, for the log

    @classmethod
    def from_command_line(
        cls,
        net: Mapping[str, Any],
        prepare: Mapping[str, Any],
        data: Mapping[str, Any],
        folder: Path | None = None,
    ) -> "Settings":
        """Return the settings of the command line alone."""
        prepare, size = dict(prepare), prepare.get("image_size")
        if type(size) is int:
            prepare["image_size"] = [size, size]  # as records have it
        given = {"net": net, "prepare": prepare, "data": data}
        return cls(dict(net), prepare, dict(data), given, folder)

    def with_record(self, who: str, record: Record, file: str) -> "Settings":
        """Return these settings, completed by a record from the override ``file``."""
        settings, taken = self._add_missing(record.settings)
        for group in _GROUPS:  # two records may complete one function together
            refuse_foreign_code(group, getattr(settings, group), self.given[group], file)
        others = []
        for key, value in record.prepare.items():
            own = self.prepare.get(key)
            if own is not None and settings.prepare[key] != value:
                others.append(f"prepare.{key}={format_value(own)}")
        if taken:
            settings = settings.with_note(f"from {who}: {', '.join(taken)}")
        if others:
            settings = settings.with_note(f"other than in {who}: {', '.join(others)}")
        return settings

    def with_makers_preprocessing(self, net: nn.Module) -> "Settings":
        """Add the makers' preprocessing; a published data set has a form of its own."""
        if is_published(self.data):
            return self
        own = find_preprocessing(net, self.net, self.prepare, self.folder)
        settings, taken = self._add_missing({"prepare": own})
        return settings.with_note(f"from the network: {', '.join(taken)}") if taken else settings

    def with_default_targets(self) -> "Settings":
        """Return these settings, completed by the default classes of network and data set."""
        return self._add_missing(_DEFAULT_TARGETS)[0]

    def with_note(self, note: str) -> "Settings":
        """Add a line about the source of values, for the log."""
        return replace(self, notes=(*self.notes, note))

    def _add_missing(self, values: Mapping[str, Any]) -> tuple["Settings", list[str]]:
        """Add missing values from ``values``, by group; return the settings and what was added."""
        groups, taken = dict[str, Any](), []
        for group in _GROUPS:
            own, stored = getattr(self, group), dict(values.get(group, {}))
            if group == "prepare" and own.get("transform") is not None:
                for key in (*SIZING, "mean", "std"):
                    stored.pop(key, None)  # the transform alone makes the network's input
            if own.get("val_from") == "test" and stored.get("val_size") == 0:
                del stored["val_size"]  # it was set for the training images
            missing = _select_missing(own, stored)
            groups[group] = {**own, **missing}
            if group == "prepare":
                taken += [f"{key}={format_value(value)}" for key, value in missing.items()]
            elif missing:
                taken.append(group)
        return replace(self, **groups), taken


def _select_missing(own: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of ``stored`` that ``own`` lacks, if both have the same ``_target_``."""
    if own.get("_target_") not in (None, stored.get("_target_")):
        return {}
    taken: dict[str, Any] = {}
    for key, value in stored.items():
        mine = own.get(key)
        if isinstance(mine, Mapping) and isinstance(value, Mapping):
            if part := _select_missing(mine, value):
                taken[key] = {**mine, **part}
        elif mine is None and value is not None:
            taken[key] = value
    return taken
