"""Ask repaired.onnx what pictures show: no PyTorch and nothing of LoRA-MNIST, only its file."""

import json
import math
import sys

import numpy
import onnxruntime
from PIL import Image


def prepare(file, about):
    """Return the pixels of a picture, uint8, (channels, height, width), in the metadata's size."""
    picture = Image.open(file)
    if picture.mode.startswith("I"):  # of 16 bits the upper eight; Pillow would clip them at 255
        values = numpy.asarray(picture).astype(numpy.int64) >> 8
        picture = Image.fromarray(values.clip(0, 255).astype(numpy.uint8))
    picture = picture.convert("RGB" if about["channels"] == 3 else "L")
    height, width = about["image_size"]
    # The picture is scaled to image_size / crop_pct, and its middle is taken.
    tall, wide = (math.floor(side / about["crop_pct"] + 0.02) for side in (height, width))
    if about["resize"] == "crop":
        taller = wide * picture.height // picture.width
        wide = max(wide, tall * picture.width // picture.height)
        tall = max(tall, taller)
    picture = picture.resize((wide, tall), Image.Resampling[about["interpolation"].upper()])
    top, left = round((tall - height) / 2), round((wide - width) / 2)
    picture = picture.crop((left, top, left + width, top + height))
    return numpy.asarray(picture).reshape(height, width, -1).transpose(2, 0, 1)


def main(files):
    """Print the class of each of the pictures, and its probability."""
    session = onnxruntime.InferenceSession("repaired.onnx")
    texts = session.get_modelmeta().custom_metadata_map
    if "image_size" not in texts:
        raise SystemExit(f"repaired.onnx: takes another input, {texts['input']}")
    keys = ("classes", "channels", "image_size", "resize", "crop_pct", "interpolation")
    about = {key: json.loads(texts[key]) for key in keys}
    images = numpy.stack([prepare(file, about) for file in files])
    (logits,) = session.run(["logits"], {"images": images})  # it normalizes the pixels itself
    powers = numpy.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    for file, row in zip(files, probabilities, strict=True):
        print(f"{file}: {about['classes'][row.argmax()]} ({row.max():.3f})")


if __name__ == "__main__":
    main(sys.argv[1:])
