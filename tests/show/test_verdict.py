"""Whether to keep a repair, and what is said of it, on made-up runs."""

import re

import pytest
from helpers.runs import CURVE, outcome, repaired, results

from lora_mnist.show.run_results import RunResults
from lora_mnist.show.verdict import describe_run

DIGITS = [str(number) for number in range(10)]
OFF_POINT = {"scale": 0, "offset": 0}
OFF = {"scale_curve": {**CURVE, "advised": OFF_POINT}, "point": OFF_POINT}


def said(run):
    """The sentences, and whether the first one that judges the repair is for keeping it."""
    sentences = describe_run(RunResults(run))
    judging = next(each.text for each in sentences if "repair" in each.text)
    return sentences, judging.startswith("Keep")


def write_verdict(run):
    return " ".join(sentence.text for sentence in describe_run(RunResults(run)))


def about(run, words):
    """The sentence with these words."""
    (sentence,) = [each for each in describe_run(RunResults(run)) if words in each.text]
    return sentence


def find_numbers(sentence):
    return re.findall(r"[\d.,]*\d%?", sentence.text)


def make_run(base, broken, fixed, images=200, **more):
    """A repair of the last class, with replayed images."""
    names = ["coat", "dress", "shirt"] if len(base) == 3 else DIGITS[: len(base)]
    run = {"classes": names, "targets": [len(base) - 1], "overrides": []}
    for part, side in (("test", "after"), ("test_base", "before")):
        run[part] = repaired(base, broken, fixed, images, side, run["targets"])
    return results(**run | more)


def nines(broken, fixed, **more):
    """A repair of the nines, which breaks so many fours."""
    run = make_run([10] * 9 + [70], [0] * 4 + [broken] + [0] * 5, [0] * 9 + [fixed], 1000)
    return {**run, **more}


def mending(broken, mended=9, fixed=0):
    """A hotfix that mends some of ten mistakes, one of each class, and breaks so many fours."""
    base, none = [1] * 10, [0] * 10
    run = nines(broken, fixed, targets=[], mistakes_base=outcome(base, 1))
    run["mistakes"] = repaired(base, none, [1] * mended + [0] * (10 - mended), 1)
    return {**run, "mistakes_test_base": outcome(base, 1), "mistakes_test": outcome(base, 1)}


GOOD = make_run([30, 8, 60], [2, 4, 0], [5, 1, 40])
#: Where the class is repaired, and the others lose as much.
PRICE = make_run([20, 15, 96], [60, 28, 0], [31, 25, 61])
ELSEWHERE = make_run([60, 40, 20], [0, 0, 3], [40, 30, 4])
UNTESTED = make_run([10, 10, 0], [0, 0, 0], [8, 8, 0], [200, 200, 0])
#: Of few shirts some are repaired, and of many coats more are broken: classes count as before.
CLEAR_LOSS = make_run([300, 8, 30], [80, 0, 0], [5, 0, 3], [900, 200, 60])
#: The same, and so many shirts are repaired that classes gain.
LOSS_OF_IMAGES = make_run([30, 8, 16], [60, 0, 0], [5, 0, 12], [900, 200, 20])


def test_a_verdict_in_full():
    """The measure that decides, then all images, the class, its false positives, and the others."""
    assert [(each.judgement, find_numbers(each)) for each in describe_run(RunResults(GOOD))] == [
        ("better", ["83.67%", "90.33%", "0.001"]),
        ("better", ["98", "58", "46", "6", "0.001"]),
        ("better", ["60", "20", "20", "40", "0", "0.001"]),
        ("unclear", ["8", "11", "95%", "94%"]),
        ("unclear", ["38", "38", "6", "6", "1"]),
        ("unclear", ["8", "11", "1", "4", "0.38"]),
    ]


def test_a_verdict_names_the_classes_that_errors_are_predicted_as():
    run, called = dict(GOOD), [None, [0, 3], [1, 15]]
    run["test"] = {**run["test"], "top_confusion_per_class": called}
    assert about(run, "15 of them predicted as dress")
    base = results("pretrain")
    base["test"] |= {"top_confusion_per_class": [None, [0, 8], None]}
    assert about(base, "dog: 9 errors in 20 test images, 8 of them predicted as cat.")


@pytest.mark.parametrize(("last", "falls"), [(40, True), (60, False)])
def test_more_steps_are_named_where_errors_still_fall(last, falls):
    run = {**GOOD, "validation_errors": [[100, 95], [200, 80], [300, 70], [400, last]]}
    run |= {"steps": 400, "max_steps": 400}
    assert ("try trainer.max_steps=800." in write_verdict(run)) == falls
    for max_steps in (1000, -1):  # epochs have ended it
        text = write_verdict(run | {"max_steps": max_steps})
        assert ("try trainer.max_epochs=-1 " in text) == falls


