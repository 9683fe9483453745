"""Corrupted digits as real files, to have something to mend: FOLDER/<digit>/<number>.png.

python scripts/studies/hotfix_pictures.py FOLDER slanted   # or turned, thick
"""

import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageFilter

from lora_mnist.data import load_images

PROJECT = Path(__file__).resolve().parents[2]


def make_pictures(folder: Path, kind: str) -> None:
    """Write 500 validation images of MNIST, black on white, four times their size."""
    images, labels = load_images("MNIST", PROJECT / "data", train=True)
    for number in range(55_000, 55_500):
        picture = Image.fromarray(255 - images[number, 0].numpy()).resize((112, 112))
        if kind == "slanted":
            slant = (1, 0.8, -45, 0, 1, 0)  # x + 0.8 y - 45
            picture = picture.transform(picture.size, Image.Transform.AFFINE, slant, fillcolor=255)
        elif kind == "turned":
            picture = picture.rotate(30, fillcolor=255)
        elif kind == "thick":
            picture = picture.filter(ImageFilter.MinFilter(9))
        else:
            raise SystemExit(f"{kind}: expected slanted, turned or thick")
        path = folder / str(int(labels[number])) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def make_own_classifier(folder: Path, incoming: Path) -> None:
    """A copy of the example with its network trained; two thirds of its photos/val come in."""
    if folder.exists():
        return
    shutil.copytree(PROJECT / "examples" / "own_classifier", folder)
    for script in ("make_images.py", "train_plain.py"):
        subprocess.run([sys.executable, script], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for path in folder.glob("photos/val/*/1[12]*.png"):
        place = incoming / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)


if __name__ == "__main__":
    make_pictures(Path(sys.argv[1]), sys.argv[2])
