from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from helpers.runs import CLASSES, outcome, results, write_run
from PIL import Image

from lora_mnist.disk.predictions import Predictions, read_predictions
from lora_mnist.show.figures import (
    RED,
    draw_confusion,
    draw_errors,
    draw_gallery,
    draw_predictions,
)


def saved_predictions(folder: Path, stage: str = "lora") -> Predictions:
    write_run(folder, stage)
    found = read_predictions(folder)
    assert found is not None
    return found


def texts(figure: Any) -> list[str]:
    """What is written in the first axes of a figure, beside its ticks."""
    return [text.get_text() for text in figure.axes[0].texts]


def test_bars_of_errors() -> None:
    axes = draw_errors(results()).axes[0]
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert widths == [[2, 9, 1], [6, 2, 0]]
    weights = [label.get_fontweight() for label in axes.get_yticklabels()]
    assert weights == ["normal", "bold", "normal"]


def test_a_name_is_no_formula() -> None:
    figure = draw_errors({"classes": [r"$\x$", "b" * 99], "test": outcome([1, 2])})
    figure.savefig(BytesIO(), format="png")


def test_what_is_good_is_green() -> None:
    sides = np.array([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 1, 0]])  # label, base, adapted
    pair = Predictions(sides[0], sides[1], sides[1], sides[2], sides[2])
    figure = draw_confusion(pair, ["cat", "dog"])
    shown = figure.axes[0].images[0].get_array()
    assert np.sign(shown).tolist() == [[1, 1], [-1, -1]]
    assert sorted(texts(figure)) == ["+1", "+2", "-1", "-2"]


def test_of_many_classes_the_largest_confusions_have_bars() -> None:
    label, base, adapted = np.array([[7, 7, 7, 8, 9], [1, 1, 7, 8, 9], [7, 1, 7, 3, 9]])
    names = [f"class{n}" for n in range(100)]
    for pair, expected in (
        (Predictions(label, base, base), {"class7 → class1": [2]}),
        (
            Predictions(label, base, base, adapted, adapted),
            {"class7 → class1": [2, 1], "class8 → class3": [0, 1]},
        ),
        (Predictions(label, label, label), {}),
    ):
        axes = draw_confusion(pair, names).axes[0]
        lengths = zip(*([bar.get_width() for bar in side] for side in axes.containers), strict=True)
        bars = [tick.get_text() for tick in axes.get_yticklabels()]
        assert dict(zip(bars, map(list, lengths), strict=True)) == expected


def test_both_predictions_stand_under_an_image(tmp_path: Path) -> None:
    figure = draw_gallery("broken", saved_predictions(tmp_path), CLASSES)
    assert texts(figure) == ["<b>c…</b> →\ndog", "<b>c…</b> →\ncat"]
    shown = figure.axes[0].images[0].get_array()
    assert (shown.shape, shown.max()) == ((4, 4, 3), 50)
    base = saved_predictions(tmp_path, "pretrain")
    assert texts(draw_gallery("confused_base", base, CLASSES)) == ["cat → dog", "dog → cat"]


def test_predictions_are_drawn_with_name_and_probability(tmp_path: Path) -> None:
    base = {"class": "9", "probability": 0.75}
    differing = {"file": "a/b.png", "base": base, "adapted": {"class": "4", "probability": 0.5}}
    images = [np.zeros((1, 28, 28), np.uint8), np.zeros((3, 20, 40), np.uint8)]
    predictions = [differing, {"file": "n" * 50 + ".png", "base": base}]
    figure = draw_predictions(images, predictions, "2 pictures")
    assert texts(figure) == [
        *("b.png\nbase 9  0.75\nadapted 4  0.50 ≠", "nnnnnnnn…nnnn.png\nbase 9  0.75")
    ]
    assert [text.get_color() for text in figure.axes[0].texts] == [RED, "black"]
    assert figure.texts[0].get_text() == "2 pictures\n≠ base and adapted differ: 1"
    figure.savefig(tmp_path / "drawn.jpg")
    assert Image.open(tmp_path / "drawn.jpg").width == 600
