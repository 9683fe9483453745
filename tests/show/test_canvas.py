import pytest

from lora_mnist.show.canvas import STYLE, WIDTH, add_title, cut, figure_of, margin, new_axes, rgb


def test_axes_lie_within_their_figure() -> None:
    axes = new_axes(3.0, left=1.0, top=0.5, bottom=0.5)
    figure = figure_of(axes)
    assert figure.get_size_inches().tolist() == [WIDTH, 3.0]
    box = axes.get_position()
    assert box.x0 == pytest.approx(1.0 / WIDTH)
    assert 0 < box.y0 < box.y1 < 1


def test_a_title_and_what_it_means() -> None:
    axes = new_axes(3.0, left=1.0)
    add_title(axes, "errors", "on test")
    assert [text.get_text() for text in figure_of(axes).texts] == ["errors", "on test"]


def test_names_fit_the_margin() -> None:
    assert cut("a" * 40) == "a" * 21 + "…"
    assert cut("$x$") == r"\$x\$"
    assert margin(["a"]) < margin(["a" * 20]) <= 2.2
    assert margin([]) > 0


def test_text_stays_text_in_an_svg() -> None:
    assert STYLE["svg.fonttype"] == "none"
    assert rgb("#ff0080") == [1.0, 0.0, pytest.approx(128 / 255)]
