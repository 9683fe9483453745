"""What may be believed of a run, on made-up runs."""

import pytest
from helpers.runs import outcome, results

from lora_mnist.show.caveats import describe_test_images, estimate_unseen_errors, find_caveats
from lora_mnist.show.run_results import RunResults


def believed(run):
    """What a report says of its test."""
    return " ".join(sentence.text for sentence in describe_test_images(RunResults(run)))


REFIT = {"choices": {"refit": {"value": True, "of": None, "images": 0, "reasons": []}}}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "By content, no test image"),
        ({"held_out": {"test": "train"}}, "60 test images: held out of the train split."),
        ({"duplicates": 7}, "7 identical files"),
        ({"excluded": {"test": {"line": "5 of 65 test images are excluded"}}}, "5 of 65 test "),
        ({"unknown_train_digests": ["base"]}, "The training images of the base are unknown"),
        ({"better_preprocessing": ["net.a=1", "net.b=2"]}, "net.a=1 net.b=2"),
        (REFIT, "trained on the validation images"),
    ],
)
def test_a_report_says_whether_its_test_can_be_believed(more, said):
    run = results(val=outcome([1, 1, 1]))
    assert said in believed(run | more)
    assert not more or said not in believed(run)


CHOICES = {
    "target": {"value": "shirt", "of": None, "images": 60, "reasons": []},
    "learning_rate": {"value": 0.003, "of": None, "images": 0, "reasons": []},
    "point": {"value": {"scale": 1, "offset": 0}, "of": None, "images": 60, "reasons": []},
}
#: The base makes no error on validation images, and some on test images.
KNOWN = {"choices": CHOICES, "val_base": outcome([0, 0, 0], 9000)}
#: Nothing says which images the base was trained on, and validation images were held out of train/.
UNKNOWN = {"choices": CHOICES, "unknown_train_digests": ["base"], "held_out": {"val": "train"}}


@pytest.mark.parametrize("why", [KNOWN, UNKNOWN])
def test_choices_by_images_the_base_may_have_seen_get_a_caveat(why):
    """With what was decided, and the way out: test images, if there is a test/."""
    (caveat,) = find_caveats(RunResults(results(**why)))
    assert caveat.judgement == ""  # the test images may be harder
    assert "target, point" in caveat.text
    assert "data.val_from=test" in caveat.text
    alone = find_caveats(
        RunResults(results(**why | {"held_out": {"test": "train", "val": "train"}}))
    )
    assert "data.val_from=test" not in alone[0].text
    assert "certainly new to the base" in alone[0].text
    assert (
        find_caveats(
            RunResults(results(**why | {"choices": {"learning_rate": CHOICES["learning_rate"]}}))
        )
        == []
    )


def test_choices_without_a_reason_for_it_get_no_caveat():
    known = KNOWN | {"val_from": "test", "held_out": {"val": "test"}}
    assert "data.val_from" not in find_caveats(RunResults(results(**known)))[0].text
    for more in (
        KNOWN | {"val_base": outcome([2, 9, 1])},
        UNKNOWN | {"held_out": {}},  # val/ lies beside train/
        UNKNOWN | {"held_out": {"val": "test"}},
        UNKNOWN | {"unknown_train_digests": ["adapter"]},
    ):
        assert find_caveats(RunResults(results(**more))) == []


def test_test_images_the_base_may_have_seen_get_a_caveat():
    unknown = {"held_out": {"test": "train"}, "unknown_train_digests": ["base"]}
    assert "prove nothing" in find_caveats(RunResults(results(**unknown)))[-1].text


def test_knows_validation_where_it_errs_far_less_on_them():
    assert estimate_unseen_errors(outcome([20, 19], 500), outcome([60, 60], 500))  # 3.9% and 12%
    assert not estimate_unseen_errors(outcome([2, 2], 50), outcome([6, 6], 50))  # may be chance
    # No factor of 1.5.
    assert not estimate_unseen_errors(outcome([500, 500], 5000), outcome([700, 700], 5000))
    # A class that is hard, and rare among validation images alone, says nothing.
    test = outcome([100, 600], 1000)
    assert not estimate_unseen_errors(outcome([90, 5], [900, 10]), test)
    assert estimate_unseen_errors(outcome([9, 0], [900, 10]), test)
