import logging
from io import StringIO
from typing import Any

import pytest
from composed import logged
from helpers.nets import TinyNet
from torch import nn

from lora_mnist import CNN, add_lora
from lora_mnist.show.screen import Screen
from lora_mnist.show.tables import print_parameters, print_predictions, print_results


def cells(text: str) -> list[list[str]]:
    """The rows of a table as they are printed, without the lines between them."""
    rows = (line.replace("┃", "│").split("│")[1:-1] for line in text.splitlines())
    return [[cell.strip() for cell in row] for row in rows if row]


def parameters(net: Any) -> str:
    with logged("lora_mnist.show.tables") as text:
        print_parameters(net)
    return text.getvalue()


def outcome(errors: list[int], **more: Any) -> dict[str, Any]:
    counts = {"errors": sum(errors), "errors_per_class": errors, "images_per_class": [100, 200]}
    return {**counts, "accuracy": 1 - sum(errors) / 300, **more}


BASE = outcome([30, 4])
REPAIRED = outcome(
    [10, 7], repaired=22, broken=5, repaired_per_class=[21, 1], broken_per_class=[1, 4]
)


def results(**splits: Any) -> str:
    with logged("lora_mnist.show.tables") as text:
        print_results(splits, ["cat", "dog"])
    return text.getvalue()


def test_parameters_of_a_base(tiny: TinyNet) -> None:
    text = parameters(tiny)
    assert cells(text) == [
        ["layer", "W", "b"],
        ["linear1", "5 x 6", "5"],
        ["linear2", "3 x 5", "3"],
    ]
    assert text.splitlines()[-1] == "parameters: 53; trainable: 53"


def test_parameters_of_an_adapted_network(tiny: TinyNet) -> None:
    add_lora(tiny, rank=2, target_modules="linear1")
    text = parameters(tiny)
    assert cells(text) == [
        ["layer", "W", "b", "lora_A", "lora_B"],
        ["linear1", "5 x 6", "5", "2 x 6", "5 x 2"],
        ["linear2", "3 x 5", "3"] + [""] * 2,
    ]
    assert text.splitlines()[-1] == (
        "parameters: 53 + 22 of LoRA = 75, increase 41.509%; trainable: 22"
    )


def test_parameters_of_convolutions_and_of_layers_without_a_bias() -> None:
    net = CNN()
    net.conv1.bias = None
    rows = cells(parameters(add_lora(net)))
    assert rows[1] == ["conv1", "16 x 1 x 3 x 3", "-", "1 x 1 x 3 x 3", "16 x 1 x 1 x 1"]


def test_results_of_a_base() -> None:
    text = results(test=BASE)
    assert cells(text) == [
        ["class", "images", "errors"],
        ["cat", "100", "30"],
        ["dog", "200", "4"],
        ["all", "300", "34"],
    ]
    assert text.splitlines()[-3:] == [
        "accuracy: 0.8867",
        "34 errors in 300 images, most on the images of cat: 30 of 100. "
        "`experiment=repair digit=cat` repairs",
        "them.",
    ]


def test_results_of_a_repair() -> None:
    text = results(test=REPAIRED, test_base=BASE)
    assert text.splitlines()[0] == "repaired: 22, broken: 5"
    assert cells(text) == [
        ["class", "repaired", "broken", "base errors", "errors", "change", "images"],
        ["cat", "21", "1", "30", "10", "-20", "100"],
        ["dog", "1", "4", "4", "7", "+3", "200"],
        ["all", "22", "5", "34", "17", "-17", "300"],
    ]
    assert text.splitlines()[-3] == "accuracy: 0.8867 -> 0.9433"
    assert " ".join(text.splitlines()[-2:]).endswith(": 17 of 34 errors left.")


def test_the_class_to_repair_stands_out() -> None:
    text = results(test=REPAIRED, test_base=BASE, digit=1)
    assert [row[0] for row in cells(text)] == ["class", "cat", "dog *", "all"]
    assert "test images, * to be repaired" in text
    assert text.splitlines()[-1] == (
        "images of dog: 4 errors -> 7; the other classes: 30 -> 10 (broken 1): "
        "17 of 34 errors left."
    )


