"""A white list of the code that a record may name, since a stranger may have written the record."""

import re
from collections.abc import Mapping
from typing import Any

from lora_mnist.classifier.huggingface import TARGET
from lora_mnist.classifier.networks import NETWORKS
from lora_mnist.data import DATA_SETS
from lora_mnist.errors import UserError, format_value
from lora_mnist.project import quote

#: Functions that a record may name. No whole packages: torchvision, for one, has torchvision.io.os.
_OURS = {TARGET, "lora_mnist.data.Shift", *NETWORKS, *DATA_SETS}
_OF_OTHERS = re.compile(
    r"torchvision\.models\.\w+(\.\w+\.transforms)?|torchvision\.transforms\.(v2\.)?\w+"
    r"|timm\.create_model|timm\.data\.create_transform"
)
#: Arguments of ``timm.create_model`` that may be in a record; ``model_name`` is checked as well.
_KNOWN_ARGUMENTS = """
_target_ model_name num_classes in_chans img_size patch_size global_pool drop_rate drop_path_rate
"""


def refuse_foreign_code(
    group: str, arguments: Mapping[str, Any], given: Mapping[str, Any], file: str
) -> None:
    """Raise if ``file`` names code in the arguments of ``group`` that is not allowed."""
    for key, value in arguments.items():
        if foreign := find_foreign_code(arguments, key, value, given.get(key)):
            line = quote(f"{group}.{key}={format_value(value)}")
            raise UserError(
                f"{file}: its file names {foreign}, code of its maker; to run it, set {line}, here "
                "or in your own file: --config-dir . classifier=NAME"
            )


def find_foreign_code(
    arguments: Mapping[str, Any], name: str, value: Any, given: Any = None
) -> str | None:
    """Return the value of an argument that could run code or read a file, or None."""
    if value == given:
        return None
    if name == "transform" and isinstance(value, Mapping):
        own = given if isinstance(given, Mapping) else {}  # perhaps only some arguments are given
        for key, each in value.items():
            if foreign := find_foreign_code(value, key, each, own.get(key)):
                return foreign
        return None
    if name == "transforms" and isinstance(value, list):  # of a Compose
        for each in value:
            if foreign := find_foreign_code(arguments, "transform", each):
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
    return None if is_harmless else f"{name}={format_value(value)}"


def _is_plain(value: Any) -> bool:
    """Return whether ``value`` is a number, bool, None, text without ``${``, or a list of these."""
    if isinstance(value, list | tuple):  # a base's file may have tuples, too
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return "${" not in value
    return value is None or isinstance(value, bool | int | float)
