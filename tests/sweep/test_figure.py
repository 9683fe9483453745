from pathlib import Path

import pytest
from PIL import Image

from lora_mnist.sweep.figure import Point, draw_sweep

VALUES = ("1", "2", "16")
ONE: list[Point] = [({"rank": a}, float(a), 0.1) for a in VALUES]
TWO: list[Point] = [({"rank": a, "alpha": b}, float(a + b), None) for a in VALUES for b in VALUES]
SEARCH: list[Point] = [({"rank": f"{i}", "lr": f"{i / 99}"}, 0.5, None) for i in range(99)]
WORDS: list[Point] = [({"loss": "$f$"}, 0.5, None), ({"loss": "$\\frac{$"}, 0.4, None)]


@pytest.mark.parametrize("points", [ONE, TWO, TWO[1:-1], SEARCH, WORDS, [({"seed": "0"}, 1, None)]])
def test_whatever_was_swept_is_drawn(tmp_path: Path, points: list[Point]) -> None:
    draw_sweep(tmp_path / "a.png", points, "val.accuracy")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (900, 600)
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50
