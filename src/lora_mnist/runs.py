"""Runs on disk: which folder ``resume`` means, and the record by which a run is known.

A run that can be gone on with keeps ``checkpoints/run.json``: its settings, and whether it has
finished. Imports no torch: the command looks for its folder before anything else.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lora_mnist.disk.files import atomic_write, read_json
from lora_mnist.errors import UserError

#: In a run's folder.
CHECKPOINTS = "checkpoints"
_RUN_FILE = "run.json"
_MOST_BYTES = 4 << 20


class RunRecord(NamedTuple):
    """What ``run.json`` says of a run.

    Attributes:
        settings: by key, dots between nested ones, with plain values.
        finished: whether all that the run was to leave is there.
    """

    settings: Mapping[str, Any]
    finished: bool


def find_run(resume: object, runs: Path) -> Path:
    """The folder that ``resume`` names.

    Args:
        resume: the folder of a run, or ``latest``.
        runs: where the runs of this stage are, in folders named by the time.

    Raises:
        UserError: if there is no run to go on with.
    """
    if resume == "latest":
        found = sorted(path.parent.parent for path in runs.glob(f"*/{CHECKPOINTS}/{_RUN_FILE}"))
        if not found:
            raise UserError(f"resume=latest: expected a run in {runs}, found none")
        return found[-1]
    folder = Path(str(resume)).absolute()
    if not (folder / CHECKPOINTS / _RUN_FILE).is_file():
        raise UserError(
            f"resume={resume}: no run that can be gone on with; expected the folder of a run that "
            f"began to train, with {CHECKPOINTS}/{_RUN_FILE} in it, or latest"
        )
    return folder


def read_run(folder: Path) -> RunRecord:
    """The record of the run in ``folder``.

    Raises:
        ValueError: if it is damaged.
        OSError: if it cannot be read.
    """
    path = folder / CHECKPOINTS / _RUN_FILE
    try:
        content = read_json(path, _MOST_BYTES)
        record = RunRecord(content["settings"], content["finished"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged; expected the record of a run") from error
    if not isinstance(record.settings, dict) or not isinstance(record.finished, bool):
        raise ValueError(f"{path}: damaged; expected the record of a run")
    return record


def write_run(folder: Path, record: RunRecord) -> None:
    """Leave ``record`` in a run's folder.

    Raises:
        OSError: if it cannot be written.
    """
    with atomic_write(folder / CHECKPOINTS / _RUN_FILE) as path:
        path.write_text(json.dumps(record._asdict(), indent=1) + "\n")


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1, "c": [2]}}`` as ``{"a.b": 1, "a.c": [2]}``, with JSON's values."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = json.loads(json.dumps(value, default=str))
    return found
