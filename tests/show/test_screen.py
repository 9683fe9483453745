import sys
from io import StringIO
from pathlib import Path

import pytest
from composed import logged
from helpers.commands import split_cells
from helpers.runs import results
from torch import nn

from lora_mnist import CNN, add_lora
from lora_mnist.classifier.classifier import Prediction
from lora_mnist.lora.adapter import adapter_files
from lora_mnist.lora.base_state import count_parameters
from lora_mnist.show.run_results import RunResults
from lora_mnist.show.screen import print_parameters, print_predictions, print_results


def printed(function, *arguments, to="file"):
    with logged(f"lora_mnist.tables.{to}") as text:
        function(*arguments)
    return text.getvalue()


def printed_results(run, to="file"):
    return printed(print_results, RunResults(run), Path(), to=to)


def test_print_parameters():
    net = CNN()
    net.conv1.bias = None
    assert split_cells(printed(print_parameters, net))[1] == ["conv1", "16 x 1 x 3 x 3", "-"]
    text = printed(print_parameters, add_lora(net, target_modules=["conv1"]))
    rows = split_cells(text)
    assert rows[0] == ["layer", "W", "b", "lora_A", "lora_B"]
    assert rows[1] == ["conv1", "16 x 1 x 3 x 3", "-", "1 x 1 x 3 x 3", "16 x 1 x 1 x 1"]
    assert text.splitlines()[-1].endswith("trainable: 25; saved: 25")


def test_many_layers_are_counted_by_kind_and_the_log_has_their_table():
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(14)], nn.Conv2d(4, 4, 1, groups=4))
    add_lora(net)
    assert "layers: 14 Linear adapted, 1 Conv2d not adapted" in printed(
        print_parameters, net, to="screen"
    )
    assert len(split_cells(printed(print_parameters, net))) == 16


@pytest.mark.parametrize("init", ["gaussian", "pissa", "dora"])
def test_what_is_saved_is_what_the_file_has(init):
    net = add_lora(CNN(), rank=2, init=init)
    tensors = adapter_files(net, {"base_sha256": ""}).tensors
    count = sum(tensor.numel() for tensor in tensors.values())
    assert count_parameters(net)["saved"] == count >= count_parameters(net)["lora"]
    assert printed(print_parameters, net).rstrip().endswith(f"saved: {count:,}")


def test_print_results_of_a_repair():
    text = printed_results(results())
    assert "test images, before -> after, * to be repaired" in text
    assert split_cells(text) == [
        ["class", "errors", "repaired", "broken", "false positives", "images", "95% interval"],
        ["cat", "2 -> 6", "0", "4", "1 -> 0", "20", "3-10"],
        ["dog *", "9 -> 2", "7", "0", "2 -> 6", "20", "1-6"],
        ["<b>cow</b>", "1 -> 0", "1", "0", "9 -> 2", "20", "0-3"],
        ["all", "12 -> 8", "8", "4", "", "60", "4-14"],
    ]
    change = "0.8000 -> 0.8667"
    assert f"\naccuracy: {change}; balanced: {change}; the mean of both: {change}\n" in text
    assert (
        "\nOn dog: 9 errors -> 2, 2 of them predicted as <b>cow</b> (7 repaired, 0 broken, p"
        in text
    )


def test_a_terminal_gets_its_width_and_colors(monkeypatch):
    """Long names are folded, and commands not broken. The log stays plain."""
    monkeypatch.setattr(sys, "stdout", StringIO())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    command_line = f"data.data_dir={'long/' * 40}"
    run = results("pretrain", overrides=[command_line], classes=["c" * 60, "[b]dog", "cow"])
    text = printed_results(run, to="screen")
    assert "\x1b[1m" in text
    assert "…" not in text
    assert "[b]dog" in text
    plain = printed_results(run)
    assert "\x1b" not in plain
    assert plain.splitlines()[-1].endswith(f"experiment=repair target=weakest {command_line}")


def test_print_predictions_marks_those_that_differ():
    four = Prediction("4", 0.75, [])
    other = {"file": "b[1].png", "before": Prediction("9", 0.98765, []), "after": four}
    same = {"file": "c.png", "before": four, "after": Prediction("4", 0.5, [])}
    text = printed(print_predictions, [other, same])
    assert split_cells(text) == [
        ["picture", "before", "after"],
        ["b[1].png", "9 (0.988)", "4 (0.750) *"],
        ["c.png", "4 (0.750)", "4 (0.500)"],
    ]
    assert text.splitlines()[-1] == "* before and after differ: 1 of 2 pictures"
    assert split_cells(printed(print_predictions, [{"file": "c.png", "before": four}])) == [
        ["picture", "prediction"],
        ["c.png", "4 (0.750)"],
    ]
