import numpy as np
import pytest
from helpers.runs import CURVE, results
from PIL import Image

from lora_mnist.show.figures import (
    draw_classes,
    draw_confusion,
    draw_scale_curve,
    draw_sweep,
    save_figure,
)
from lora_mnist.show.run_results import RunResults


def texts(figure):
    """What is written in the first axes of a figure, beside its ticks."""
    return [text.get_text() for text in figure.axes[0].texts]


def test_draw_confusion_has_what_is_good_in_green():
    before, after = np.array([[[1, 2], [0, 2]], [[3, 0], [1, 1]]])
    for matrices, signs, numbers in (
        ([before], [[1, -1], [0, 1]], ["1", "2", "2"]),
        ([before, after], [[1, 1], [-1, -1]], ["+1", "+2", "-1", "-2"]),
    ):
        figure = draw_confusion(matrices, ["cat", "dog"])
        assert np.sign(figure.axes[0].images[0].get_array()).tolist() == signs
        assert sorted(texts(figure)) == numbers


def test_each_class_has_its_errors_and_an_arrow_where_they_changed():
    """Of three classes two have changed: an arrow each has no text."""
    figure = draw_classes(RunResults(results()))
    assert sorted(texts(figure)) == ["", "", "", "1 → 0", "2 → 6", "9 → 2"]
    assert sorted(texts(draw_classes(RunResults(results("pretrain"))))) == ["1", "2", "9"]


@pytest.mark.parametrize(
    ("targets", "curves"), [([1], [[9, 5, 2], [3, 5, 7], [0, 2, 4]]), ([], [[12, 10, 9]])]
)
def test_the_scale_curve_has_a_panel_for_each_count(targets, curves):
    figure = draw_scale_curve(RunResults(results(targets=targets, scale_curve=CURVE)))
    for axes, curve in zip(figure.axes, curves, strict=True):
        x, y = axes.lines[0].get_data()
        assert (x.tolist(), y.tolist()) == ([0, 0.5, 1], curve)


VALUES = ("1", "2", "16")
TWO = [({"rank": a, "alpha": b}, float(a + b), 0.1) for a in VALUES for b in VALUES]
SEARCH = [({"rank": f"{i}", "lr": f"{i / 99}"}, 0.5, None) for i in range(99)]
WORDS = [({"loss": "$f$"}, 0.5, None), ({"loss": "$\\frac{$"}, 0.4, None)]


@pytest.mark.parametrize("points", [TWO[1:-1], SEARCH, WORDS])
def test_whatever_was_swept_is_drawn(tmp_path, points):
    figure = draw_sweep(points, "val.accuracy")
    places = {x for line in figure.axes[0].lines for x in line.get_xdata()}
    assert len(places) == max(len({each[key] for each, _, _ in points}) for key in points[0][0])
    save_figure(figure, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50
