from typing import Any

import pytest
from helpers.runs import outcome, repaired, results

from lora_mnist.show.verdict import (
    Phrase,
    named,
    targets_of,
    training_sentence,
    verdict,
    verdict_text,
)

WORDS = "zero one two three four five six seven eight nine"
DIGITS = [f"{n} - {word}" for n, word in enumerate(WORDS.split())]
BASE = [10] * 9 + [70]


def of_digits(broken: int, fixed: int, target: Any = 9, **more: Any) -> dict[str, Any]:
    """A repair of the nines, which breaks so many fours."""
    test = repaired(BASE, [0] * 4 + [broken] + [0] * 5, [0] * 9 + [fixed])
    found = {"stage": "lora", "classes": DIGITS, "digit": target, "replay": 0, **more}
    return {**found, "test": test, "test_base": outcome(BASE, 1000)}


def test_more_harm_than_good_and_what_to_do() -> None:
    assert verdict_text(of_digits(broken=1754, fixed=61)) == (
        "nines: 70 errors -> 9; the other digits: 90 -> 1,844 (broken 1,754): the repair did more "
        "harm than good. `experiment=repair` replays the other digits."
    )


def test_no_advice_that_was_already_taken() -> None:
    for more in ({"replay": 90}, {"stage": "finetune"}):
        assert verdict_text(of_digits(1754, 61, **more)).endswith("more harm than good.")


def test_errors_that_are_left() -> None:
    phrases = verdict(of_digits(broken=2, fixed=61))
    assert [phrase.mood for phrase in phrases] == ["good", "bad", "good"]
    assert phrases[-1].text == "101 of 160 errors left."


def test_as_many_as_before() -> None:
    assert verdict(of_digits(broken=5, fixed=5))[-1] == Phrase("as many errors as before, 160.")


def test_none_is_left() -> None:
    base, test = outcome([0, 1]), repaired([0, 1], [0, 0], [0, 1])
    found = {"classes": ["a", "b"], "digit": 1, "test": test, "test_base": base}
    assert verdict_text(found) == (
        "images of b: 1 error -> 0; the other classes: 0 -> 0: no error is left."
    )


def test_several_classes_and_all_of_them() -> None:
    text = verdict_text(of_digits(0, 1, target=[4, 9]))
    assert text.startswith("fours and nines: 80 errors -> 79; the other digits:")
    everything = list(range(10))
    text = verdict_text(of_digits(0, 1, target=everything))
    assert text.endswith("eights and nines: 160 errors -> 159: 159 of 160 errors left.")


def test_adapters_of_which_the_class_is_not_known() -> None:
    assert verdict_text(of_digits(5, 61, target=None)) == (
        "all classes: 160 errors -> 104 (broken 5), the nines got better (70 -> 9), the fours got "
        "worse (10 -> 15): 104 of 160 errors left."
    )


def test_a_base_alone() -> None:
    assert verdict_text(results("pretrain")) == (
        "12 errors in 60 images, most on the images of dog: 9 of 20. "
        "`experiment=repair digit=dog` repairs them."
    )
    base = of_digits(0, 0)
    del base["test_base"]
    assert verdict_text(base).endswith("`experiment=repair digit=9` repairs them.")
    right = {"classes": ["a"], "test": outcome([0])}
    assert verdict_text(right) == "0 errors in 20 images."


def test_nothing_to_say_without_a_test() -> None:
    assert verdict({"stage": "lora"}) == []


def test_targets() -> None:
    assert [targets_of({"digit": d}) for d in (None, 3, [3, 5])] == [[], [3], [3, 5]]
    assert targets_of({}) == []


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["0 - zero", "6 - six"], "zeros and sixes"),
        (["0", "6"], "zeros and sixes"),
        (["cat", "dog"], "images of cat and dog"),
    ],
)
def test_classes_are_called_as_people_call_them(classes: list[str], expected: str) -> None:
    assert named(classes, [0, 1]) == expected


def test_what_is_trained() -> None:
    assert training_sentence("lora", 5466, DIGITS, [9], 90, 0.5) == (
        "training an adapter on 5,466 nines and 90 replayed images of the other digits a step, "
        "hard ones preferred"
    )
    assert training_sentence("pretrain", 55_000, DIGITS, None) == (
        "training a base on 55,000 images of 10 classes"
    )
    assert training_sentence("finetune", 30, ["cat", "dog"], [0]) == (
        "training the base's own weights on 30 images of cat"
    )
