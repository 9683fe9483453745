import numpy as np
import pytest
from PIL import Image

from lora_mnist.show.figures import (
    draw_confusion,
    draw_sweep,
    save_figure,
)


def texts(figure):
    """What is written in the first axes of a figure, beside its ticks."""
    return [text.get_text() for text in figure.axes[0].texts]


def test_what_is_good_is_green():
    label, before, after = np.array([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 1, 0]])
    for table, signs, numbers in (
        ({"label": label, "before": before}, [[1, -1], [0, 1]], ["1", "2", "2"]),
        (
            {"label": label, "before": before, "after": after},
            [[1, 1], [-1, -1]],
            ["+1", "+2", "-1", "-2"],
        ),
    ):
        figure = draw_confusion(table, ["cat", "dog"])
        assert np.sign(figure.axes[0].images[0].get_array()).tolist() == signs
        assert sorted(texts(figure)) == numbers


VALUES = ("1", "2", "16")
ONE = [({"rank": a}, float(a), 0.1) for a in VALUES]
TWO = [({"rank": a, "alpha": b}, float(a + b), None) for a in VALUES for b in VALUES]
SEARCH = [({"rank": f"{i}", "lr": f"{i / 99}"}, 0.5, None) for i in range(99)]
WORDS = [({"loss": "$f$"}, 0.5, None), ({"loss": "$\\frac{$"}, 0.4, None)]


@pytest.mark.parametrize("points", [ONE, TWO[1:-1], SEARCH, WORDS])
def test_whatever_was_swept_is_drawn(tmp_path, points):
    save_figure(draw_sweep(points, "val.accuracy"), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50
