import numpy as np
import pytest
from helpers.runs import CLASSES, results, write_run
from PIL import Image

from lora_mnist.disk.predictions import read_predictions
from lora_mnist.show.figures import (
    draw_confusion,
    draw_errors,
    draw_gallery,
    draw_sweep,
    save_figure,
)


def texts(figure):
    """What is written in the first axes of a figure, beside its ticks."""
    return [text.get_text() for text in figure.axes[0].texts]


def test_bars_of_errors():
    axes = draw_errors(results()).axes[0]
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert widths == [[2, 9, 1], [6, 2, 0]]
    weights = [label.get_fontweight() for label in axes.get_yticklabels()]
    assert weights == ["normal", "bold", "normal"]


def test_what_is_good_is_green():
    label, base, adapted = np.array([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 1, 0]])
    for predictions, signs, numbers in (
        ({"label": label, "base": base}, [[1, -1], [0, 1]], ["1", "2", "2"]),
        (
            {"label": label, "base": base, "adapted": adapted},
            [[1, 1], [-1, -1]],
            ["+1", "+2", "-1", "-2"],
        ),
    ):
        figure = draw_confusion(predictions, ["cat", "dog"])
        assert np.sign(figure.axes[0].images[0].get_array()).tolist() == signs
        assert sorted(texts(figure)) == numbers


def test_two_predictions_stand_under_an_image(tmp_path):
    for stage, kind, captions in (
        ("lora", "broken", ["<b>c…</b> →\ncat", "<b>c…</b> →\ndog"]),
        ("pretrain", "wrong", ["dog → cat", "cat → dog"]),
    ):
        write_run(tmp_path, stage)
        predictions = read_predictions(tmp_path, CLASSES)
        assert predictions is not None
        figure = draw_gallery(kind, predictions, CLASSES)
        assert [axes.get_xlabel() for axes in figure.axes] == captions
        assert figure.axes[0].images[0].get_array().shape == (4, 4, 3)


VALUES = ("1", "2", "16")
ONE = [({"rank": a}, float(a), 0.1) for a in VALUES]
TWO = [({"rank": a, "alpha": b}, float(a + b), None) for a in VALUES for b in VALUES]
SEARCH = [({"rank": f"{i}", "lr": f"{i / 99}"}, 0.5, None) for i in range(99)]
WORDS = [({"loss": "$f$"}, 0.5, None), ({"loss": "$\\frac{$"}, 0.4, None)]


@pytest.mark.parametrize("points", [ONE, TWO[1:-1], SEARCH, WORDS])
def test_whatever_was_swept_is_drawn(tmp_path, points):
    save_figure(draw_sweep(points, "val.accuracy"), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (780, 520)
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50
