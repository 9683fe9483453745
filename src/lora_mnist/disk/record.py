"""The record in the file of a base or an adapter: all that a command needs beside the weights.

It is a dictionary of plain, resolved values: the network, ``net``, with its ``_target_`` and
arguments; the images and how they are prepared, ``data``, likewise; the name of the ``dataset``;
and how the weights were ``made``. An adapter's also has the ``base_sha256`` and the ``targets``,
the names of the classes that it repairs. The file may be somebody else's, and a ``_target_`` names
code: :func:`foreign_code` says what may not be run because a file names it.
"""

import logging
import re
from collections.abc import Mapping
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

from lora_mnist.errors import UserError
from lora_mnist.project import DATA

log = logging.getLogger(__name__)

#: Keys of ``data`` that belong to one training, and not to the images.
TRAINING_KEYS = ("augment", "batch_size", "replay", "mistakes", "mistakes_test", "seed")
#: Keys of ``data`` that say which images are held out.
SPLIT_KEYS = ("val_size", "val_from", "test_size", "split_seed")
#: Keys of ``data`` that say how an image is prepared for the network, and what it then predicts.
#: With a ``transform``, the network's input is that of the transform alone.
PREPROCESSING_KEYS = (
    *("classes", "channels", "image_size", "resize", "crop_pct", "interpolation"),
    *("mean", "std", "transform"),
)
_REPLACED_BY_TRANSFORM = PREPROCESSING_KEYS[2:-1]
#: Keys of ``data`` in older records that say nothing about a prediction.
_UNUSED_KEYS = ("labels", "in_memory")
#: Those that a ``data.transform`` stands for today, with the only value that is left.
_ONLY_VALUES = {"color_order": "rgb", "antialias": True}

#: Functions that are called without trust=true. No whole package: torchvision.io.os is in one.
_KNOWN_FUNCTIONS = re.compile(
    r"lora_mnist\.(MLP|CNN|data\.(MNIST|Folder))"
    r"|torchvision\.models\.\w+(\.\w+\.transforms)?|torchvision\.transforms\.(v2\.)?\w+"
    r"|timm\.create_model|timm\.data\.create_transform"
)
#: Arguments of ``timm.create_model`` that read no file and fetch none; ``model_name`` may do both.
_KNOWN_ARGUMENTS = """
_target_ model_name num_classes in_chans img_size patch_size global_pool drop_rate drop_path_rate
"""


#: Names of classes in older records.
_FORMER_NAMES = {
    "lora_mnist.data.MNISTDataModule": "lora_mnist.data.MNIST",
    "lora_mnist.data.FolderDataModule": "lora_mnist.data.Folder",
}


def make_record(
    settings: Mapping[str, Mapping[str, Any]],
    dataset: str,
    preprocessing: Mapping[str, Any],
    made: Mapping[str, Any],
) -> dict[str, Any]:
    """The record of what was trained on ``settings``, the resolved arguments of net and data.

    ``preprocessing`` are those of the data set, some of them measured. ``data_dir`` is absolute;
    the project's own ``data/`` is left out, since each machine has one. ``made`` says how.
    """
    data = {key: value for key, value in settings["data"].items() if value is not None}
    for key in ("num_workers", "eval_batch_size"):  # a machine's own
        data.pop(key, None)
    if "data_dir" in data:
        folder = Path(data["data_dir"]).expanduser().absolute()
        data["data_dir"] = str(folder)
        if folder == DATA:
            del data["data_dir"]
    versions = {package: version(package) for package in ("lora-mnist", "torch")}
    return {
        "dataset": dataset,
        "net": dict(settings["net"]),
        "data": {**data, **preprocessing},
        "made": {**made, "versions": versions},
    }


def upgraded(data: Mapping[str, Any], transform: object = None) -> dict[str, Any]:
    """``data`` of a record without keys and names that older versions had, and this one has not.

    ``ValueError``, if one had a value with which images were prepared in a way that is left to a
    transform of one's own today, and neither the record nor ``transform`` is one.
    """
    has_transform = transform or data.get("transform")
    for key, only in _ONLY_VALUES.items():
        if data.get(key, only) != only and not has_transform:
            raise ValueError(
                f"its file names data.{key}={data[key]}, which is no key any more; expected "
                "data.transform, a transform of your own that prepares images so"
            )
    former = (*_UNUSED_KEYS, *_ONLY_VALUES)
    current = {key: value for key, value in data.items() if key not in former}
    if current.get("_target_") in _FORMER_NAMES:
        current["_target_"] = _FORMER_NAMES[current["_target_"]]
    return current


