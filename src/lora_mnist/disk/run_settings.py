"""What a run's folder says of the network and the data that it was trained with, as plain values.

Nothing is imported or run for it. A ``_target_`` in it names code, and whoever makes something of
it asks :func:`foreign_code` first: the folder may be somebody else's.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from lora_mnist.disk.numbers import flatten

#: What may be looked up whoever names it. Not all of a package: ``torchvision.io.os.system``.
_KNOWN_CODE = re.compile(
    r"lora_mnist\.(MLP|CNN|data\.\w+DataModule)"
    r"|torchvision\.models\.\w+(\.\w+\.transforms)?|torchvision\.transforms\.(v2\.)?\w+"
    r"|timm\.create_model|timm\.data\.create_transform"
)
#: A reference to a key of the command that reads the settings; more can make a ``_target_``.
_REFERENCE = re.compile(r"\$\{[\w.]+\}")


class RunSettings(NamedTuple):
    """The groups ``net`` and ``data`` of a run's configuration, as written."""

    net: dict[str, Any]
    data: dict[str, Any]
    base_name: str
    folder: Path  # where the command was started: relative paths begin there


def read_run_settings(run: Path) -> RunSettings | None:
    """The settings in ``.hydra/`` of a run's folder; ``None`` where there are none."""
    files = run / ".hydra" / "config.yaml", run / ".hydra" / "hydra.yaml"
    if not all(file.is_file() for file in files):
        return None
    config: Any = OmegaConf.to_container(OmegaConf.load(files[0]))
    started = Path(str(OmegaConf.load(files[1]).hydra.runtime.cwd))
    return RunSettings(config["net"], config["data"], config["base_name"], started)


def foreign_code(settings: dict[str, Any]) -> list[str]:
    """What ``settings`` name that runs code, but for ours, torchvision's and timm's."""
    foreign = []
    for key, value in flatten(settings).items():
        text = str(value)
        if key.rpartition(".")[2] == "_target_":
            is_known = _KNOWN_CODE.fullmatch(text) is not None
        else:
            is_known = "${" not in text or _REFERENCE.fullmatch(text) is not None
        if not is_known:
            foreign.append(text)
    return foreign
