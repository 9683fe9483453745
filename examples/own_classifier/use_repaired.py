"""Ask repaired.onnx what pictures show: no PyTorch and nothing of LoRA-MNIST, only its file."""

import json
import sys
from collections import Counter

import numpy
import onnxruntime
from PIL import Image


def main(files: list[str]) -> None:
    """Count the predictions for the pictures in ``files``."""
    session = onnxruntime.InferenceSession("repaired.onnx")
    about = session.get_modelmeta().custom_metadata_map
    classes, mean, std = (json.loads(about[key]) for key in ("classes", "mean", "std"))
    pixels = numpy.stack([numpy.asarray(Image.open(file).convert("RGB")) for file in files])
    images = (pixels.astype("float32") / 255 - numpy.float32(mean)) / numpy.float32(std)
    (logits,) = session.run(["logits"], {"images": images.transpose(0, 3, 1, 2)})
    predictions = Counter(classes[label] for label in logits.argmax(axis=1))
    print(", ".join(f"{name} {count}" for name, count in predictions.most_common()))


if __name__ == "__main__":
    main(sys.argv[1:])
