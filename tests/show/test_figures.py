from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.nets import TinyNet, randomize
from helpers.runs import CLASSES, outcome, results, write_run
from PIL import Image
from torch import nn

from lora_mnist import CNN, add_lora, save_adapter
from lora_mnist.disk.predictions import Predictions, read_predictions
from lora_mnist.lora import lora_weights, read_factors
from lora_mnist.show.figures import (
    RED,
    draw_confusion,
    draw_errors,
    draw_gallery,
    draw_predictions,
    singular_values,
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


def test_of_very_many_classes_the_worst_have_bars() -> None:
    names = [f"c{n}" for n in range(100)]
    axes = draw_errors({"classes": names, "test": outcome([*range(100)])}).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == names[60:]


def test_a_name_is_no_formula() -> None:
    figure = draw_errors({"classes": [r"$\x$", "b" * 99], "test": outcome([1, 2])})
    figure.savefig(BytesIO(), format="png")


def test_what_is_good_is_green() -> None:
    figure = draw_confusion(np.array([[5, -2], [3, 0]]), "", ["cat", "dog"], signed=True)
    shown = figure.axes[0].images[0].get_array()
    assert np.sign(shown).tolist() == [[1, 1], [-1, 0]]
    assert sorted(texts(figure)) == ["+3", "+5", "-2"]
    assert texts(draw_confusion(np.full((30, 30), 2), "", ["a"] * 30)) == []


def test_both_predictions_stand_under_an_image(tmp_path: Path) -> None:
    figure = draw_gallery("broken", saved_predictions(tmp_path), CLASSES)
    assert texts(figure) == ["<b>cow</b> →\ndog", "<b>cow</b> →\ncat"]
    shown = figure.axes[0].images[0].get_array()
    assert (shown.shape, shown.max()) == ((4, 4, 3), 50)
    base = saved_predictions(tmp_path, "pretrain")
    assert texts(draw_gallery("confused_base", base, CLASSES)) == ["cat → dog", "dog → cat"]


def test_predictions_are_drawn_with_name_and_probability(tmp_path: Path) -> None:
    base = {"class": "9 - nine", "probability": 0.75}
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


@pytest.mark.parametrize(
    ("net", "settings"),
    [
        (TinyNet(), {"rank": 8, "alpha": 3, "use_rslora": True}),  # more than there are outputs
        (TinyNet(), {"rank": 2, "init": "pissa"}),
        (CNN(), {"rank": 2}),
    ],
)
def test_singular_values_are_those_of_the_dense_update(
    net: nn.Module, settings: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    save_adapter(randomize(add_lora(net, **settings)), tmp_path)
    factors = read_factors(tmp_path)
    assert factors.keys() == lora_weights(net).keys()
    for name, weight in lora_weights(net).items():
        update = weight.module.weight - weight.base
        dense = torch.linalg.svdvals(update.detach().flatten(1)).numpy()
        found = singular_values(*factors[name])[: len(dense)]
        values = np.pad(found, (0, len(dense) - len(found)))
        np.testing.assert_allclose(values, dense, atol=1e-4, rtol=1e-4)