@pytest.mark.parametrize(
    ("broken", "fixed", "expected"),
    [(0, 6, "better"), (6, 0, "worse"), (0, 5, "unclear"), (5, 12, "unclear"), (0, 0, "unclear")],
)
def test_verdict_calls_chance_what_may_be_chance_and_no_reason_to_keep(broken, fixed, expected):
    run = make_run([50, 50], [broken, 0], [fixed, 0], targets=[])
    (judgement, total, *_), is_kept = said(run)
    assert (judgement.judgement, total.judgement) == (expected, expected)
    assert is_kept == (expected == "better")
    assert ("may be chance" in judgement.text) == (expected == "unclear")


@pytest.mark.parametrize(("before", "after", "outcome"), [(0, 21, "worse"), (21, 0, "better")])
def test_more_false_positives_than_chance_are_a_price_in_the_verdict(before, after, outcome):
    run = make_run([5, 60], [0, 0], [0, 40])
    for split, calls in (("test_base", before), ("test", after)):
        run[split]["false_positives_per_class"][1] = run[split]["false_positives_of_target"] = calls
    (first, *_), is_kept = said(run)
    assert is_kept
    assert ("21 more false positives" in first.text) == (outcome == "worse")
    assert about(run, "(false positives)").judgement == outcome


@pytest.mark.parametrize(
    ("run", "is_kept", "judgement"),
    [
        (nines(900, 61), False, "worse"),
        (nines(900, 61, **OFF), False, ""),
        (PRICE, True, "unclear"),
        (ELSEWHERE, True, ""),
        (nines(40, 65), True, ""),
        (UNTESTED, False, ""),
        (CLEAR_LOSS, False, "unclear"),
        ({**CLEAR_LOSS, "choose_by": "mean_accuracy"}, False, "worse"),
        ({**CLEAR_LOSS, "choose_by": "accuracy"}, False, "worse"),
        (LOSS_OF_IMAGES, True, ""),
        ({**LOSS_OF_IMAGES, "choose_by": "mean_accuracy"}, True, ""),
        ({**LOSS_OF_IMAGES, "choose_by": "accuracy"}, False, "worse"),
    ],
)
def test_verdict_says_whether_to_keep_it(run, is_kept, judgement):
    (first, *others), kept = said({**run})
    assert (kept, first.judgement) == (is_kept, judgement)
    assert ("docs/failed.md" in first.text) == (not is_kept and run is not UNTESTED)
    assert any(each.text.startswith("On shirt") for each in others) == (
        run["classes"] == GOOD["classes"] and run is not UNTESTED
    )


def test_a_loss_is_named_by_its_measure_and_a_keep_that_adds_errors_says_how_many():
    """Whatever decides: the loss of images that classes do not show, and the other way round."""
    first, mixes, *_ = describe_run(RunResults({**CLEAR_LOSS, "choose_by": "mean_accuracy"}))
    assert find_numbers(first) == ["70.88%", "67.22%", "0.001", "338", "410"]
    assert "mean accuracy is worse" in first.text
    assert find_numbers(mixes) == ["70.89%", "69.78%", "70.86%", "64.66%"]
    first, mixes, *_ = describe_run(RunResults(LOSS_OF_IMAGES))
    assert find_numbers(first)[-2:] == ["54", "97"]
    assert find_numbers(mixes) == ["70.89%", "88.85%", "95.18%", "91.34%"]
    unseen = describe_run(RunResults({**LOSS_OF_IMAGES, "choose_by": "accuracy"}))
    assert unseen[1] == mixes


#: Of rare shirts some are repaired, and of common coats more are broken.
RARE = make_run([300, 80, 12], [260, 0, 0], [0, 0, 4], [4000, 400, 40], choose_by="mean_accuracy")


@pytest.mark.parametrize(
    ("run", "remedy"),
    [
        (make_run([50, 50], [5, 0], [0, 4]), "more images of 1 "),
        (make_run([50, 50], [0, 0], [0, 2]), "another base"),
        (make_run([10, 10], [4, 0], [0, 4], 9000), "more images of 1 "),  # a base that is good
        (make_run([50, 50], [40, 0], [0, 9]), "smaller scale"),
        (RARE, "choose_by=accuracy"),
        ({**RARE, "choose_by": "accuracy"}, "smaller scale"),
        ({**GOOD, **OFF}, "docs/failed.md"),
        # What eval's command line sets is no property of the base.
        ({**make_run([50, 50], [0, 0], [0, 2]), "stage": "eval", "steps": 0}, "more images of 1 "),
    ],
)
def test_a_repair_that_is_not_kept_says_what_to_do_with_the_base(run, remedy):
    (first, *_), is_kept = said(run)
    assert not is_kept
    assert remedy in first.text


def test_an_adapter_that_somebody_turns_off_needs_no_remedy():
    (first, *_), is_kept = said({**GOOD, **OFF, "scale_curve": None})
    assert not is_kept
    assert "switched off" in first.text
    assert "docs/failed.md" not in first.text


