from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from lora_mnist.sweep.figure import Point, draw_sweep

METRIC = "val.accuracy"
VALUES = ("1", "2", "16")
ONE: list[Point] = [({"rank": a}, float(a), 0.1) for a in VALUES]
TWO: list[Point] = [({"rank": a, "alpha": b}, float(a + b), None) for a in VALUES for b in VALUES]
THREE: list[Point] = [({**p[0], "digit": c}, p[1], None) for p in TWO for c in "12"]
WORDS: list[Point] = [({"loss": "$f$"}, 0.5, None), ({"loss": "$\\frac{$"}, 0.4, None)]


@pytest.mark.parametrize(
    ("points", "mode", "labels", "best"),
    [
        (ONE, "max", {"rank"}, "16.0000 at rank=16"),
        (ONE, "min", {"rank"}, "1.0000 at rank=1"),
        (TWO, "max", {"rank", "alpha"}, "1616.0000 at rank=16, alpha=16"),
        (TWO[1:-1], "min", {"rank", "alpha"}, "12.0000 at rank=1, alpha=2"),
        (THREE, "min", {"rank", "alpha", "digit"}, "11.0000 at rank=1, alpha=1, digit=1"),
        (WORDS, "max", {"loss"}, "0.5000 at loss=$f$"),
        ([({"seed": "0"}, 0.5, None)], "max", {"seed"}, "0.5000 at seed=0"),
    ],
)
def test_axes_and_the_best_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    points: list[Point],
    mode: str,
    labels: set[str],
    best: str,
) -> None:
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )
    draw_sweep(tmp_path / "a.png", points, METRIC, mode)
    with Image.open(tmp_path / "a.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50
    (figure,) = figures
    found = {text for axes in figure.axes for text in (axes.get_xlabel(), axes.get_ylabel())}
    assert found - {""} == {*labels, METRIC}
    assert figure.get_suptitle() == f"best {METRIC}: {best}"
