"""The words of choices and their reasons."""

import ast

from composed import logged
from helpers.commands import ROOT

from lora_mnist.choice import Choice, Reason
from lora_mnist.show.reasons import WORDS, format_choice, log_choices


def test_a_value_that_somebody_has_set_is_not_logged():
    decided = Choice(0.003, [Reason("first_learning_rate")])
    known = Choice(9, [Reason("set", key="target", where="command line")])
    with logged("lora_mnist.show.reasons") as log:
        log_choices({"learning_rate": decided, "target": known})
    assert log.getvalue() == "optimizer.lr=0.003: the first that was tried\n"
    assert format_choice("target", known.record) == "target=9: set on the command line"


def test_each_reason_in_the_source_has_words():
    codes = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Reason":
                codes |= {each.value for each in ast.walk(node.args[0]) if is_text(each)}
    assert codes == WORDS.keys()


def is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
