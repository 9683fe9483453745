"""The record in the file of a base or an adapter: all that a command needs beside the weights.

It is a dictionary of plain, resolved values: the network, ``net``, with its ``_target_`` and
arguments; the images and how they are prepared, ``data``, likewise; the name of the ``dataset``;
and how the weights were ``made``. An adapter's also has the ``base_sha256`` and the ``targets``,
the names of the classes that it repairs. The file may be somebody else's, and a ``_target_`` names
code: :func:`foreign_code` says what may not be run because a file names it.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lora_mnist.disk.numbers import affects_results

#: Keys of ``data`` that belong to one training, and not to the images.
TRAINING_KEYS = ("augment", "batch_size", "replay", "mistakes", "mistakes_test", "seed")
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
    r"lora_mnist\.(MLP|CNN|data\.\w+DataModule)"
    r"|torchvision\.models\.\w+(\.\w+\.transforms)?|torchvision\.transforms\.(v2\.)?\w+"
    r"|timm\.create_model|timm\.data\.create_transform"
)
#: Arguments of ``timm.create_model`` that read no file and fetch none; ``model_name`` may do both.
_KNOWN_ARGUMENTS = """
_target_ model_name num_classes in_chans img_size patch_size global_pool drop_rate drop_path_rate
"""


def make_record(
    cfg: DictConfig, dataset: str, preprocessing: Mapping[str, Any], overrides: Sequence[str] | None
) -> dict[str, Any]:
    """The record of what was trained with ``cfg``, by a command with these ``overrides``.

    ``preprocessing`` are the resolved arguments of the data module, some of them measured.
    ``data_dir`` is absolute; the project's own ``data/`` is left out, since each machine has one.
    """
    settings: Any = OmegaConf.to_container(cfg.data, resolve=True)
    for key in (*TRAINING_KEYS, "num_workers"):  # the last is a machine's own
        settings.pop(key, None)
    settings = {key: value for key, value in settings.items() if value is not None}
    if "data_dir" in settings:
        folder = Path(settings["data_dir"]).expanduser().absolute()
        settings["data_dir"] = str(folder)
        if folder == Path(cfg.paths.data):
            del settings["data_dir"]
    made = {
        "stage": cfg.stage,
        "overrides": [each for each in overrides or () if affects_results(each.partition("=")[0])],
        "folder": str(cfg.paths.here),
        "seed": cfg.seed,
        "versions": {package: version(package) for package in ("lora-mnist", "torch")},
    }
    return {
        "dataset": dataset,
        "net": OmegaConf.to_container(cfg.net, resolve=True),
        "data": {**settings, **preprocessing},
        "made": made,
    }


def without_former_keys(data: Mapping[str, Any], transform: object = None) -> dict[str, Any]:
    """``data`` of a record without keys that older versions had, and this one has not.

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
    return {key: value for key, value in data.items() if key not in former}


def inherited(own: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ``stored`` that ``own`` lacks: arguments of one function, nested ones too.

    A value is lacking if it is ``None``. Where the two name different ``_target_``, only the
    preprocessing is taken, and only keys that ``own`` has.
    """
    is_same = own.get("_target_") in (None, "???", stored.get("_target_"))
    taken: dict[str, Any] = {}
    for key, value in stored.items():
        mine = own.get(key)
        if isinstance(mine, Mapping) and isinstance(value, Mapping):
            if part := inherited(mine, value):
                taken[key] = {**mine, **part}
        elif mine in (None, "???") and (is_same or (key in own and key in PREPROCESSING_KEYS)):
            taken[key] = value
    if own.get("transform"):
        for key in _REPLACED_BY_TRANSFORM:
            taken.pop(key, None)
    return taken


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
