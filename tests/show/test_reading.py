"""What results.json says: the verdict, the table of classes, the next step, on made-up runs."""

import pytest
from helpers.commands import ROOT
from helpers.runs import DIAL, outcome, repaired, results

from lora_mnist.show.reading import Reading

DIGITS = [str(number) for number in range(10)]
OFF = {"dial": {**DIAL, "advised": 0}, "scale": 0}


def verdict(run):
    return Reading(run).verdict()


def run_of(base, broken, fixed, images=200, **more):
    """A repair of the last class, with replayed images."""
    names = ["coat", "dress", "shirt"] if len(base) == 3 else DIGITS[: len(base)]
    run = {"classes": names, "targets": [len(base) - 1], "overrides": []}
    run["test"] = repaired(base, broken, fixed, images)
    run["test_base"] = outcome(base, images)
    return results(**run | more)


def nines(broken, fixed, **more):
    """A repair of the nines, which breaks so many fours."""
    run = run_of([10] * 9 + [70], [0] * 4 + [broken] + [0] * 5, [0] * 9 + [fixed], 1000)
    return {**run, **more}


def mending(broken, mended=9, fixed=0):
    """A hotfix that mends some of ten mistakes, one of each class, and breaks so many fours."""
    base, none = [1] * 10, [0] * 10
    run = nines(broken, fixed, targets=[], mistakes_base=outcome(base, 1))
    run["mistakes"] = repaired(base, none, [1] * mended + [0] * (10 - mended), 1)
    return {**run, "mistakes_test_base": outcome(base, 1), "mistakes_test": outcome(base, 1)}


GOOD = run_of([30, 8, 60], [2, 4, 0], [5, 1, 40])
#: Where the class is repaired, and the others lose as much.
PRICE = run_of([20, 15, 96], [60, 28, 0], [31, 25, 61])
ELSEWHERE = run_of([60, 40, 20], [0, 0, 3], [40, 30, 4])
UNTESTED = run_of([10, 10, 0], [0, 0, 0], [8, 8, 0])
for split in ("test", "test_base"):
    UNTESTED[split]["images_per_class"] = [200, 200, 0]
FULL = """
better Keep this repair: there are fewer errors in all.
better On all test images: 98 errors -> 58 (46 repaired, 6 broken, p < 0.001).
better On shirt: 60 errors -> 20 (40 repaired, 0 broken, p < 0.001).
unclear Other images called shirt (false calls): 8 -> 11; precision 95% -> 94%.
unclear On the other classes: 38 errors -> 38 (6 repaired, 6 broken, may be chance, p = 1).
unclear Most is lost on dress: 8 errors -> 11 (1 repaired, 4 broken, may be chance, p = 0.38).
"""


def test_a_verdict_in_full():
    lines = [f"{phrase.judgement} {phrase.text}" for phrase in verdict(GOOD)]
    assert lines == FULL.strip().splitlines()


def test_a_verdict_names_what_errors_are_called():
    run, called = dict(GOOD), [None, [0, 3], [1, 15]]
    run["test"] = {**run["test"], "called_per_class": called}
    assert "60 errors -> 20, 15 of them called dress (40" in Reading(run).verdict_text()
    base = results("pretrain")
    base["test"] |= {"called_per_class": [None, [0, 8], None]}
    said = Reading(base).verdict_text()
    assert said.endswith("The weakest class is dog: 9 errors in 20, 8 of them called cat.")


@pytest.mark.parametrize(("last", "falls"), [(40, True), (60, False)])
def test_next_step_is_more_steps_where_errors_still_fall(last, falls):
    run = {**GOOD, "validation_errors": [[100, 95], [200, 80], [300, 70], [400, last]]}
    assert ("try trainer.max_steps=800." in Reading(run).verdict_text()) == falls


@pytest.mark.parametrize(
    ("broken", "fixed", "expected"),
    [(0, 6, "better"), (6, 0, "worse"), (0, 5, "unclear"), (5, 12, "unclear"), (0, 0, "unclear")],
)
def test_verdict_calls_chance_what_may_be_chance_and_no_reason_to_keep(broken, fixed, expected):
    run = run_of([50, 50], [broken, 0], [fixed, 0], targets=[])
    judgement, total = verdict(run)[:2]
    assert (judgement.judgement, total.judgement) == (expected, expected)
    assert judgement.text.startswith("Keep this repair") == (expected == "better")
    assert ("may be chance" in total.text) == (expected == "unclear" and fixed > 0)


