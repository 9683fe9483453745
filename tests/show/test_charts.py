import numpy as np
import torch
from helpers.runs import outcome, results
from matplotlib.patches import Rectangle

from lora_mnist.show.charts import draw_confusion, draw_errors, draw_singular_values
from lora_mnist.show.spectrum import Update


def texts(figure: object) -> list[str]:
    (axes,) = figure.axes  # type: ignore[attr-defined]
    return [text.get_text() for text in axes.texts]


def test_errors_before_and_after() -> None:
    found = results()
    figure = draw_errors(found, found["classes"])
    (axes,) = figure.axes
    bars = [int(p.get_width()) for p in axes.patches if isinstance(p, Rectangle)]
    assert bars == [*found["test_base"]["errors_per_class"], *found["test"]["errors_per_class"]]
    bold = [t.get_text() for t in axes.get_yticklabels() if t.get_fontweight() == "bold"]
    assert bold == ["dog"]


def test_errors_of_a_base_alone() -> None:
    figure = draw_errors(results("pretrain"), ["a", "b", "c"])
    assert texts(figure) == ["2", "9", "1"]


def test_of_many_classes_the_worst() -> None:
    errors = list(range(100))
    figure = draw_errors({"test": outcome(errors)}, [f"class {n}" for n in errors])
    assert texts(figure) == [str(n) for n in range(60, 100)]


def test_confusion_tells_better_from_worse() -> None:
    change = np.array([[-3, 3], [-1, 1]])
    figure = draw_confusion(change, "change", ["0 - zero", "1 - one"], signed=True)
    assert texts(figure)[:4] == ["-3", "+3", "-1", "+1"]
    cells = figure.axes[0].images[0].get_array()
    red, green = cells[0, 0, :3], cells[1, 1, :3]
    assert red[0] > red[1]
    assert green[1] > green[0]
    assert np.array_equal(cells[0, 1, :3], red)
    assert np.array_equal(cells[1, 0, :3], green)


def test_confusion_of_many_classes_has_no_numbers() -> None:
    figure = draw_confusion(np.eye(60, dtype=int), "base", [str(n) for n in range(60)])
    assert texts(figure) == ["answer"]
    draw_confusion(np.zeros((1, 1), dtype=int), "base", ["only"])


def test_singular_values() -> None:
    torch.manual_seed(0)
    layer = Update(torch.randn(3, 7), torch.randn(5, 3), 2.0)
    (axes,) = draw_singular_values({"linear1": layer}).axes
    (line,) = axes.lines
    assert np.allclose(line.get_ydata(), layer.singular_values().numpy())


def test_of_rank_1_the_size() -> None:
    layer = Update(torch.full((1, 4), 1.0), torch.full((9, 1), 2.0), 0.5)
    assert texts(draw_singular_values({"a": layer, "b": layer})) == ["6", "6"]
