"""The settings of a classifier: each value comes from the first source that has it.

The sources, in their order:

1. what is typed, or stands in a file of the user's own
2. the adapter's record
3. the base's record
4. the network, where its makers say how pictures are prepared: timm, torchvision, Hugging Face
5. the defaults: which network and which data set, ``_DEFAULTS``; else those of their arguments
6. the images, where the rest is found or measured: :class:`.Folder`

A record may be a stranger's, and a ``_target_`` names code: :func:`foreign_code` says what is not
run because a record alone names it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lora_mnist.classifier.huggingface import TARGET
from lora_mnist.classifier.networks import DEFAULT, NETWORKS
from lora_mnist.classifier.preprocessing import own_preprocessing
from lora_mnist.classifier.record import Record
from lora_mnist.data import DATA_SETS, PUBLISHED
from lora_mnist.errors import SIZING, UserError, as_value
from lora_mnist.project import quoted

_GROUPS = ("net", "prepare", "data")
#: Functions that a record may name, ours and others'. No whole package: one has torchvision.io.os.
_OURS = {TARGET, "lora_mnist.data.Shift", *NETWORKS, *DATA_SETS}
_OF_OTHERS = re.compile(
    r"torchvision\.models\.\w+(\.\w+\.transforms)?|torchvision\.transforms\.(v2\.)?\w+"
    r"|timm\.create_model|timm\.data\.create_transform"
)
#: Arguments of ``timm.create_model`` that read no file and fetch none; ``model_name`` may do both.
_KNOWN_ARGUMENTS = """
_target_ model_name num_classes in_chans img_size patch_size global_pool drop_rate drop_path_rate
"""
#: What is made where nobody names anything else. A network is made before it can be asked.
_DEFAULTS = {"net": {"_target_": DEFAULT}, "data": {"_target_": PUBLISHED[0]}}


@dataclass(frozen=True)
class Settings:
    """Arguments of network, preparation and images; ``None`` stands for one that is missing.

    Each source is a method, which adds what those before it have not said.
    """

    net: dict[str, Any]
    prepare: dict[str, Any]
    data: dict[str, Any]
    typed: Mapping[str, Mapping[str, Any]]  # the three as they were typed
    notes: tuple[str, ...] = ()  # what comes from where, for the log

    @classmethod
    def of_typed(
        cls, net: Mapping[str, Any], prepare: Mapping[str, Any], data: Mapping[str, Any]
    ) -> "Settings":
        """What is typed, and nothing else."""
        prepare, size = dict(prepare), prepare.get("image_size")
        if type(size) is int:
            prepare["image_size"] = [size, size]  # as records have it
        typed = {"net": net, "prepare": prepare, "data": data}
        return cls(dict(net), prepare, dict(data), typed)

    def with_record(self, who: str, record: Record, file: str) -> "Settings":
        """With what a record adds; ``file`` is the override that names its file."""
        settings, taken = self._filled(record.settings)
        settings._refuse_foreign_code(file)
        others = []
        for key, value in record.prepare.items():
            own = self.prepare.get(key)
            if own is not None and settings.prepare[key] != value:
                others.append(f"prepare.{key}={as_value(own)}")
        if taken:
            settings = settings.noting(f"from {who}: {', '.join(taken)}")
        if others:
            settings = settings.noting(f"other than in {who}: {', '.join(others)}")
        return settings

    def with_network(self, net: nn.Module) -> "Settings":
        """With what the network's makers add; a published data set has a form of its own."""
        if self.data["_target_"] in PUBLISHED:
            return self
        settings, taken = self._filled({"prepare": own_preprocessing(net, self.net, self.prepare)})
        return settings.noting(f"from the network: {', '.join(taken)}") if taken else settings

    def with_defaults(self) -> "Settings":
        """With what is made where nobody names anything else."""
        return self._filled(_DEFAULTS)[0]

    def noting(self, note: str) -> "Settings":
        """With one more line of what comes from where, for the log."""
        return replace(self, notes=(*self.notes, note))

    def _filled(self, values: Mapping[str, Any]) -> tuple["Settings", list[str]]:
        """With those of ``values``, by group, that are missing; and which these are."""
        groups, taken = dict[str, Any](), []
        for group in _GROUPS:
            own, stored = getattr(self, group), dict(values.get(group, {}))
            if group == "prepare" and own.get("transform") is not None:
                for key in (*SIZING, "mean", "std"):
                    stored.pop(key, None)  # the network's input is that of the transform alone
            if own.get("val_from") == "test" and stored.get("val_size") == 0:
                del stored["val_size"]  # it was said of the training images
            missing = _missing(own, stored)
            groups[group] = {**own, **missing}
            if group == "prepare":
                taken += [f"{key}={as_value(value)}" for key, value in missing.items()]
            elif missing:
                taken.append(group)
        return replace(self, **groups), taken

    def _refuse_foreign_code(self, file: str) -> None:
        """Refuse code that nobody typed."""
        # Two records may complete one function together: all arguments are looked at.
        for group in _GROUPS:
            own = getattr(self, group)
            for key, value in own.items():
                typed = self.typed[group].get(key)
                if foreign := foreign_code(own, key, value, typed):
                    line = quoted(f"{group}.{key}={as_value(value)}")
                    raise UserError(
                        f"{file}: its file names {foreign}, code of its maker: {line} runs it, "
                        "from where you stand"
                    )


def _missing(own: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ``stored`` that ``own`` lacks: arguments of one function, nested ones too."""
    if own.get("_target_") not in (None, stored.get("_target_")):
        return {}
    taken: dict[str, Any] = {}
    for key, value in stored.items():
        mine = own.get(key)
        if isinstance(mine, Mapping) and isinstance(value, Mapping):
            if part := _missing(mine, value):
                taken[key] = {**mine, **part}
        elif mine is None and value is not None:
            taken[key] = value
    return taken


def foreign_code(
    arguments: Mapping[str, Any], name: str, value: Any, typed: Any = None
) -> str | None:
    """What in an argument could run code, or read a file, and is not typed; ``None``: nothing."""
    if value == typed:
        return None
    if name == "transform" and isinstance(value, Mapping):
        own = typed if isinstance(typed, Mapping) else {}  # perhaps only a part is typed
        for key, each in value.items():
            if foreign := foreign_code(value, key, each, own.get(key)):
                return foreign
        return None
    if name == "transforms" and isinstance(value, list):  # of a Compose
        for each in value:
            if foreign := foreign_code(arguments, "transform", each):
                return foreign
        return None
    if name == "_target_":
        is_known = str(value) in _OURS or _OF_OTHERS.fullmatch(str(value))
        return None if is_known else str(value)
    is_harmless = _is_plain(value)
    if value and arguments.get("_target_") == "timm.create_model":
        if name not in _KNOWN_ARGUMENTS.split():
            is_harmless = False
        if name == "model_name" and not re.fullmatch(r"[\w.-]+", str(value)):  # a place of a file
            is_harmless = False
    return None if is_harmless else f"{name}={as_value(value)}"


def _is_plain(value: Any) -> bool:
    """Whether ``value`` is a text without ``${``, a number, a bool, None, or a list of these."""
    if isinstance(value, list | tuple):  # a base's file may have tuples, too
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return "${" not in value
    return value is None or isinstance(value, bool | int | float)
