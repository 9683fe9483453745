"""The configuration of network and data in a run's folder, read as plain values.

Reading it imports and runs nothing. The folder may be somebody else's, and a ``_target_`` names
code: call :func:`foreign_code` before anything is made of it.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from lora_mnist.disk.numbers import flatten

#: Classes that are made without trust=true. No whole package: torchvision.io.os.system is in one.
_KNOWN_CODE = re.compile(
    r"lora_mnist\.(MLP|CNN|data\.\w+DataModule)"
    r"|torchvision\.models\.\w+(\.\w+\.transforms)?|torchvision\.transforms\.(v2\.)?\w+"
    r"|timm\.create_model|timm\.data\.create_transform"
)
#: A reference to a key of this command. Any other interpolation could become a ``_target_``.
_REFERENCE = re.compile(r"\$\{[\w.]+\}")


#: Keys of ``data`` that belong to one training, and not to the images.
TRAINING_KEYS = ("augment", "batch_size", "replay", "mistakes", "mistakes_test", "seed")


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
    """The names and interpolations in ``settings`` that run code other than known classes."""
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
