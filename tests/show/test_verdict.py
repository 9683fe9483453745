from typing import Any

import pytest
from helpers.runs import confusion, outcome, repaired, results

from lora_mnist.show.verdict import (
    confusions,
    named,
    short_name,
    training_sentence,
    verdict,
    verdict_text,
)

WORDS = "zero one two three four five six seven eight nine"
DIGITS = [f"{n} - {word}" for n, word in enumerate(WORDS.split())]
BASE = [10] * 9 + [70]


def of_digits(broken: int, fixed: int, target: Any = 9, **more: Any) -> dict[str, Any]:
    """A repair of the nines, which breaks so many fours."""
    test = repaired(BASE, [0] * 4 + [broken] + [0] * 5, [0] * 9 + [fixed], 1000)
    found = {"stage": "lora", "classes": DIGITS, "digit": target, "replay": 0, **more}
    return {**found, "test": test, "test_base": outcome(BASE, 1000)}


def of_mistakes() -> dict[str, Any]:
    """A hotfix that mends nine of ten mistakes learnt, and four of five held out."""
    mended = {"mistakes": repaired([9, 0], [0, 0], [9, 0], 5), "mistakes_base": outcome([9, 0], 5)}
    held_out = repaired([5, 0], [0, 0], [4, 0], 5)
    held_out["images_per_class"] = [5, 0]
    mended |= {"mistakes_test": held_out, "mistakes_test_base": outcome([5, 0], 5)}
    return {**of_digits(40, 0, target=None), **mended}


HARM = "nines: 70 errors -> 9; the other digits: 90 -> 1,844 (broken 1,754): the repair did more "
#: A base and an adapted network that both guess.
RANDOM = {
    "stage": "eval",
    **{"classes": [*"abcde"], "digit": 4, "test_base": outcome([10, 50, 50, 50, 45], 50)},
    "test": repaired([10, 50, 50, 50, 45], [40, 0, 0, 0, 0], [0, 5, 5, 5, 45], 50),
}
DIAL = {
    "scales": [0, 0.4, 1],
    "errors": [180, 171, 923],
    "errors_of_target": [28, 11, 4],
    "errors_elsewhere": [152, 160, 919],
    "advised": 0.4,
    "saved": 1,
}
TWO = {"stage": "eval", "classes": ["a", "b"], "digit": 1, "test_base": outcome([0, 9])}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            of_digits(1754, 61, dial=DIAL),
            f"{HARM}harm than good. At 0.4 of its size (nines 28 -> 11, the other digits 152 -> "
            "160 validation errors): `eval.py adapter=latest scale=0.4`. `experiment=repair` "
            "replays the other digits.",
        ),
        (
            of_digits(1754, 61, dial={**DIAL, "advised": 0}),
            f"{HARM}harm than good. No smaller scale leaves fewer validation errors than the base. "
            "`experiment=repair` replays the other digits.",
        ),
        (
            of_digits(0, 0, replay=90, dial={**DIAL, "advised": 0, "saved": 0}),
            "nines: 70 errors -> 70; the other digits: 90 -> 90: the adapter was turned off: no "
            "scale leaves fewer validation errors. `loss.target_weight=0.2` repairs less, and "
            "breaks less of the other digits.",
        ),
        # No advice that was already taken.
        (
            of_digits(1754, 61, replay=90, dial={**DIAL, "saved": 0.4}),
            f"{HARM}harm than good. `loss.target_weight=0.2` repairs less, and breaks less of the "
            "other digits.",
        ),
        (
            of_digits(1754, 61, replay=90, target_weight=0.2),
            f"{HARM}harm than good. `stage=finetune digit=null data.batch_size=100` trains on "
            "instead.",
        ),
        (of_digits(1754, 61, stage="finetune"), f"{HARM}harm than good."),
        (
            of_digits(5, 5),
            "nines: 70 errors -> 65 (may be chance, p = 0.062); the other digits: 90 -> 95 (broken "
            "5, may be chance, p = 0.062): 5 repaired, 5 broken: no more than chance would do, p = "
            "1.",
        ),
        (
            {**TWO, "test": repaired([0, 9], [0, 0], [0, 9])},
            "images of b: 9 errors -> 0; the other classes: 0 -> 0: 0 of 9 errors left.",
        ),
        (
            of_digits(0, 1, target=[4, 9]),
            "fours and nines: 80 errors -> 79 (may be chance, p = 1); the other digits: 80 -> 80: "
            "1 repaired, 0 broken: no more than chance would do, p = 1.",
        ),
        (
            of_digits(20, 0, target=None, dial={**DIAL, "saved": 0.5}),
            "test images: 160 errors -> 180 (broken 20): the repair did more harm than good. At "
            "0.8 of its size (all classes 180 -> 171 validation errors): `eval.py adapter=latest "
            "scale=0.8`.",
        ),
        (
            RANDOM,
            "images of e: 45 errors -> 0; the other classes: 160 -> 185 (broken 40): 185 of 200 "
            "images of the other classes are wrong, no better than guessing.",
        ),
        (
            results("pretrain"),
            "12 errors in 60 images, most on the images of dog: 9 of 20. `experiment=repair "
            "digit=dog` repairs them.",
        ),
        (
            of_mistakes(),
            "mistakes learnt: 1 right -> 10 of 10; mistakes held out: 0 right -> 4 of 5; test "
            "images: 160 errors -> 200 (broken 40): mending them cost 40 test errors.",
        ),
        ({"classes": ["a"], "test": outcome([0])}, "0 errors in 20 images."),
        ({"stage": "lora"}, ""),
    ],
)
def test_what_a_run_found(found: dict[str, Any], expected: str) -> None:
    assert verdict_text(found) == expected