@pytest.mark.parametrize(("before", "after", "outcome"), [(0, 21, "worse"), (21, 0, "better")])
def test_verdict_has_a_price_in_more_false_calls_than_chance_makes(before, after, outcome):
    run = run_of([5, 60], [0, 0], [0, 40])
    for split, calls in (("test_base", before), ("test", after)):
        run[split]["false_calls_per_class"][1] = run[split]["false_calls_of_target"] = calls
    first, *others = verdict(run)
    assert ("more false calls" in first.text) == (outcome == "worse")
    calls = [phrase for phrase in others if "false calls" in phrase.text]
    assert [phrase.judgement for phrase in calls] == [outcome]


@pytest.mark.parametrize(
    ("run", "judgement", "start"),
    [
        (nines(900, 61), "worse", "Do not keep this repair: there are more errors in all."),
        (nines(900, 61, **OFF), "unclear", "There is no repair to keep: the adapter is turned off"),
        (PRICE, "unclear", "Keep this repair only if errors on shirt matter most: there is no"),
        (ELSEWHERE, "unclear", "Keep this repair, though not for shirt: there are fewer errors"),
        (nines(40, 65), "unclear", "Keep this repair unless the loss on fours matters more: there"),
        (UNTESTED, "unclear", "No test image is of shirt: nothing judges the repair."),
    ],
)
def test_verdict_says_whether_to_keep_it(run, judgement, start):
    text = Reading(run).verdict_text()
    assert verdict(run)[0].judgement == judgement
    assert text.startswith(start)
    assert ("docs/failed.md" in text) == start.startswith(("Do not", "There is no"))
    assert ("On shirt" in text) == (run in (PRICE, ELSEWHERE))


@pytest.mark.parametrize(
    ("run", "second"),
    [
        (mending(4), "Keep this repair for the mistakes alone: there is no clear loss"),
        (mending(40), "Keep this repair for the mistakes alone: there are more errors"),
        (mending(4, 2), "Do not keep this repair: there is no clear gain"),
        (mending(0, 2, fixed=40), "Keep this repair, though not for the mistakes: there are fewer"),
    ],
)
def test_a_hotfix_is_judged_by_its_mistakes_first(run, second):
    mended = 10 - run["mistakes"]["errors"]
    counts = f"{mended} of 10 mistakes to learn are right now, and 0 of 10 held out."
    assert Reading(run).verdict_text().startswith(f"{counts} {second}")


def test_a_base_has_a_weakest_class():
    """It has the highest rate that chance does not explain."""
    test = outcome([40, 30, 2]) | {"images_per_class": [400, 60, 8]}
    run = results("pretrain", test=test)
    text = "72 errors in 468 test images. The weakest class is dog: 30 errors in 60."
    assert Reading(run).verdict_text() == text


def test_all_weak_classes_of_a_base_are_named():
    test = outcome([40, 30, 100, 40]) | {"images_per_class": [400, 60, 200, 400]}
    run = results("pretrain", test=test, classes=["cat", "dog", "owl", "cow"])
    assert "Weaker than the others beyond chance: dog, owl." in Reading(run).verdict_text()


def test_an_offset_without_the_adapter_is_called_so():
    for more, text in (
        ({}, "what is saved is the offset 1.5 on the logit of shirt alone."),
        ({"targets": [1, 2]}, "what is saved is logit adjustment with tau 1.5 alone."),
    ):
        run = {**GOOD, "scale": 0, "offset": 1.5, "dial": OFF["dial"], **more}
        assert verdict(run)[0].text == "Keep this repair: there are fewer errors in all."
        assert text in verdict(run)[1].text


def test_a_repair_that_is_off_says_what_its_training_would_do():
    text = verdict(nines(900, 61, **OFF, targets=[9]))[0].text
    assert "gains nothing on validation images; scale 1 with the offset 0.25 has errors" in text
    assert (
        "on nines 9 -> 2, errors on the other digits 3 -> 7, false calls of nines 0 -> 4." in text
    )


def rare(choose_by):
    """Of few shirts 12 are repaired, and 60 of many coats are broken."""
    run = run_of([30, 8, 16], [60, 0, 0], [5, 0, 12], choose_by=choose_by)
    for split, accuracies in (("test", (0.93, 0.95)), ("test_base", (0.95, 0.72))):
        run[split]["images_per_class"] = [900, 200, 20]
        run[split] |= {"accuracy": accuracies[0], "balanced_accuracy": accuracies[1]}
    return run


def test_two_measures_that_part_are_said_with_the_mix_of_classes_that_each_is_for():
    """What decides says whether to keep it."""
    first, mixes, *_ = verdict(rare("balanced_accuracy"))
    assert first.text.startswith("Keep this repair unless ")
    assert first.text.endswith("balanced accuracy is 0.7200 -> 0.9500.")
    assert mixes.text == (
        "With all classes equally common it is better (balanced accuracy 0.7200 -> 0.9500); with "
        "classes as common as among the test images it is worse (accuracy 0.9500 -> 0.9300)."
    )
    first, again, *_ = verdict(rare("accuracy"))
    assert first.text == "Do not keep this repair: there are more errors in all."
    assert again == mixes


