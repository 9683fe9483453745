import pytest
import torch
from helpers.commands import ROOT
from torch import Tensor

from lora_mnist.data import load_images
from lora_mnist.data.ink import doubt
from lora_mnist.data.pictures import prepare

IMAGES, _ = load_images("MNIST", ROOT / "data", train=False)


def drawn(*boxes: tuple[int, int, int, int], level: int = 255) -> Tensor:
    """An image with ink in boxes of (top, bottom, left, right)."""
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    for top, bottom, left, right in boxes:
        image[0, top:bottom, left:right] = level
    return image


@pytest.mark.parametrize(
    ("image", "note"),
    [
        (drawn(), "no digit"),
        (drawn((4, 24, 12, 15)), None),
        # An 11, a faint one, and 11 of which one is short.
        (drawn((9, 19, 8, 10), (9, 19, 18, 20)), "several digits"),
        (drawn((9, 19, 8, 10), (9, 19, 18, 20), level=100), "several digits"),
        (drawn((9, 19, 8, 10), (14, 19, 18, 20)), "several digits"),
        (drawn((9, 19, 8, 10), (15, 19, 18, 20)), None),
        # The loose bar of a 5, and the strokes of an open 4, the left one short.
        (drawn((4, 6, 14, 20), (8, 24, 8, 12)), None),
        (drawn((4, 12, 6, 9), (10, 12, 6, 16), (4, 24, 18, 20)), None),
        # A square of ink, of grey, and of fewer grey pixels.
        (drawn((4, 24, 4, 24)), None),
        (drawn((4, 24, 4, 24), level=120), "no digit"),
        (drawn((4, 16, 4, 14), level=120), "no digit"),
        (drawn((4, 15, 4, 14), level=120), None),
        # Five parts, and four.
        (drawn(*((y, y + 2, 4, 9) for y in (4, 8, 12, 16, 20))), "no digit"),
        (drawn(*((y, y + 2, 4, 9) for y in (4, 8, 12, 16))), None),
    ],
)
def test_the_rule(image: Tensor, note: str | None) -> None:
    assert doubt(image) == note


@pytest.mark.parametrize(("holes", "note"), [(2, None), (3, None), (4, "no digit")])
def test_holes_count_and_the_paper_around_does_not(holes: int, note: str | None) -> None:
    image = drawn((4, 24, 10, 16))
    for number in range(holes):
        image[0, 6 + 4 * number : 8 + 4 * number, 12:14] = 0
    assert doubt(image) == note


@pytest.mark.slow
def test_mnist_gives_hardly_a_false_alarm() -> None:
    notes = [doubt(prepare(image[0].float())) for image in IMAGES[:1000]]
    assert sum(note is not None for note in notes) < 10


@pytest.mark.slow
def test_two_digits_in_one_picture_are_noticed() -> None:
    pairs = [torch.cat([a[0], b[0]], 1) for a, b in zip(IMAGES[:300], IMAGES[300:600], strict=True)]
    notes = [doubt(prepare(pair.float())) for pair in pairs]
    assert notes.count("several digits") > 0.97 * len(notes)


def test_a_photo_is_no_digit() -> None:
    """Light and dark that run into each other, as of a face or a landscape."""
    y, x = torch.meshgrid(torch.linspace(0, 9, 200), torch.linspace(0, 9, 200), indexing="ij")
    photo = 120 + 60 * torch.sin(x + y.square() / 5) + 60 * torch.cos(1.3 * y - x)
    assert doubt(prepare(photo)) == "no digit"
