"""One plain network out of a base and its adapters: folded, written, read back and compared."""

import copy
import json
import logging
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_mnist.config import build_data, build_net, require_fit, require_known_keys
from lora_mnist.data import FolderDataModule, ImageDataModule
from lora_mnist.disk.files import atomic_write
from lora_mnist.errors import UserError, missing_extra
from lora_mnist.load import load_adapters, load_base, with_latest_adapter
from lora_mnist.lora import base_state_dict, fingerprint, merge_lora

log = logging.getLogger(__name__)

#: How far a logit of the written network may be from the live one's, beside 1e-5 of its own size:
#: float32 rounds a logit of 100 by nearly as much.
TOLERANCE = 1e-4
# Another size than the example's: a network of fixed batch size would be noticed.
_BATCH = 100

Run = Callable[[Tensor], Tensor]


class Format(NamedTuple):
    """How a network is written to a file, and how the file is run."""

    write: Callable[[nn.Module, Tensor, dict[str, str], Path], None]
    read: Callable[[nn.Module, Path], Run]


_KEYS = (
    *("stage", "data", "net", "base_name", "base_ckpt", "adapter", "allow_other_base", "paths"),
    *("format", "out"),
)


def export(cfg: DictConfig, run_folder: Path | None = None) -> dict[str, str]:
    """Write the network of ``cfg.base_ckpt`` and ``cfg.adapter`` to ``cfg.out``.

    The file is read back, and on the whole test set it must give the predictions of the live
    network and its logits to :data:`TOLERANCE`; otherwise nothing is written. Where there is no
    data, ``data.data_dir=null``, that is found out on random images.

    Args:
        cfg: a configuration of ``configs/export.yaml``; it is not changed.
        run_folder: not used; an export leaves the one file that ``cfg`` names.

    Returns:
        The metadata in the file: what the network is made of, and what input it takes.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
        RuntimeError: if the written network computes something else than the live one.
    """
    require_known_keys(cfg, *_KEYS)
    form = _checked_format(cfg)
    cfg = with_latest_adapter(cfg)
    net = build_net(cfg)
    load_base(cfg, net)
    adapters = load_adapters(cfg, net)
    data, images, kind = _images_to_compare_on(cfg)
    require_fit(net, data, images[:2])

    def normalised(batch: Tensor) -> Tensor:
        return data.on_after_batch_transfer((batch, Tensor()), 0)[0]

    expected = logits(net.eval(), images, normalised)
    plain = merge_lora(copy.deepcopy(net)) if adapters else net
    metadata = _metadata(cfg, net, plain, data, images)
    try:
        with atomic_write(Path(cfg.out)) as path, warnings.catch_warnings():
            # Between torch's parts; nothing a user could act on.
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
            form.write(plain, normalised(images[[0, -1]]), metadata, path)
            difference = _compare(expected, logits(form.read(net, path), images, normalised))
    except OSError as error:
        raise UserError(f"out={cfg.out}: expected a file that can be written ({error})") from error
    names = "".join(f" + {name}" for name in adapters)
    log.info(
        "%s: base%s; same predictions as the live network on %s %s images, logits to %.1e",
        *(cfg.out, names, f"{len(images):,}", kind, difference),
    )
    return metadata


def _images_to_compare_on(cfg: DictConfig) -> tuple[ImageDataModule, Tensor, str]:
    """The data, images of it, uint8, and their kind; noise where ``data.data_dir`` is null."""
    if cfg.data.data_dir is None:
        data: ImageDataModule = build_data(cfg, None)
        if isinstance(data, FolderDataModule) and data.image_size:
            shape = (_BATCH, data.channels, *data.image_size)
            generator = torch.Generator().manual_seed(0)
            images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
            return data, images, "random"
    data = build_data(cfg, "test")
    return data, data.test_set.images, "test"


def logits(run: Run, images: Tensor, normalise: Run = lambda batch: batch) -> Tensor:
    """What ``run`` gives for all ``images``, (N, num_classes), batch by batch."""
    with torch.no_grad():
        return torch.cat([run(normalise(batch)) for batch in torch.split(images, _BATCH)])


def _compare(expected: Tensor, found: Tensor) -> float:
    """The largest difference of two sets of logits, once it was found to be small enough."""
    others = int((expected.argmax(1) != found.argmax(1)).sum())
    difference = (expected - found).abs().max().item()
    if others or not torch.allclose(found, expected, rtol=1e-5, atol=TOLERANCE):
        raise RuntimeError(
            f"the written network differs from the live one: {others} other predictions, "
            f"logits by up to {difference:.1e}; nothing was written"
        )
    return difference


def _checked_format(cfg: DictConfig) -> Format:
    if cfg.format not in _FORMATS:
        raise UserError(f"format={cfg.format}: expected one of {', '.join(_FORMATS)}")
    if not isinstance(cfg.out, str) or Path(cfg.out).is_dir():
        raise UserError(f"out={cfg.out or 'null'}: expected a file to write")
    if (form := _ENDINGS.get(Path(cfg.out).suffix.lower(), cfg.format)) != cfg.format:
        raise UserError(f"out={cfg.out}: expected another ending, or format={form}")
    if cfg.format == "onnx":
        try:
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise missing_extra("format=onnx", "onnx", error) from error
    return _FORMATS[cfg.format]


def _metadata(
    cfg: DictConfig, net: nn.Module, plain: nn.Module, data: ImageDataModule, images: Tensor
) -> dict[str, str]:
    channels, height, width = images.shape[1:]
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    return {
        "lora_mnist": version("lora-mnist"),
        "net": json.dumps(values["net"]),
        "base_sha256": fingerprint(base_state_dict(net)),
        "adapter": json.dumps(values["adapter"]),
        "sha256": fingerprint(plain.state_dict()),
        "dataset": str(data.name),
        "classes": json.dumps(data.classes),
        "input": f"float32 (batch, {channels}, {height}, {width}): (pixel / 255 - mean) / std",
        "mean": json.dumps(data.mean),
        "std": json.dumps(data.std),
    }


def _write_safetensors(
    net: nn.Module, example: Tensor, metadata: dict[str, str], path: Path
) -> None:
    save_file(dict(net.state_dict()), path, {"format": "pt", **metadata})


def _read_safetensors(net: nn.Module, path: Path) -> Run:
    """Load the file into a plain network of the same kind."""
    plain = copy.deepcopy(net)
    if plain.state_dict().keys() != base_state_dict(plain).keys():
        merge_lora(plain)
    with safe_open(path, framework="pt") as file:
        plain.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    return plain


def _write_torch_export(
    net: nn.Module, example: Tensor, metadata: dict[str, str], path: Path
) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (example,), dynamic_shapes=shapes)
    with path.open("wb") as file:  # a path would have to end in .pt2
        torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})


def _read_torch_export(net: nn.Module, path: Path) -> Run:
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _write_onnx(net: nn.Module, example: Tensor, metadata: dict[str, str], path: Path) -> None:
    program = torch.onnx.export(
        net,
        (example,),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None  # as it is without a file to write to
    program.model.metadata_props.update(metadata)
    program.save(str(path), external_data=False)


def _read_onnx(net: nn.Module, path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


_FORMATS = {
    "safetensors": Format(_write_safetensors, _read_safetensors),
    "onnx": Format(_write_onnx, _read_onnx),
    "torch_export": Format(_write_torch_export, _read_torch_export),
}
#: What a file with such an ending is taken for.
_ENDINGS = {".onnx": "onnx", ".safetensors": "safetensors", ".pt2": "torch_export"}