def fill(
    settings: Mapping[str, Mapping[str, Any]],
    record: Mapping[str, Any],
    named: str | None = None,
    trust: bool = False,
    folders: list[Path] | None = None,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The settings with the values of a record that they lack, and the keys of these values.

    ``named`` is the override that names the record's file, which may be a stranger's: code in it is
    refused without ``trust``, and else looked for in the folder of its training, too, which is
    added to ``folders``. ``None``: the record is of our own making.
    """
    filled, keys = {}, []
    for group, own in settings.items():
        try:
            stored = upgraded(record.get(group, {}), own.get("transform"))
        except ValueError as error:
            raise UserError(f"{named}: {error}") from error
        values = inherited(own, stored)
        foreign = foreign_code(values, group, own.get("_target_")) if named else None
        if foreign and not trust:
            raise UserError(
                f"{named}: its file names {foreign}, which could run code; expected trust=true to "
                "run it, or net=... and data=... as in training"
            )
        if foreign and folders is not None and "folder" in record.get("made", {}):
            folders.append(Path(record["made"]["folder"]))
        filled[group] = {**own, **values}
        if group == "data":
            keys += [key for key in values if key != "_target_"]
        elif values:
            keys.append(group)
    return filled, keys


def inherited(own: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ``stored`` that ``own`` lacks: arguments of one function, nested ones too.

    A value is lacking if it is ``None``. Where the two name different ``_target_``, only the
    preprocessing is taken, and only keys that ``own`` has.
    """
    is_same = own.get("_target_") in (None, stored.get("_target_"))
    taken: dict[str, Any] = {}
    for key, value in stored.items():
        mine = own.get(key)
        if isinstance(mine, Mapping) and isinstance(value, Mapping):
            if part := inherited(mine, value):
                taken[key] = {**mine, **part}
        elif mine is None and (is_same or (key in own and key in PREPROCESSING_KEYS)):
            taken[key] = value
    if own.get("transform"):
        for key in _REPLACED_BY_TRANSFORM:
            taken.pop(key, None)
    return taken


def warn_of_other_split(
    dataset: object, settings: Mapping[str, Any], record: Mapping[str, Any]
) -> None:
    """Say so where a base with this record may have been trained on images that are held out.

    ``dataset`` has the arguments ``settings``, and defaults for those that are ``None``.
    """
    made, data = record.get("made", {}), record.get("data", {})
    if "val_size" not in made or data.get("data_dir") != settings.get("data_dir"):
        return  # a base that was not trained here, or on other images
    trained = {**data, "val_size": made["val_size"]}
    arguments = signature(type(dataset)).parameters
    for key in SPLIT_KEYS:
        default = arguments[key].default if key in arguments else None
        now: Any = settings.get(key)
        then: Any = trained.get(key)
        now, then = default if now is None else now, default if then is None else then
        if now > then if key == "val_size" else now != then:
            log.warning(
                "data.%s=%s: the base was trained with %s on these images, and may have been "
                "trained on some that are now held out",
                *(key, now, then),
            )


def foreign_code(settings: Any, key: str, function: str | None = None) -> str | None:
    """The first value in ``settings`` that could run code, or read a file, that a stranger chose.

    ``settings`` are arguments of their ``_target_`` or, without one, of ``function``. Returned is
    the value's key, which begins with ``key``, and the value; ``None`` if there is none.
    """
    if isinstance(settings, str):
        return f"{key}={settings}" if "${" in settings else None
    if isinstance(settings, Mapping):
        target = settings.get("_target_")
        if target is not None and not _KNOWN_FUNCTIONS.fullmatch(str(target)):
            return f"{key}._target_={target}"
        function = target or function
        for name, value in settings.items():
            is_known = function != "timm.create_model" or name in _KNOWN_ARGUMENTS.split()
            is_plain = name != "model_name" or re.fullmatch(r"[\w.-]+", str(value))
            if not (is_known and is_plain) and value:
                return f"{key}.{name}={value}"
            if foreign := foreign_code(value, f"{key}.{name}"):
                return foreign
    elif isinstance(settings, list):
        for value in settings:
            if foreign := foreign_code(value, key):
                return foreign
    return None
