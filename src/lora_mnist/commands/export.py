"""Base and adapter written as one plain network, and checked."""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from lora_mnist.classifier.choose_point import apply_point
from lora_mnist.classifier.classifier import Classifier
from lora_mnist.classifier.huggingface import (
    TARGET,
    draw_test_pictures,
    load_processor,
    pixel_tolerance,
    save_folder,
)
from lora_mnist.classifier.weights_file import load_weights, read_base
from lora_mnist.config.keys import resolve_configuration
from lora_mnist.config.make import load_from_config, read_point
from lora_mnist.config.run import Run
from lora_mnist.data import ImageDataset, Images
from lora_mnist.errors import IncompleteError, UserError, format_value, one_line, require_extra
from lora_mnist.files import atomic_write, make_folder
from lora_mnist.lora.base_state import hash_tensors
from lora_mnist.lora.model import merge_lora
from lora_mnist.measure.predictions import logits_at
from lora_mnist.progress import progress
from lora_mnist.run_paths import refuse_unwritable
from lora_mnist.show.reasons import log_choices

log = logging.getLogger(__name__)

#: The largest difference of logits, as a share of their standard deviation; float32 needs a tenth.
TOLERANCE = 1e-3


class FromPixels(nn.Module):
    """A network with the normalization before it: from pixels, uint8, (N, C, H, W), to logits."""

    def __init__(self, net: nn.Module, dataset: ImageDataset) -> None:
        super().__init__()
        self.net, self.dataset = net, dataset

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.net(self.dataset.normalize(pixels))
        return logits


