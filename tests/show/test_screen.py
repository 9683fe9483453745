import sys
from io import StringIO
from pathlib import Path

from composed import logged
from helpers.runs import outcome, repaired

from lora_mnist import CNN, add_lora
from lora_mnist.classifier import Prediction
from lora_mnist.show.reading import Reading
from lora_mnist.show.screen import print_parameters, print_predictions, print_results

BASE = outcome([30, 4], images=100)
REPAIRED = repaired([30, 4], [1, 4], [21, 1], images=100)


def printed(function, *arguments, to="log"):
    with logged(f"lora_mnist.show.{to}") as text:
        function(*arguments)
    return text.getvalue()


def results(**more):
    run = {"stage": "eval", "adapter": "here", "classes": ["cat", "dog"], "targets": [1]}
    run |= {"test": REPAIRED, "test_base": BASE, "steps": 0, "overrides": None}
    return {**run, **more}


def printed_results(run, to="log"):
    return printed(print_results, Reading(run), Path(), to=to)


def cells(text):
    """The rows of a table as they are printed, without the lines between them."""
    rows = (line.replace("┃", "│").split("│")[1:-1] for line in text.splitlines())
    return [[cell.strip() for cell in row] for row in rows if row]


def test_parameters():
    net = CNN()
    net.conv1.bias = None
    assert cells(printed(print_parameters, net))[1] == ["conv1", "16 x 1 x 3 x 3", "-"]
    text = printed(print_parameters, add_lora(net, target_modules=["conv1"]))
    rows = cells(text)
    assert rows[0] == ["layer", "W", "b", "lora_A", "lora_B"]
    assert rows[1] == ["conv1", "16 x 1 x 3 x 3", "-", "1 x 1 x 3 x 3", "16 x 1 x 1 x 1"]
    assert text.splitlines()[-1].endswith("trainable: 25")


def test_results_of_a_repair():
    text = printed_results(results())
    assert "test images, before -> after, * to be repaired" in text
    assert cells(text) == [
        ["class", "errors", "repaired", "broken", "false calls", "images", "95% interval"],
        ["cat", "30 -> 10", "21", "1", "4 -> 7", "100", "6-17"],
        ["dog *", "4 -> 7", "1", "4", "30 -> 10", "100", "3-14"],
        ["all", "34 -> 17", "22", "5", "", "200", "11-26"],
    ]
    assert "\naccuracy: 0.8300 -> 0.9150\n" in text
    assert "\nOn dog: 4 errors -> 7 (1 repaired, 4 broken, may be chance, p = 0.38).\n" in text


def test_a_terminal_gets_its_width_and_colours(monkeypatch):
    """Long names are folded, and commands not broken. The log stays plain."""
    monkeypatch.setattr(sys, "stdout", StringIO())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    typed = f"data.data_dir={'long/' * 40}"
    run = results(stage="eval", adapter=None, targets=[], test=BASE, overrides=[typed])
    del run["test_base"]
    run |= {"training_images_per_class": [100, 100], "validation_images": 20}
    run["classes"] = ["c" * 60, "[b]dog"]
    text = printed_results(run, to="screen")
    assert "\x1b[1m" in text
    assert "…" not in text
    assert "[b]dog" in text
    plain = printed_results(run)
    assert "\x1b" not in plain
    assert plain.splitlines()[-1].endswith(f"experiment=repair target=weakest {typed}")


def test_predictions_that_differ_are_marked():
    four = Prediction("4", 0.75, [])
    other = {"file": "b[1].png", "before": Prediction("9", 0.98765, []), "after": four}
    same = {"file": "c.png", "before": four, "after": Prediction("4", 0.5, [])}
    text = printed(print_predictions, [other, same])
    assert cells(text) == [
        ["picture", "before", "after"],
        ["b[1].png", "9 (0.988)", "4 (0.750) *"],
        ["c.png", "4 (0.750)", "4 (0.500)"],
    ]
    assert text.splitlines()[-1] == "* before and after differ: 1 of 2 pictures"
    assert cells(printed(print_predictions, [{"file": "c.png", "before": four}])) == [
        ["picture", "prediction"],
        ["c.png", "4 (0.750)"],
    ]