def test_another_mix_of_validation_images_is_said():
    run = GOOD | {"val_base": outcome([9, 9, 1]) | {"images_per_class": [300, 300, 6]}}
    run["test_base"] = {**run["test_base"], "images_per_class": [200, 200, 200]}
    run["test"] = {**run["test"], "images_per_class": [200, 200, 200]}
    run["val"] = run["val_base"]
    texts = [phrase.text for phrase in Reading(run).belief()]
    text = (
        "Validation images have another mix of classes than test images: shirt is 1.0% and 33.3%."
    )
    assert text in texts


CHOICES = {
    "target": {"value": "shirt", "of": None, "images": 60, "why": "the weakest class"},
    "rate": {"value": 0.003, "of": None, "images": 0, "why": "typed"},
    "scale": {"value": 1, "of": [0, 1], "images": 60, "why": "9 errors"},
}


def test_verdict_doubts_images_that_the_base_may_know():
    known = {"choices": CHOICES, "val_base": outcome([0, 0, 0], 9000), "val_from": "train"}
    run = {**GOOD, **known}
    *_, doubt = verdict(run)
    assert doubt.judgement == "unclear"  # the test images may be harder
    assert "decided may be wrong: target, scale. data.val_from=test" in doubt.text
    assert "data.val_from" not in Reading(run | {"val_from": "test"}).verdict_text()
    for other in ({"val_base": GOOD["test_base"]}, {"choices": {"rate": CHOICES["rate"]}}):
        assert verdict({**run, **other}) == verdict(GOOD)
    unknown = {"held_out": {"test": "train"}, "learnt_unknown": ["base"]}
    assert "prove nothing" in verdict(GOOD | unknown)[-1].text


def names_of_rows(run):
    return [row.name for row in Reading(run).rows()]


def test_rows_of_many_classes_show_a_dozen_that_changed_or_are_worst():
    count = 1000
    broken, fixed = [0] * count, [0] * count
    fixed[60], broken[70], broken[80], fixed[80] = 1, 3, 1, 1
    names = [f"c{n}" for n in range(count)]
    run = run_of([1] * count, broken, fixed, targets=[7, 50], classes=names)
    rows = names_of_rows(run)
    assert rows[:5] == ["c7", "c50", "c70", "c80", "c60"]
    assert (len(rows), *rows[-2:]) == (12, "990 others", "all")
    alone = {**run, "stage": "eval", "adapter": None, "targets": []}
    alone["test"] = outcome([*range(count)], count)
    assert names_of_rows(alone) == [*names[:-11:-1], "990 others", "all"]
    eleven = run_of([5] * 11, [0] * 11, [1] * 11, classes=[*"abcdefghijk"])
    assert names_of_rows(eleven) == [*"abcdefghijk", "all"]


OWN = ["data=folder", "data.data_dir=my photos", "net._target_=nets.Net", "base_ckpt=mine.pt"]
AS_TYPED = "data=folder 'data.data_dir=my photos' net._target_=nets.Net base_ckpt=mine.pt"
WEAKEST = "train.py experiment=repair target=weakest"
#: A run, its overrides, and the command that is advised.
ADVICE = [
    (results("eval", adapter=None, targets=[]), [*OWN, "seed=3"], f"{WEAKEST} {AS_TYPED}"),
    (results("pretrain", weights="a.ckpt"), OWN[-1:], f"{WEAKEST} base_ckpt=run/a.ckpt"),
]
#: Runs after which there is nothing to advise.
NO_ADVICE = {
    "no images to train on": results("pretrain", training_images_per_class=[0, 0, 0]),
    "called from Python": results("pretrain", overrides=None),
    "too few errors to show a gain": results("pretrain", test=outcome([2, 1, 0], 59)),
    "a base that knows nothing": results("pretrain", test=outcome([20, 20, 0])),
    "no error on validation images": results("pretrain", val=outcome([0, 0, 0])),
    "another preprocessing first": results("pretrain", better_preprocessing=["x"]),
    "a repair": GOOD,
    "a repair, tested again": {**GOOD, "stage": "eval"},
}


def command_after(run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    return Reading(run).next_step(folder / "run")


@pytest.mark.parametrize(("run", "typed", "command"), ADVICE)
def test_a_next_step_is_a_whole_command(run, typed, command, tmp_path, monkeypatch):
    advised = command_after({**run, "overrides": typed}, tmp_path, monkeypatch)
    assert advised == f"python {ROOT}/{command}"


def test_next_step_is_nothing_without_a_reason(tmp_path, monkeypatch):
    for name, run in NO_ADVICE.items():
        assert command_after(run, tmp_path, monkeypatch) is None, name
