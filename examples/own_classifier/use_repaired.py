"""Ask repaired.onnx what pictures show: no PyTorch and nothing of LoRA-MNIST, only its file."""

import json
import math
import sys
from collections import Counter

import numpy
import onnxruntime
from PIL import Image

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def prepare(file, about):
    """The network's input for one picture, as the file's metadata have it."""
    if "image_size" not in about:
        raise SystemExit("repaired.onnx: its images are prepared by a transform")
    picture = Image.open(file).convert("RGB" if about["channels"] == 3 else "L")
    height, width = about["image_size"]
    # The picture is scaled to image_size / crop_pct, and its middle is taken.
    tall, wide = (math.floor(side / about["crop_pct"] + 0.02) for side in (height, width))
    if about["resize"] == "crop":
        taller = wide * picture.height // picture.width
        wide = max(wide, tall * picture.width // picture.height)
        tall = max(tall, taller)
    picture = picture.resize((wide, tall), RESAMPLING[about["interpolation"]])
    top, left = round((tall - height) / 2), round((wide - width) / 2)
    picture = picture.crop((left, top, left + width, top + height))
    pixels = numpy.asarray(picture, dtype="float32").reshape(height, width, -1)
    image = (pixels / 255 - numpy.float32(about["mean"])) / numpy.float32(about["std"])
    return image.transpose(2, 0, 1)


def main(files):
    """Count the predictions for the pictures in ``files``."""
    session = onnxruntime.InferenceSession("repaired.onnx")
    about = {}
    for key, text in session.get_modelmeta().custom_metadata_map.items():
        try:
            about[key] = json.loads(text)
        except ValueError:  # a plain text
            about[key] = text
    images = numpy.stack([prepare(file, about) for file in files])
    (logits,) = session.run(["logits"], {"images": images})
    predictions = Counter(about["classes"][label] for label in logits.argmax(axis=1))
    print(", ".join(f"{name} {count}" for name, count in predictions.most_common()))


if __name__ == "__main__":
    main(sys.argv[1:])
