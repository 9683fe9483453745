from pathlib import Path

import numpy as np
import torch
from helpers.runs import CLASSES, answers, images

from lora_mnist.answers import Answers, read_answers, write_answers
from lora_mnist.show.pictures import (
    caption,
    draw_gallery,
    draw_layer,
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