def test_a_target_that_gets_worse_is_named_before_all_others():
    """Of two targets one gains more than the other loses."""
    run = make_run([10, 40, 90], [30, 25, 0], [0, 0, 80], targets=[1, 2])
    first, worse, *_ = describe_run(RunResults(run))
    assert "dress" in first.text
    assert (worse.judgement, find_numbers(worse)[:2]) == ("worse", ["40", "65"])
    assert "dress" in worse.text


@pytest.mark.parametrize(
    ("run", "is_kept", "judgement"),
    [
        (mending(4), True, "unclear"),
        (mending(40), True, "worse"),
        (mending(4, 2), False, "unclear"),
        (mending(0, 2, fixed=40), True, ""),
    ],
)
def test_a_hotfix_is_judged_by_its_mistakes_first(run, is_kept, judgement):
    (mistakes, second, *_), kept = said(run)
    mended = str(10 - run["mistakes"]["errors"])
    assert find_numbers(mistakes) == [mended, "10", "0", "10"]
    assert (kept, second.judgement) == (is_kept, judgement)


def test_a_base_has_a_weakest_class():
    """It has the highest rate that chance does not explain."""
    first, weakest = describe_run(
        RunResults(results("pretrain", test=outcome([40, 30, 2], [400, 60, 8])))
    )
    assert find_numbers(first) == ["72", "468"]
    assert "dog" in weakest.text


def test_all_weak_classes_of_a_base_are_named():
    """As a repair would choose them, by validation images where there are some."""
    test = outcome([40, 30, 100, 40], [400, 60, 200, 400])
    run = results("pretrain", test=test, classes=["cat", "dog", "owl", "cow"])
    assert describe_run(RunResults(run))[-1].text.endswith("dog, owl.")
    run["val"] = outcome([30, 15, 4, 20], [100, 18, 20, 30])
    _, worst, others = describe_run(RunResults(run))
    assert find_numbers(worst)[:2] == ["15", "18"]
    assert ("dog" in worst.text, others.text.endswith("dog, cow.")) == (True, True)


def test_a_class_without_a_test_image_is_named():
    for run in (UNTESTED, results("pretrain", test=outcome([1, 1, 0], [9, 9, 0]))):
        assert run["classes"][2] in describe_run(RunResults(run))[-1].text
    assert "No test image" not in write_verdict(GOOD)


def test_the_verdict_names_an_offset_without_the_adapter_and_how_to_set_it_to_0():
    """Validation images may have chosen it, or somebody who thought that 0 is off."""
    of_one = {**GOOD, "point": {"scale": 0, "offset": 1.5}}
    for more in ({}, {"targets": [1, 2]}, {"scale_curve": OFF["scale_curve"]}):
        run = {**of_one, **more}
        assert said(run)[1]
        assert "1.5" in about(run, "scale=0 offset=0").text
    assert "scale=0 offset=0" not in write_verdict({**of_one, "point": OFF_POINT})
    assert not said({**of_one, "point": OFF_POINT})[1]


def test_what_the_training_adds_to_the_offset_is_said():
    alone, *others = CURVE["rows"]
    curve = {**CURVE, "rows": [{**alone, "offset": 1.5}, *others]}
    run = {**GOOD, "scale_curve": curve, "point": {"scale": 0.5, "offset": 1}}
    assert find_numbers(about(run, "offset alone")) == ["80.0%", "80.0%", "85.0%"]
    assert "offset alone" not in write_verdict({**GOOD, "scale_curve": CURVE})


def test_the_last_layer_alone_stands_beside_the_offset():
    alone, *others = CURVE["rows"]
    both = {**CURVE, "rows": [{**alone, "offset": 1.5}, *others]}
    head = {"head": {**alone, "weighted_accuracy": 0.83}, "point": {"scale": 0.5, "offset": 1}}
    for curve, numbers in (
        (both, ["80.0%", "80.0%", "83.0%", "85.0%"]),
        (CURVE, ["80.0%", "83.0%", "85.0%"]),
    ):
        sentence = about({**GOOD, **head, "scale_curve": curve}, "ast layer alone")
        assert find_numbers(sentence) == numbers
    trial = {"value": "head", "of": ["head", "plain"], "images": 0, "reasons": []}
    kept = {**GOOD, **head, "scale_curve": both, "choices": {"trial": trial}}
    assert "last layer alone" not in write_verdict(kept)
    assert "with the last layer 85.0%" in about(kept, "offset alone").text


def test_a_repair_that_is_off_says_what_its_training_would_do():
    first = describe_run(RunResults(nines(900, 61, **OFF, targets=[9])))[0]
    assert find_numbers(first) == ["0", "1", "0.25", "9", "2", "3", "7", "0", "4"]
    untrained = describe_run(RunResults(nines(900, 61, **OFF, targets=[9], steps=0)))[0]
    assert "nothing was trained" in untrained.text