def test_nothing_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long names are folded; none is cut."""

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    splits = {"test": REPAIRED, "test_base": BASE, "digit": 1}
    stack = {f"2026-11-25_03-28-52-37720{n}": outcome([20, 5]) for n in range(3)}
    handler, log = Screen(Terminal()), logging.getLogger("lora_mnist.show.tables")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    print_results({**splits, "each": stack}, ["c" * 60, "dog"])
    log.removeHandler(handler)
    shown = handler.stream.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown


def test_results_of_each_adapter() -> None:
    text = results(test=REPAIRED, test_base=BASE, each={"nine": outcome([20, 5])})
    assert cells(text)[-4:] == [
        ["errors with", "base", "nine", "all adapters"],
        ["cat", "30", "20", "10"],
        ["dog", "4", "5", "7"],
        ["all", "34", "25", "17"],
    ]


def many(errors: list[int]) -> dict[str, Any]:
    counts = {"errors_per_class": errors, "images_per_class": [10] * len(errors)}
    return {**counts, "errors": sum(errors), "accuracy": 1 - sum(errors) / (10 * len(errors))}


@pytest.mark.parametrize("target", [None, 7, [7, 8]])
def test_of_very_many_classes_those_that_matter_have_rows(target: Any) -> None:
    errors = [0] * 30 + [3] * 70  # class 7 and 8 have none
    with logged("lora_mnist.show.tables") as text:
        print_results({"test": many(errors), "digit": target}, [f"c{n}" for n in range(100)])
    rows = cells(text.getvalue())
    names = [row[0] for row in rows]
    targets = [f"c{n}" for n in (7, 8) if target is not None and (n == 7 or target != 7)]
    assert names[1 : 1 + len(targets)] == targets
    assert len(names) == 1 + 20 + 2
    assert rows[-2] == ["80 others", "800", str(3 * (50 + len(targets)))]
    assert rows[-1] == ["all", "1000", "210"]


def test_of_very_many_layers_the_first_have_rows() -> None:
    net = nn.Sequential(*(nn.Linear(1, 1) for _ in range(50)))
    rows = cells(parameters(net))
    assert [row[0] for row in rows] == ["layer", *map(str, range(20)), "30 more"]


def prediction(file: str, **sides: tuple[str, float]) -> dict[str, Any]:
    found = {side: {"class": name, "probability": p} for side, (name, p) in sides.items()}
    return {"file": file, **found}


def predicted(*predictions: dict[str, Any]) -> str:
    with logged("lora_mnist.show.tables") as text:
        print_predictions([*predictions])
    return text.getvalue()


def test_predictions() -> None:
    base = prediction("a[1].png", base=("9 - nine", 0.98765))
    assert cells(predicted(base)) == [["picture", "base"], ["a[1].png", "9 (0.988)"]]
    both = prediction("a[1].png", base=("4", 0.5), adapted=("4", 0.25))
    assert cells(predicted(both))[1] == ["a[1].png", "4 (0.500)", "4 (0.250)"]


def test_a_name_does_not_command_the_terminal() -> None:
    text = predicted(prediction("\x1b[31ma  b.png", base=("4", 0.5)))
    assert cells(text)[1] == [r"\x1b[31ma  b.png", "4 (0.500)"]


def test_predictions_that_differ_and_notes_are_marked() -> None:
    other = prediction("b.png", base=("4", 0.5), adapted=("9", 0.75))
    same = prediction("c.png", base=("4", 0.5), adapted=("4", 0.5))
    text = predicted({**other, "note": "no digit"}, {**same, "note": None})
    assert cells(text) == [
        ["picture", "base", "adapted", "note"],
        ["b.png", "4 (0.500)", "9 (0.750) *", "no digit"],
        ["c.png", "4 (0.500)", "4 (0.500)", ""],
    ]
    assert text.splitlines()[-1] == "* base and adapted differ: 1 of 2 pictures"


def test_pictures_of_one_folder_are_named_below_it() -> None:
    folder = "/a/" + 20 * "long/" + "folder"
    files = (f"{folder}/1.png", f"{folder}/x/2.png")
    text = predicted(*(prediction(file, base=("4", 0.5)) for file in files))
    assert text.splitlines()[0] == f"pictures in {folder}"
    assert [row[0] for row in cells(text)[1:]] == ["1.png", "x/2.png"]
    assert [row[0] for row in cells(predicted(prediction(files[0], base=("4", 0.5))))[1:]] == [
        files[0]
    ]
    mixed = predicted(*(prediction(file, base=("4", 0.5)) for file in ("1.png", files[0])))
    assert [row[0] for row in cells(mixed)[1:]] == ["1.png", files[0]]


def test_no_predictions() -> None:
    with logged("lora_mnist.show.tables") as text:
        print_predictions([])
    assert cells(text.getvalue()) == [["picture"]]
