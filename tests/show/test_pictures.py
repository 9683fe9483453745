from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.runs import CLASSES, answers, images

from lora_mnist.disk.predictions import Answers, read_answers, write_answers
from lora_mnist.show.pictures import (
    _label as label,
)
from lora_mnist.show.pictures import (
    caption,
    draw_gallery,
    draw_layer,
    draw_predictions,
    pixel_layer,
    shade,
    short_name,
)
from lora_mnist.show.spectrum import Update


def kept(folder: Path, pair: bool = True, channels: int = 1) -> Answers:
    write_answers(answers(pair), images(channels), folder)
    found = read_answers(folder)
    assert found is not None
    return found


def test_both_answers_stand_under_an_image(tmp_path: Path) -> None:
    found = kept(tmp_path)
    assert caption(found.galleries["repaired"], found, 0, CLASSES) == "cat → dog"
    assert caption(found.galleries["broken"], found, 0, CLASSES) == "<b>cow</b> → dog"


def test_of_a_base_what_it_is_and_the_answer(tmp_path: Path) -> None:
    found = kept(tmp_path, pair=False)
    assert caption(found.galleries["wrong"], found, 0, CLASSES) == "dog: cat"


def test_names_are_short() -> None:
    assert [short_name(n) for n in ("9 - nine", "cat")] == ["9", "cat"]


def test_grey_and_colour_become_rgb() -> None:
    assert shade(np.full((1, 2, 3), 7, dtype=np.uint8)).tolist() == [[[7] * 3] * 3] * 2
    colour = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    assert shade(colour)[0, 1].tolist() == [1, 5, 9]


def test_a_gallery_has_its_images_and_captions(tmp_path: Path) -> None:
    found = kept(tmp_path)
    figure = draw_gallery("broken", found.galleries["broken"], found, CLASSES)
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.texts] == ["<b>cow</b> → dog", "<b>cow</b> → cat"]
    paper = axes.images[0].get_array()
    assert (paper[:4, :4, :3] == 50).all()
    assert figure.texts[0].get_text() == "2 broken images"


def test_the_layer_that_sees_the_pixels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    updates = {
        "hidden": Update(torch.randn(2, 9), torch.randn(3, 2), 1.0),
        "pixels": Update(torch.randn(2, 16), torch.randn(30, 2), 1.0),
    }
    found = kept(tmp_path)
    assert pixel_layer(updates, found) == "pixels"
    figure = draw_layer("pixels", updates["pixels"], found)
    assert len(figure.axes[0].texts) == 16
    del updates["pixels"]
    assert pixel_layer(updates, found) is None


def test_an_adapter_that_adds_nothing(tmp_path: Path) -> None:
    draw_layer("pixels", Update(torch.ones(1, 16), torch.zeros(3, 1), 1.0), kept(tmp_path))


def prediction(
    file: str, base: str = "cat", adapted: str | None = None, note: str | None = None
) -> dict[str, Any]:
    sides = {"base": base, "adapted": adapted} if adapted else {"base": base}
    answers = {side: {"class": name, "probability": 0.876} for side, name in sides.items()}
    return {"file": file, "note": note, **answers}


def page(*predictions: dict[str, Any], channels: int = 1, side: int = 28) -> Any:
    image = np.full((channels, side, side), 100, dtype=np.uint8)
    return np.asarray(draw_predictions([image] * len(predictions), predictions, "pictures"))


@pytest.mark.parametrize(("count", "width"), [(1, 480), (7, 840), (10, 1200), (60, 1200)])
def test_a_page_has_ten_in_a_row(count: int, width: int) -> None:
    pixels = page(*(prediction(f"{n}.png", "9 - nine", "4 - four") for n in range(count)))
    rows = -(-count // 10)
    height = (pixels.shape[0] - 52) // rows
    assert pixels.shape == (52 + rows * height, width, 3)
    # The last image is in its place, three times its size.
    y, x = 52 + (rows - 1) * height + 7, ((count - 1) % 10) * 120 + 18
    assert (pixels[y : y + 84, x : x + 84] == 100).all()
    assert (pixels[y - 1, x : x + 84] == 255).all()


@pytest.mark.parametrize(("channels", "side"), [(3, 300), (1, 99), (3, 5)])
def test_images_of_any_size_fit(channels: int, side: int) -> None:
    pixels = page(prediction("a.png"), channels=channels, side=side)
    grey = (pixels == 100).all(-1)
    shown = [int(grey.any(axis).sum()) for axis in (0, 1)]
    assert shown == [98 if side > 98 else 95] * 2


def test_what_stands_below_an_image() -> None:
    long = "some/folder/a_very_long_name_of_a_picture.png"
    lines = label(prediction(long, "9 - nine", "4 - four", "several digits"))
    assert [text for text, _ in lines] == [
        *("a_very_l…ture.png", "base 9  0.88", "adapted 4  0.88 ≠", "(several digits)"),
    ]
    assert lines[2][1]["weight"] == "bold"
    assert [text for text, _ in label(prediction("a.png"))] == ["a.png", "cat  0.88"]
    assert label(prediction("a.png", "cat", "cat"))[2] == ("adapted cat  0.88", {})


def test_long_names_have_wider_cells() -> None:
    names = ("a golden retriever", "another long name")
    pixels = page(*(prediction("a.png", *names) for _ in range(10)))
    assert 480 < pixels.shape[1] < 1200
    assert pixels.shape[0] > page(*[prediction("a.png", "9", "4")] * 10).shape[0]


def test_names_are_no_formulas_and_may_lack_letters(recwarn: pytest.WarningsRecorder) -> None:
    page(prediction("price $5 $6.png"), prediction("九.png", "$a_b$", "九"))
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
