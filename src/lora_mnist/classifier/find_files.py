"""Finds the files of a classifier: the named ones, or an adapter and the base it was made for."""

from pathlib import Path

from lora_mnist.classifier.base import base_name, find_base_by_sha256, read_base_sha256
from lora_mnist.classifier.huggingface import WEIGHTS
from lora_mnist.classifier.networks import NETWORKS
from lora_mnist.classifier.record import NO_RECORD, Record, read_record
from lora_mnist.classifier.settings import Settings
from lora_mnist.data import is_published
from lora_mnist.errors import UserError, report_as
from lora_mnist.lora.adapter import read_metadata
from lora_mnist.lora.peft_lora import CONFIG_NAME
from lora_mnist.project import expand_path, format_program
from lora_mnist.run_paths import ADAPTER_FOLDER


def find_adapter(folder: str | Path | None) -> tuple[Path | None, Record]:
    """Return an adapter's folder, also for the folder of its run, and the adapter's record."""
    if folder is None:
        return None, NO_RECORD
    path = expand_path(folder)
    if not (path / CONFIG_NAME).exists() and (path / ADAPTER_FOLDER).is_dir():
        path = path / ADAPTER_FOLDER
    if not (path / CONFIG_NAME).is_file():
        raise UserError(
            f"adapter={folder}: expected the folder of an adapter, with {CONFIG_NAME} in it, or of "
            "the run that left it, or latest"
        )
    with report_as("adapter", joined="="):
        metadata = read_metadata(path)
    with report_as(f"adapter={path}"):
        return path, read_record(metadata)


def find_base(
    named: str | Path | None, bases: Path, settings: Settings, adapter: Path | None, record: Record
) -> Path:
    """Return the base's file: the named one, the adapter's own in ``bases``, or the current one.

    A folder of Hugging Face may be named. ``record`` is the adapter's.
    """
    if named is not None:
        path = expand_path(named)
        path = path / WEIGHTS if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"base_ckpt={path}: no such file ({path.absolute()})")
        return path
    path = bases / f"{base_name(settings.data, settings.net)}.ckpt"
    expected = record.base_sha256
    if expected is not None:
        own = find_base_by_sha256(bases, expected)
        if own is None and read_base_sha256(path) != expected:
            raise UserError(
                f"adapter={adapter}: its base was not found; expected base_ckpt=FILE, the weights "
                f"with SHA-256 {expected}"
            )
        path = own or path
    if path.is_file():
        return path
    images = expand_path(settings.data.get("data_dir") or ".")
    if not is_published(settings.data) and not images.is_dir():  # path has its name
        raise UserError(f"data.data_dir={images}: no such folder ({images.absolute()})")
    advice = ""
    if settings.net.get("_target_") in (None, *NETWORKS):
        same = "" if path.stem == base_name({}, {}) else " of the same data and net"
        advice = f"; make a base{same} with: {format_program('train')} stage=pretrain"
    raise UserError(f"base_ckpt={path}: no such file ({path.absolute()}){advice}")
