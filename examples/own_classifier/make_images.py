"""Make a folder of color images, photos/{train,val,test}/CLASS/*.png, to try things on.

scikit-learn ships 1,797 handwritten digits of 8x8 pixels and two photographs. Each digit is blended
over a piece of a photograph, as MNIST-M is made of MNIST (Ganin et al. 2016, arXiv:1505.07818):
|photograph - digit| in each color.
"""

from pathlib import Path

import numpy
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

SIDE = 16
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def main() -> None:
    """Write the images; the same ones each time."""
    digits, photographs = load_digits(), load_sample_images().images
    generator = numpy.random.default_rng(0)
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        digit = Image.fromarray((pixels * 255 / 16).astype("uint8")).resize((SIDE, SIDE))
        photograph = photographs[generator.integers(len(photographs))]
        top, left = (generator.integers(side - SIDE) for side in photograph.shape[:2])
        patch = photograph[top : top + SIDE, left : left + SIDE].astype(int)
        image = numpy.abs(patch - numpy.asarray(digit, int)[:, :, None]).astype("uint8")
        # The digits stand in the order in which they were collected: later ones are other writers'.
        part = "train" if number < 1_100 else "val" if number < 1_400 else "test"
        folder = Path("photos", part, NAMES[label])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:04d}.png")


if __name__ == "__main__":
    main()