def test_what_is_better_and_what_is_worse() -> None:
    def moods(found: dict[str, Any]) -> list[str]:
        return [phrase.mood for phrase in verdict(found)]

    assert moods(of_digits(12, 61)) == ["good", "bad", "good"]
    assert moods(of_digits(2, 61)) == ["good", "plain", "good"]
    assert moods(of_digits(50, 61)) == ["good", "bad", "plain"]
    # Nothing is good where the whole is bad, or everything else is wrong.
    assert moods(of_digits(1754, 61)) == ["plain", "bad", "bad", "advice"]
    assert "good" not in moods(RANDOM)
    assert moods(results("pretrain")) == ["plain", "plain", "advice"]


def test_what_is_taken_for_what() -> None:
    def lines(found: dict[str, Any]) -> list[str]:
        return [" ".join(text for text, _ in line) for line in confusions(found).values()]

    found = of_digits(0, 50, adapter="adapter")
    assert lines(found) == []
    found["test_base"]["confusions"] = [confusion(4, 9, 1021), confusion(9, 4, 18), confusion(6, 0)]
    found["test"]["confusions"] = [confusion(7, 9, 2), confusion(4, 9, 2)]
    base, adapted = lines(found)
    assert base == (
        "largest confusions, base: 1,021 fours taken for nines, 18 nines taken for fours, 1 of the "
        "sixes taken for zeros."
    )
    said = "largest confusions, adapted: 2 sevens taken for nines, 2 fours taken for nines."
    assert adapted == f"{said} `experiment=repair 'digit=[4,7]' adapter=latest` repairs them."
    tested = found | {"stage": "eval", "adapter": "/my runs/1"}
    command = "experiment=repair 'digit=[4,7]' \"adapter='/my runs/1'\""
    assert lines(tested)[1] == f"{said} `{command}` repairs them."
    assert lines(found | {"stage": "finetune", "adapter": None})[1] == said
    harm = of_digits(1754, 61, adapter="adapter")
    harm["test"]["confusions"] = found["test"]["confusions"]
    assert lines(harm) == [said]
    base = {"classes": ["a cat", "b"], "test": {"confusions": [confusion(0, 1, 3)]}}
    assert lines(base)[0].endswith("`experiment=repair \"digit='a cat'\"` repairs them.")


def test_classes_are_called_as_people_call_them() -> None:
    assert named(["0 - zero", "6 - six"], [0, 1]) == "zeros and sixes"
    assert named(["0", "6"], [0, 1]) == "zeros and sixes"
    assert named(["cat", "dog"], [0, 1]) == "images of cat and dog"
    assert [short_name(name) for name in ("9 - nine", "shirt - red")] == ["9", "shirt - red"]


def test_what_is_trained() -> None:
    assert training_sentence("lora", 5466, DIGITS, [9], 90) == (
        "training an adapter on 5,466 nines and 90 replayed images a step"
    )
    assert training_sentence("finetune", 31, DIGITS, None, are_mistakes=True) == (
        "training the base's own weights on 31 mistakes"
    )
