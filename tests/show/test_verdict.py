from typing import Any

import pytest
from helpers.runs import outcome, repaired, results

from lora_mnist.show.verdict import named, targets_of, training_sentence, verdict, verdict_text

WORDS = "zero one two three four five six seven eight nine"
DIGITS = [f"{n} - {word}" for n, word in enumerate(WORDS.split())]
BASE = [10] * 9 + [70]


def of_digits(broken: int, fixed: int, target: Any = 9, **more: Any) -> dict[str, Any]:
    """A repair of the nines, which breaks so many fours."""
    test = repaired(BASE, [0] * 4 + [broken] + [0] * 5, [0] * 9 + [fixed])
    found = {"stage": "lora", "classes": DIGITS, "digit": target, "replay": 0, **more}
    return {**found, "test": test, "test_base": outcome(BASE, 1000)}


HARM = "nines: 70 errors -> 9; the other digits: 90 -> 1,844 (broken 1,754): the repair did more "
TWO = {"classes": ["a", "b"], "digit": 1, "test_base": outcome([0, 1])}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            of_digits(1754, 61),
            f"{HARM}harm than good. `experiment=repair` replays the other digits.",
        ),
        # No advice that was already taken.
        (of_digits(1754, 61, replay=90), f"{HARM}harm than good."),
        (of_digits(1754, 61, stage="finetune"), f"{HARM}harm than good."),
        (
            of_digits(5, 5),
            "nines: 70 errors -> 65; the other digits: 90 -> 95 (broken 5): as many errors as "
            "before, 160.",
        ),
        (
            {**TWO, "test": repaired([0, 1], [0, 0], [0, 1])},
            "images of b: 1 error -> 0; the other classes: 0 -> 0: no error is left.",
        ),
        (
            of_digits(0, 1, target=[4, 9]),
            "fours and nines: 80 errors -> 79; the other digits: 80 -> 80: 159 of 160 errors left.",
        ),
        (
            of_digits(5, 61, target=None),
            "all classes: 160 errors -> 104 (broken 5), the nines got better (70 -> 9), the fours "
            "got worse (10 -> 15): 104 of 160 errors left.",
        ),
        (
            results("pretrain"),
            "12 errors in 60 images, most on the images of dog: 9 of 20. `experiment=repair "
            "digit=dog` repairs them.",
        ),
        (
            {"classes": DIGITS, "test": outcome(BASE, 1000)},
            "160 errors in 10,000 images, most on the nines: 70 of 1,000. `experiment=repair "
            "digit=9` repairs them.",
        ),
        ({"classes": ["a"], "test": outcome([0])}, "0 errors in 20 images."),
        ({"stage": "lora"}, ""),
    ],
)
def test_what_a_run_found(found: dict[str, Any], expected: str) -> None:
    assert verdict_text(found) == expected


def test_what_is_better_and_what_is_worse() -> None:
    assert [phrase.mood for phrase in verdict(of_digits(2, 61))] == ["good", "bad", "good"]
    assert [phrase.mood for phrase in verdict(results("pretrain"))] == ["plain", "plain", "advice"]


def test_targets() -> None:
    assert [targets_of({"digit": d}) for d in (None, 3, [3, 5])] == [[], [3], [3, 5]]


def test_classes_are_called_as_people_call_them() -> None:
    assert named(["0 - zero", "6 - six"], [0, 1]) == "zeros and sixes"
    assert named(["0", "6"], [0, 1]) == "zeros and sixes"
    assert named(["cat", "dog"], [0, 1]) == "images of cat and dog"


def test_what_is_trained() -> None:
    assert training_sentence("lora", 5466, DIGITS, [9], 90, 0.5) == (
        "training an adapter on 5,466 nines and 90 replayed images of the other digits a step, "
        "hard ones preferred"
    )
    assert training_sentence("pretrain", 55_000, DIGITS, None) == (
        "training a base on 55,000 images of 10 classes"
    )
