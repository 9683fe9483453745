from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_mnist.sweep.figure import Point, draw_sweep

METRIC = "val.accuracy"
VALUES = ("1", "2", "16")


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draws, and returns the texts of axes and title."""
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )

    def draw(points: list[Point], mode: str = "max") -> tuple[set[str], str]:
        draw_sweep(tmp_path / "a.png", points, METRIC, mode)
        with Image.open(tmp_path / "a.png") as image:
            assert min(image.size) >= 400
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50
        labels = {
            text for axes in figures[-1].axes for text in (axes.get_xlabel(), axes.get_ylabel())
        }
        return labels - {""}, figures[-1].get_suptitle()

    return draw


ONE = [Point({"rank": a}, float(a)) for a in VALUES]
TWO = [Point({"rank": a, "alpha": b}, float(a) + float(b)) for a in VALUES for b in VALUES]
THREE = [Point({**point.swept, "digit": c}, point.value) for point in TWO for c in "12"]


@pytest.mark.parametrize(
    ("points", "labels"),
    [
        (ONE, {"rank", METRIC}),
        (TWO, {"rank", "alpha", METRIC}),
        ([*TWO, Point({"rank": "0", "alpha": "1"}, None)], {"rank", "alpha", METRIC}),
        (THREE, {"rank", "alpha", "digit", METRIC}),
        ([Point({"rank": a}, 0.5, 0.1) for a in VALUES], {"rank", f"mean {METRIC} over seeds"}),
        ([Point({"loss": "focal"}, 0.5), Point({"loss": "hinge"}, 0.4)], {"loss", METRIC}),
        ([Point({"seed": "0"}, 0.5)], {"seed", METRIC}),
    ],
)
def test_axes_are_named(drawn: Any, points: list[Point], labels: set[str]) -> None:
    assert drawn(points)[0] == labels


@pytest.mark.parametrize(
    ("mode", "best"), [("max", "16.0000 at rank=16"), ("min", "1.0000 at rank=1")]
)
def test_the_best_is_named(drawn: Any, mode: str, best: str) -> None:
    assert drawn(ONE, mode)[1] == f"best {METRIC}: {best}"


@pytest.mark.parametrize("name", ["$x", "a_b^c", "$\\frac{$"])
def test_names_are_no_formulas(drawn: Any, name: str) -> None:
    drawn([Point({name: name}, 0.5), Point({name: f"{name}2"}, 0.4)])
