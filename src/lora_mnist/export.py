"""Base and adapter written as one plain network, and checked."""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lora_mnist.classify import open_classifier
from lora_mnist.data import Batch, make_data
from lora_mnist.disk.files import atomic_write
from lora_mnist.errors import IncompleteError, UserError, require_extra
from lora_mnist.lora.base_state import fingerprint
from lora_mnist.lora.merge import merge_lora
from lora_mnist.project import Run
from lora_mnist.settings import checked_copy

log = logging.getLogger(__name__)

#: How far a logit of the written network may be from the live one's, as a share of the standard
#: deviation of all logits: float32 rounds a deep network's by a ten-thousandth of that.
TOLERANCE = 1e-3
#: The format that the ending of a file stands for.
_FORMATS = {".safetensors": "safetensors", ".onnx": "onnx"}


def export(cfg: DictConfig, run: Run | None = None) -> dict[str, str]:
    """Write the network of ``cfg.base_ckpt`` and ``cfg.adapter`` to ``cfg.out``.

    The written network must give the predictions of the live one on the whole test set, or on noise
    where that is not here, and its logits as far as :data:`TOLERANCE`; otherwise there is no file.

    Args:
        cfg: a configuration of ``configs/export.yaml``; it is not changed.
        run: how the command was typed; an export leaves the one file that ``cfg`` names.

    Returns:
        The metadata in the file: how the network is made, and what input it takes.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
        IncompleteError: if the written network computes something else than the live one.
    """
    cfg = checked_copy(cfg)
    if cfg.format not in _FORMATS.values():
        raise UserError(f"format={cfg.format}: expected one of {', '.join(_FORMATS.values())}")
    out = Path(str(cfg.out or "."))
    if out.exists():  # it may be somebody's weights, or a base
        raise UserError(f"out={cfg.out or 'null'}: expected a new file, which does not exist yet")
    if (form := _FORMATS.get(out.suffix.lower(), cfg.format)) != cfg.format:
        raise UserError(f"out={out}: expected another ending, or format={form}")
    if cfg.format == "onnx":
        require_extra("format=onnx", "onnx", "onnxruntime", "onnxscript")
    classifier = open_classifier(cfg, run)
    cfg, net, data = classifier.settings, classifier.net, classifier.data
    plain = merge_lora(copy.deepcopy(net)) if cfg.adapter else net
    picture = classifier.prepare(Image.linear_gradient("L"))
    # torch.export would keep the size of a batch of one constant.
    example = torch.stack([picture, picture])
    adapter, outputs = cfg.adapter, cfg.paths.outputs
    if adapter and Path(adapter).is_relative_to(outputs):  # the file may be given away
        adapter = str(Path(adapter).relative_to(outputs))
    about: dict[str, Any] = {
        "net": OmegaConf.to_container(cfg.net, resolve=True),
        "adapter": adapter,
        "scale": classifier.scale,
        "classes": data.classes,
        "channels": data.channels,
        **data.preprocessing(),
    }
    transform = "(pixel / 255 - mean) / std"
    if cfg.data.get("transform"):  # one of the user's own, in the place of mean and std
        transform = json.dumps(OmegaConf.to_container(cfg.data.transform, resolve=True))
    metadata = {key: json.dumps(value) for key, value in about.items()}
    channels, height, width = picture.shape
    metadata |= {
        "lora_mnist": version("lora-mnist"),
        "base_sha256": classifier.base_sha256,
        "sha256": fingerprint(plain.state_dict()),
        "dataset": str(data.name),
        "prepared_by": str(cfg.data._target_),
        "input": f"float32 (batch, {channels}, {height}, {width}): {transform}",
    }
    batches, images = _images_to_compare(cfg, example)
    try:
        with atomic_write(out) as path:
            written = _write(cfg.format, plain, example, metadata, path)
            largest = _compare(cfg, net, written, batches)
    except OSError as error:
        raise UserError(f"out={cfg.out}: expected a file that can be written ({error})") from error
    parts = f"base and adapter at scale {classifier.scale:g}" if cfg.adapter else "base"
    message = "%s: %s; same predictions as the live network on %s, logits to %.1e"
    log.info(message, cfg.out, parts, images, largest)
    return metadata


def _images_to_compare(cfg: DictConfig, example: Tensor) -> tuple[Iterable[Batch], str]:
    """Batches of the test images or, where these are not here, of noise; and their description."""
    try:
        tested = make_data(cfg, "test")
    except UserError as error:
        noise = torch.randn(200, *example.shape[1:], generator=torch.Generator().manual_seed(0))
        log.info("no test images here (%s)", error)
        return [(noise, torch.zeros(200))], "200 images of noise"
    return tested.batches(tested.test_set), f"{len(tested.test_set):,} test images"


def _write(
    form: str, net: nn.Module, example: Tensor, metadata: dict[str, str], path: Path
) -> Callable[[Tensor], Tensor]:
    """Write ``net``, for batches like ``example`` of any size; return it, read back."""
    if form == "safetensors":
        # safetensors cannot store shared memory, so tied weights are copied.
        tensors = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        path.write_bytes(save(tensors, {"format": "pt", **metadata}))
        loaded = copy.deepcopy(net)
        loaded.load_state_dict(load_file(path))
        return loaded
    with warnings.catch_warnings():
        # Deprecated inside torch; a user cannot change it.
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
        onnx = torch.onnx.export(
            net,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert onnx is not None  # as it is without a file to write to
    onnx.model.metadata_props.update(metadata)
    onnx.save(str(path), external_data=False)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@torch.no_grad()
def _compare(
    cfg: DictConfig,
    live: nn.Module,
    written: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
) -> float:
    """The largest difference between the logits of two networks; refuse networks that differ."""
    outputs = [(live(batch), written(batch)) for batch, _ in batches]
    expected, logits = (torch.cat(side) for side in zip(*outputs, strict=True))
    others = int((logits.argmax(1) != expected.argmax(1)).sum())
    largest = (logits - expected).abs().max().item()
    most = TOLERANCE * expected.std().item()
    if others or not largest <= most:
        raise IncompleteError(
            f"out={cfg.out}: not written; the network in it differs from the live one: {others} "
            f"other predictions, logits by up to {largest:.1e}; expected at most {most:.1e}"
        )
    return largest