class Onnx(nn.Module):
    """A graph in a file, as a network."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime

        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"images": images.numpy()})[0])


def export(cfg: DictConfig, run: Run | None = None) -> dict[str, str]:
    """Write the network of ``cfg.base_ckpt`` and ``cfg.adapter`` to ``cfg.out``.

    A file that ends in ``.onnx`` is a graph that takes pixels, uint8, and normalizes them itself;
    with a ``prepare.transform`` it takes the output of that, in the size that a test image has
    there. One that ends in ``.safetensors`` holds the weights. A name without an ending is a folder
    for ``from_pretrained`` of transformers, with a network of theirs. The written network must give
    the predictions of the live one on the whole test set, and its logits to within
    :data:`TOLERANCE`; otherwise no file is written. Without the test set, pictures of a gradient
    take its place.

    Args:
        cfg: a configuration of ``configs/export.yaml``; it is not changed.
        run: the command line; an export writes only the file that ``cfg`` names.

    Returns:
        The metadata in the file: how the network is made, and what input it takes.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used.
        IncompleteError: if the written network computes something else than the live one.
    """
    cfg = resolve_configuration(cfg, run)
    out = Path(str(cfg.out))
    write = _WRITERS.get(out.suffix.lower())
    expected = "expected a new file that ends in .onnx or .safetensors, or with net=huggingface "
    expected += "and no prepare.transform a folder"
    if cfg.out is None or write is None:
        raise UserError(f"out={format_value(cfg.out)}: {expected}")
    refuse_unwritable(out)  # a file there may be somebody's weights
    if write is write_onnx:
        require_extra("out=FILE.onnx", "onnx", "onnxruntime", "onnxscript")
    classifier = load_from_config(cfg)
    dataset, transform = classifier.dataset, classifier.settings.prepare.get("transform")
    is_of_transformers = classifier.settings.net.get("_target_") == TARGET and transform is None
    if write is write_transformers_folder and not is_of_transformers:
        raise UserError(f"out={format_value(cfg.out)}: {expected}")
    images, name = images_to_compare(classifier)
    classifier.check_network(images)
    choices = apply_point(classifier, read_point(cfg))
    log_choices(choices)
    plain = copy.deepcopy(classifier.net).cpu()
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # for safetensors
    if classifier.adapter is not None:
        merge_lora(plain)
    (example,), _ = images.take([0])
    dtype, content = str(example.dtype).removeprefix("torch."), "pixels"
    if transform:
        content = json.dumps(transform)
    elif write is not write_onnx:
        dtype, content = "float32", "(pixel / 255 - mean) / std"
    point = choices["point"].value if choices else {}
    metadata = build_metadata(classifier, plain, point) | {
        "channels": json.dumps(len(example)),
        "input": f"{dtype} (batch, {', '.join(map(str, example.shape))}): {content}",
    }
    live = FromPixels(classifier.net, dataset)
    with write(out, FromPixels(plain, dataset), example, metadata) as written:
        deviation = compare(live, written, images, out)
    parts = "base"
    if point:
        parts += f" and adapter at {', '.join(f'{key} {point[key]:g}' for key in point)}"
    message = "%s: %s; same predictions as the live network on %s %s, logits to %.1e"
    log.info(message, cfg.out, parts, f"{len(images):,}", name, deviation)
    return metadata


def images_to_compare(classifier: Classifier) -> tuple[Images, str]:
    """Return the images on which both networks are compared, and a description of them."""
    if (images := classifier.test_images()) is not None:
        return images, "test images"
    gradient = Image.linear_gradient("L")
    pictures = []
    for angle in range(0, 360, 5):
        pictures.append(classifier.dataset.read_picture(gradient.rotate(angle)))
    labels = torch.zeros(len(pictures), dtype=torch.int64)
    return Images(pictures, labels), "pictures of a gradient"


def build_metadata(
    classifier: Classifier, plain: nn.Module, point: Mapping[str, float]
) -> dict[str, str]:
    """Return the metadata of an exported file: texts, most of them JSON."""
    base, adapter = classifier.base, classifier.adapter
    assert base is not None
    about: dict[str, Any] = {
        "net": classifier.settings.net,
        # Not the whole path: the file may be given away.
        "adapter": adapter and "/".join(adapter.parts[-3:]),
        **point,
        "classes": classifier.classes,
        **classifier.dataset.preprocessing(),
    }
    return {key: json.dumps(value) for key, value in about.items()} | {
        "base_sha256": base.sha256,
        "sha256": hash_tensors(plain.state_dict()),
        "dataset": str(classifier.dataset.name),
    }


@contextmanager
def write_onnx(
    out: Path, merged: FromPixels, example: Tensor, metadata: dict[str, str]
) -> Iterator[nn.Module]:
    """Write a graph, for any number of images like ``example``; yield it, read back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of its own code; the graph is checked
        onnx = torch.onnx.export(
            merged.eval(),
            # torch.export would keep the size of a batch of one constant.
            (torch.stack([example, example]),),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert onnx is not None  # only where torch writes the file itself
    onnx.model.metadata_props.update(metadata)
    with atomic_write(out) as path:
        onnx.save(str(path), external_data=False)
        yield Onnx(path)


@contextmanager
def write_safetensors(
    out: Path, merged: FromPixels, _: Tensor, metadata: dict[str, str]
) -> Iterator[nn.Module]:
    """Write the weights; yield a copy of the network with them, read back."""
    # safetensors cannot store shared memory, so tied weights are copied.
    tensors = {name: tensor.clone() for name, tensor in merged.net.state_dict().items()}
    with atomic_write(out) as path:
        path.write_bytes(save(tensors, {"format": "pt", **metadata}))
        loaded = copy.deepcopy(merged.net)
        load_weights(loaded, read_base(path))
        yield FromPixels(loaded, merged.dataset)


@contextmanager
def write_transformers_folder(out: Path, merged: FromPixels, *_: object) -> Iterator[nn.Module]:
    """Write a folder for ``from_pretrained``; yield its network, read back."""
    with make_folder(out.parent), TemporaryDirectory(".tmp", f".{out.name}.", out.parent) as parent:
        folder = Path(parent, out.name)
        folder.mkdir()
        dataset = merged.dataset
        own = {"classes": dataset.classes, "channels": dataset.channels}
        net = save_folder(merged.net, own | dataset.preprocessing(), folder)
        check_processor(folder, dataset, out)
        yield FromPixels(net, dataset)
        folder.replace(out)


def check_processor(folder: Path, dataset: ImageDataset, out: Path) -> None:
    """Raise if a written processor prepares pictures otherwise; warn of transparent ones."""
    preprocessing = dataset.preprocessing()
    if "image_size" not in preprocessing:  # its pictures have the size of the images
        return
    pictures = draw_test_pictures(preprocessing["channels"])
    transparent = pictures[0].copy()
    if preprocessing["channels"] == 3:  # of one channel, the processor converts no picture
        transparent.putalpha(128)
        pictures += [pictures[0].convert("L"), transparent]
    processor, allowed = load_processor(folder), pixel_tolerance(*preprocessing["image_size"])
    std = torch.tensor(preprocessing["std"]).reshape(-1, 1, 1)
    for picture in pictures:
        try:
            inputs = processor(picture, return_tensors="pt")["pixel_values"]
        except NotImplementedError as error:  # torchvision's, of an interpolation
            raise UserError(f"out={out}: the processor of a folder: {one_line(error)}") from error
        expected = dataset.normalize(dataset.read_picture(picture)[None])
        difference = ((inputs - expected) * std).abs().max().item()
        if difference > allowed and picture is not transparent:
            raise IncompleteError(
                f"out={out}: not written; its processor prepares pictures differently from "
                f"the live classifier: pixels, from 0 to 1, differ by {difference:.2f}; "
                f"expected at most {allowed:.2f}"
            )
        if difference > allowed:
            log.warning(
                "out=%s: its processor pastes transparent pictures onto a color, while the live "
                "classifier drops their transparency: pass it Pillow's picture.convert('RGB')",
                out,
            )


#: Functions that write the network and read it back, by the ending of ``out=``.
_WRITERS: dict[str, Callable[..., AbstractContextManager[nn.Module]]] = {
    ".onnx": write_onnx,
    ".safetensors": write_safetensors,
    "": write_transformers_folder,
}


def compare(live: FromPixels, written: nn.Module, images: Images, out: Path) -> float:
    """Raise if a written network differs from the live one; return the largest difference."""
    both, dataset = [], live.dataset
    for net in (live, written):
        device = next(net.parameters(), torch.empty(0)).device  # a graph has none: the CPU
        loader = dataset.loader(images, device, batch_size=dataset.eval_batch_size)
        loaded = progress(loader, "export", len(loader))
        batches = ((batch.to(device), labels) for batch, labels in loaded)
        both.append(torch.cat([each.cpu() for _, (each,) in logits_at(net, batches, [None])]))
    expected, logits = both
    differing = int((logits.argmax(1) != expected.argmax(1)).sum())
    deviation = (logits - expected).abs().max().item()
    allowed = TOLERANCE * expected.std().item()
    if differing or not deviation <= allowed:  # nan is refused, too
        raise IncompleteError(
            f"out={out}: not written; the network in it differs from the live one: {differing} "
            f"other predictions, logits by up to {deviation:.1e}; expected at most {allowed:.1e}"
        )
    return deviation
