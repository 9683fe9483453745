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
from omegaconf import DictConfig
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lora_mnist.classifier import Classifier
from lora_mnist.configuration import checked_copy, classifier_of
from lora_mnist.data.images import Images
from lora_mnist.disk.files import atomic_write
from lora_mnist.errors import IncompleteError, UserError, config_group, require_extra
from lora_mnist.lora.base_state import fingerprint
from lora_mnist.lora.merge import merge_lora
from lora_mnist.progress import progress
from lora_mnist.run import Run

log = logging.getLogger(__name__)

#: How far a logit of the written network may be from the live one's, as a share of the standard
#: deviation of all logits: float32 rounds a deep network's by a ten-thousandth of that.
TOLERANCE = 1e-3
#: Images of noise to compare on, where there are no test images.
_NOISE = 200


class FromPixels(nn.Module):
    """A network with the normalisation before it: it takes pixels, uint8, (N, channels, h, w)."""

    def __init__(self, net: nn.Module, normalise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.normalise = net, normalise

    def forward(self, pixels: Tensor) -> Tensor:
        """The logits, (N, num_classes)."""
        logits: Tensor = self.net(self.normalise(pixels))
        return logits


def export(cfg: DictConfig, run: Run | None = None) -> dict[str, str]:
    """Write the network of ``cfg.base_ckpt`` and ``cfg.adapter`` to ``cfg.out``.

    A file that ends in ``.onnx`` is a graph that takes pixels, uint8, and normalises them itself;
    with a ``data.transform`` it takes what that makes of a test image, in the size of that. One
    that ends in ``.safetensors`` holds the weights. The written network must give the predictions
    of the live one on the whole test set, and its logits as far as :data:`TOLERANCE`; otherwise
    there is no file. Where the test set is not here, noise takes its place, but not with a
    ``data.transform``: the log then says that nothing was checked.

    Args:
        cfg: a configuration of ``configs/export.yaml``; it is not changed.
        run: how the command was typed; an export leaves the one file that ``cfg`` names.

    Returns:
        The metadata in the file: how the network is made, and what input it takes.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
        IncompleteError: if the written network computes something else than the live one.
    """
    cfg = checked_copy(cfg, run)
    out = Path(str(cfg.out or "."))
    if out.exists():  # it may be somebody's weights, or a base
        raise UserError(f"out={cfg.out or 'null'}: expected a new file, which does not exist yet")
    if out.suffix.lower() not in (".onnx", ".safetensors"):
        raise UserError(f"out={out}: expected a file that ends in .onnx or .safetensors")
    is_onnx = out.suffix.lower() == ".onnx"
    if is_onnx:
        require_extra("out=FILE.onnx", "onnx", "onnxruntime", "onnxscript")
    classifier = classifier_of(cfg, run)
    images: Images | None = None
    try:
        with config_group("data"):
            images = classifier.dataset.sets.test
    except UserError as error:
        log.info("no test images here (%s)", error)
    classifier.check(images)
    scale = classifier.set_scale(cfg.scale)
    net, dataset = classifier.net, classifier.dataset
    has_adapter = classifier.adapter is not None
    plain = merge_lora(copy.deepcopy(net)) if has_adapter else net
    picture = _example(classifier, images)
    if is_onnx and picture is None:
        raise UserError(
            f"out={out}: expected data.data_dir=FOLDER with pictures, since data.transform "
            "keeps a picture's size, which the file has to know"
        )
    metadata = _metadata(classifier, plain, picture, scale, is_onnx, Path(cfg.paths.outputs))
    batches, name = _images_to_compare(classifier, images, picture)
    if is_onnx:
        plain = FromPixels(plain, dataset.normalise).eval()
    try:
        with atomic_write(out) as path:
            if is_onnx:
                # torch.export would keep the size of a batch of one constant.
                written = _write_onnx(plain, torch.stack([picture, picture]), metadata, path)
            else:
                network = _write_weights(plain, metadata, path)
                written = FromPixels(network, dataset.normalise)
            if name is not None:
                largest = _compare(out, FromPixels(net, dataset.normalise), written, batches)
    except OSError as error:
        raise UserError(f"out={cfg.out}: expected a file that can be written ({error})") from error
    parts = f"base and adapter at scale {scale:g}" if has_adapter else "base"
    if name is None:
        reason = "not checked, since no picture is here: set data.data_dir, and export it again"
        log.warning("%s: %s; %s", cfg.out, parts, reason)
    else:
        message = "%s: %s; same predictions as the live network on %s, logits to %.1e"
        log.info(message, cfg.out, parts, name, largest)
    return metadata


def _example(classifier: Classifier, images: Images | None) -> Tensor | None:
    """An image as the network takes it, but for the normalisation; the first of ``images``.

    Without any, a stand-in has the right shape; ``None``, where a ``data.transform`` keeps a
    picture's size.
    """
    if images is not None:
        return images.take([0])[0][0]
    stand_in = Image.linear_gradient("L")
    picture = classifier.dataset.read_picture(stand_in)
    other = classifier.dataset.read_picture(stand_in.resize((100, 80)))
    return picture if picture.shape == other.shape else None


def _metadata(
    classifier: Classifier,
    plain: nn.Module,
    picture: Tensor | None,
    scale: float,
    is_onnx: bool,
    outputs: Path,
) -> dict[str, str]:
    """What a file says of the network in it: texts, some of them JSON."""
    dataset, base, adapter = classifier.dataset, classifier.base, classifier.adapter
    assert base is not None
    if adapter is not None and adapter.is_relative_to(outputs):  # the file may be given away
        adapter = adapter.relative_to(outputs)
    about: dict[str, Any] = {
        "net": classifier.settings["net"],
        "adapter": adapter and str(adapter),
        "scale": scale,
        "classes": classifier.classes,
        "channels": dataset.channels,
        **dataset.preprocessing(),
    }
    transform = classifier.settings["data"].get("transform")
    if transform is not None and picture is not None:
        about["channels"] = len(picture)
    metadata = {key: json.dumps(value) for key, value in about.items()}
    shape = "" if picture is None else ", ".join(map(str, picture.shape))
    if picture is None:
        network_input = f"what this makes of a picture: {json.dumps(transform)}"
    elif transform is not None:
        dtype = str(picture.dtype).removeprefix("torch.")
        network_input = f"{dtype} (batch, {shape}): {json.dumps(transform)}"
    elif is_onnx:
        network_input = f"uint8 (batch, {shape}): pixels"
    else:
        network_input = f"float32 (batch, {shape}): (pixel / 255 - mean) / std"
    return metadata | {
        "lora_mnist": version("lora-mnist"),
        "base_sha256": base.sha256,
        "sha256": fingerprint(plain.state_dict()),
        "dataset": str(dataset.name),
        "prepared_by": str(classifier.settings["data"]["_target_"]),
        "input": network_input,
    }


def _images_to_compare(
    classifier: Classifier, images: Images | None, picture: Tensor | None
) -> tuple[Iterable[Tensor], str | None]:
    """Batches of the test images or, where these are not here, of noise; and their description.

    With a ``data.transform``, noise is nothing that it would make: there are none, and ``None``.
    """
    dataset = classifier.dataset
    if images is None:
        if picture is None or classifier.settings["data"].get("transform") is not None:
            return [], None
        generator = torch.Generator().manual_seed(0)
        shape = (_NOISE, *picture.shape)
        noise = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return [noise], f"{_NOISE} images of noise"
    loader = dataset.loader(images, batch_size=dataset.eval_batch_size, sampler=range(len(images)))
    batches = (batch for batch, _ in progress(loader, "export", len(loader)))
    return batches, f"{len(images):,} test images"


def _write_weights(net: nn.Module, metadata: dict[str, str], path: Path) -> nn.Module:
    """Write the weights of ``net``; return a copy of it with them, read back."""
    # safetensors cannot store shared memory, so tied weights are copied.
    tensors = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    path.write_bytes(save(tensors, {"format": "pt", **metadata}))
    loaded = copy.deepcopy(net)
    loaded.load_state_dict(load_file(path))
    return loaded


def _write_onnx(
    net: nn.Module, example: Tensor, metadata: dict[str, str], path: Path
) -> Callable[[Tensor], Tensor]:
    """Write ``net`` as a graph, for batches like ``example`` of any size; return it, read back."""
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
    out: Path,
    live: Callable[[Tensor], Tensor],
    written: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
) -> float:
    """The largest difference between the logits of two networks; refuse networks that differ."""
    expected_batches, written_batches = [], []
    for batch in batches:
        expected_batches.append(live(batch))
        written_batches.append(written(batch))
    expected, logits = torch.cat(expected_batches), torch.cat(written_batches)
    others = int((logits.argmax(1) != expected.argmax(1)).sum())
    largest = (logits - expected).abs().max().item()
    most = TOLERANCE * expected.std().item()
    if others or not largest <= most:
        raise IncompleteError(
            f"out={out}: not written; the network in it differs from the live one: {others} other "
            f"predictions, logits by up to {largest:.1e}; expected at most {most:.1e}"
        )
    return largest
