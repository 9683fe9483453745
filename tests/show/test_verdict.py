"""Laws of the verdict and the advice, on made-up runs, and one verdict in full."""

from math import comb

import pytest
import torch
from helpers.runs import outcome, repaired, results

from lora_mnist.repair.predictions import Predictions, outcomes_by_split
from lora_mnist.show.next_steps import next_steps
from lora_mnist.show.verdict import verdict, verdict_text

DIGITS = [str(number) for number in range(10)]
OWN = ["data=folder", "data.data_dir=my photos", "net=custom", "net._target_=nets.Net"]
OWN += ["base_ckpt=mine.pt"]
AS_TYPED = (
    "data=folder 'data.data_dir=my photos' net=custom net._target_=nets.Net base_ckpt=mine.pt"
)
DIAL = {
    **{"images": 500, "scales": [0, 0.4, 1], "errors": [180, 171, 923], "advised": 0.4, "saved": 1},
    **{"errors_of_target": [28, 11, 4], "errors_elsewhere": [152, 160, 919]},
}
OFF = {"dial": {**DIAL, "advised": 0, "saved": 0}}


def run_of(base, broken, fixed, images=200, **more):
    """A repair of the last class, with replayed images."""
    names = ["coat", "dress", "shirt"] if len(base) == 3 else DIGITS[: len(base)]
    run = {"stage": "lora", "classes": names, "targets": [len(base) - 1], "replay": 90}
    run["training_images_per_class"] = [100] * len(base)
    run |= {"adapter": "adapter", "overrides": [], "seconds": {"total": 660.0}}
    test = repaired(base, broken, fixed, images)
    return {**run, "test": test, "test_base": outcome(base, images), **more}


def nines(broken, fixed, **more):
    """A repair of the nines, which breaks so many fours."""
    run = run_of([10] * 9 + [70], [0] * 4 + [broken] + [0] * 5, [0] * 9 + [fixed], 1000)
    return {**run, **more}


def mending(broken):
    """A hotfix that mends nine of ten mistakes, and breaks so many fours."""
    mended = {
        "mistakes": repaired([10, 0], [0, 0], [9, 0], 5),
        "mistakes_base": outcome([10, 0], 5),
    }
    return {**nines(broken, 0, targets=[]), **mended}


GOOD = run_of([30, 8, 60], [2, 4, 0], [5, 1, 40])
#: Where the class is repaired, and the others lose as much.
PRICE = run_of([20, 15, 96], [60, 28, 0], [31, 25, 61])
HARM = nines(900, 61)
#: Nearly all images of the other classes are wrong.
GUESSING = run_of([10, 20, 20, 20, 45], [35, 27, 27, 26, 0], [0, 0, 0, 0, 45], 50)


FULL = """
better Keep this repair: there are fewer errors in all.
better On all test images: 98 errors -> 58 (46 repaired, 6 broken, p < 0.001).
better On shirt: 60 errors -> 20 (40 repaired, 0 broken, p < 0.001).
unclear Other images called shirt (false calls): 8 -> 11; precision 95% -> 94%.
unclear On the other classes: 38 errors -> 38 (6 repaired, 6 broken, may be chance, p = 1).
unclear Most is lost on dress: 8 errors -> 11 (1 repaired, 4 broken, may be chance, p = 0.38).
"""


def test_a_verdict_in_full():
    lines = [f"{phrase.outcome} {phrase.text}" for phrase in verdict(GOOD)]
    assert lines == FULL.strip().splitlines()


@pytest.mark.parametrize("fixed", [0, 5, 12])
@pytest.mark.parametrize("broken", [0, 5, 12])
def test_what_may_be_chance_is_called_so_and_is_no_reason_to_keep(fixed, broken):
    run = run_of([50, 50], [broken, 0], [fixed, 0], targets=[])
    n = fixed + broken
    p_value = min(1, 2 * sum(comb(n, k) for k in range(min(fixed, broken) + 1)) / 2**n)
    expected = "unclear"
    if p_value <= 0.05:
        expected = "better" if fixed > broken else "worse"
    judgement, total = verdict(run)[:2]
    assert (judgement.outcome, total.outcome) == (expected, expected)
    assert judgement.text.startswith("Keep this repair") == (expected == "better")
    assert ("may be chance" in total.text) == (expected == "unclear" and n > 0)


@pytest.mark.parametrize(("loser", "word"), [(0, "zeros"), (6, "sixes"), (8, "eights")])
def test_the_class_that_loses_most_is_named(loser, word):
    broken = [3] * 10
    broken[loser], broken[9] = 40, 60  # the target itself is not meant
    run = run_of([10] * 9 + [100], broken, [1] * 9 + [100], 1000)
    *_, last = verdict(run)
    start = f"Most is lost on {word}: 10 errors -> 49 (1 repaired, 40 broken"
    assert last == (f"{start}, p < 0.001).", "worse", False)
    run = run_of([10] * 9 + [200], broken, [1] * 9 + [200], 1000)
    assert verdict(run)[0].text.startswith(f"Keep this repair unless the loss on {word} ")


@pytest.mark.parametrize(
    ("before", "after", "outcome"), [(0, 21, "worse"), (21, 0, "better"), (8, 11, "unclear")]
)
def test_more_false_calls_than_chance_makes_are_a_price(before, after, outcome):
    run = run_of([5, 60], [0, 0], [0, 40])
    for split, calls in (("test_base", before), ("test", after)):
        run[split]["false_calls_per_class"][1] = run[split]["false_calls_of_target"] = calls
    calls = [phrase for phrase in verdict(run) if "false calls" in phrase.text]
    assert [phrase.outcome for phrase in calls] == [outcome]


def test_false_calls_of_several_classes_come_from_without():
    label, before = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 2, 1, 1, 2])
    sure, loss = torch.ones(6), torch.zeros(6)
    table = Predictions(3, torch.arange(6), label, before, sure, loss)
    table = table.with_after(torch.tensor([0, 0, 2, 1, 1, 2]), sure, loss)
    for targets, told in ([1, 2], True), ([0, 1, 2], False):
        run = {**GOOD, **outcomes_by_split({"test": table}, targets), "targets": targets}
        says = "dress and shirt (false calls): 1 -> 0; precision 80% -> 100%"
        assert (says in verdict_text(run)) == told
        assert ("false calls" in verdict_text(run)) == told


@pytest.mark.parametrize(
    ("run", "outcome", "start"),
    [
        (HARM, "worse", "Do not keep this repair: there are more errors in all"),
        (GUESSING, "worse", "Do not keep this repair: 185 of 200 images of the other digits are"),
        (
            {**HARM, **OFF},
            "unclear",
            "There is no repair to keep: no scale of the adapter beats the base on",
        ),
        (
            PRICE,
            "unclear",
            "Keep this repair only if errors on shirt matter most: there is no clear gain",
        ),
        (
            run_of([60, 40, 20], [0, 0, 3], [40, 30, 4]),
            "unclear",
            "Keep this repair, though not for shirt",
        ),
        (mending(4), "unclear", "Keep this repair for the mistakes alone: there is no clear loss"),
    ],
)
def test_whether_to_keep_it(run, outcome, start):
    assert verdict(run)[0].outcome == outcome
    assert verdict_text(run).startswith(start)
    assert ("docs/failed.md" in verdict_text(run)) == (not start.startswith("Keep"))


def test_without_test_images_of_the_class_nothing_is_judged_of_it():
    run = run_of([10, 10, 0], [0, 0, 0], [8, 8, 0])
    for split in ("test", "test_base"):
        run[split]["images_per_class"] = [200, 200, 0]
    assert verdict_text(run).startswith("No test image is of shirt: nothing here says whether ")
    assert "On shirt" not in verdict_text(run)
    both = verdict_text({**run, "targets": [1, 2]})
    assert "No test image is of shirt. On dress and shirt: 10 errors -> 2" in both


def test_mistakes_are_counted_as_right_ones():
    assert " Mistakes to learn: 0 -> 9 of 10 right. " in verdict_text(mending(4))


@pytest.mark.parametrize("run", [results("pretrain"), GOOD])
def test_test_images_that_were_held_out_just_now_are_doubted(run):
    assert "they prove nothing" in verdict_text({**run, "test_held_out_now": True})
    assert "they prove nothing" not in verdict_text(run)


def test_a_base_has_a_weakest_class():
    """It has the highest rate that chance does not explain."""
    test = {**outcome([40, 30, 2], 400), "images_per_class": [400, 60, 8]}
    run = {"stage": "eval", "classes": ["a", "b", "c"], "targets": [], "test": test}
    assert verdict_text(run) == "72 errors in 468 images. The weakest class is b: 30 errors in 60."


def base_of(errors, images=20):
    classes = [*"ab"]
    run = {"stage": "eval", "classes": classes, "targets": [], "overrides": []}
    return {**run, "test": outcome(errors, images)}


#: Two of four classes are repaired; the weakest of the others on validation images is the last.
VALIDATED = {"targets": [1, 2], "val": outcome([5, 9, 9, 6])}
TWO = run_of([8, 60, 50, 7], [0, 0, 0, 0], [0, 40, 30, 0], **VALIDATED)
#: By what it is about: a run, its overrides, and the command that is advised, if there is one.
ADVICE = {
    "a base": (results("pretrain"), ["stage=pretrain"], "train.py experiment=repair target=dog"),
    "a base that is not the current one": (
        results("pretrain", weights="farm.ckpt"),
        ["base_ckpt=mine.pt", "debug=limit"],
        "train.py experiment=repair target=dog base_ckpt=run/farm.ckpt",
    ),
    "few images to replay": (
        results("pretrain", training_images_per_class=[30, 100, 20]),
        ["stage=pretrain"],
        "train.py experiment=repair target=dog data.replay=50",
    ),
    "no images to train on": (results("eval", training_images_per_class=[0, 0, 0]), OWN, None),
    "no images to validate on": (results("eval", validation_images=0), OWN, None),
    "too few images to replay beside one class more": (
        {**TWO, "replay": 90, "training_images_per_class": [80, 100, 100, 100]},
        ["stage=lora", "digit=[1,2]", "data.replay=90"],
        None,
    ),
    "a base, from Python": (results("pretrain"), None, None),
    "too few errors to show a gain": (base_of([2, 1], 59), [], None),
    "a base that knows nothing": (base_of([20, 0]), [], None),
    "another preprocessing first": (results("pretrain", better_preprocessing=["x"]), [], None),
    "somebody's base": (
        {**results("pretrain"), "stage": "eval"},
        [*OWN, "data.replay=90", "trust=true"],
        f"train.py experiment=repair target=dog {AS_TYPED} trust=true",
    ),
    "harm": (HARM, ["experiment=repair"], None),
    "a price": (PRICE, ["experiment=repair"], None),
    "a failure, where another class is the weakest": (
        nines(20, 0, val_base=outcome([5, 5, 40, *[5] * 7], 900), val=outcome([5] * 10, 900)),
        ["experiment=repair", "digit=9", "seed=3"],
        "train.py experiment=repair seed=3 digit=2",
    ),
    "a failure on the weakest class": (
        nines(20, 0, val_base=outcome([5] * 9 + [40], 900), val=outcome([5] * 10, 900)),
        ["experiment=repair", "digit=weakest", "loss.target_weight=0.5"],
        "train.py -m experiment=repair digit=9 sweep=front",
    ),
    "another scale": (
        nines(20, 0, targets=[], dial={**DIAL, "saved": 0.5}),
        ["experiment=repair", "lora.scale=0.5", "base_ckpt=mine.pt"],
        "eval.py adapter=run scale=0.4 base_ckpt=mine.pt",
    ),
    "no scale": (nines(20, 0, dial={**DIAL, "advised": 0}), [], None),
    "a good repair": (
        GOOD,
        ["experiment=repair", "target=weakest", *OWN, "seed=3"],
        f"train.py experiment=repair {AS_TYPED} seed=3 'target=[shirt,coat]'",
    ),
    "a third class": (
        TWO,
        ["stage=lora", "digit=[1,2]", "data.replay=90"],
        "train.py stage=lora data.replay=90 'digit=[1,2,3]'",
    ),
    "a good repair, tested again": ({**GOOD, "stage": "eval"}, ["adapter=latest"], None),
    "a target of a file's": (
        TWO,
        ["experiment=mine"],
        "train.py experiment=mine 'digit=[1,2,3]'",
    ),
    "a repair of all classes": (nines(0, 60, targets=[]), ["stage=lora", "target=null"], None),
    "a trial": ({**GOOD, "adapter": None}, ["experiment=repair"], None),
}


@pytest.mark.parametrize("name", ADVICE)
def test_advice_is_a_reason_and_a_whole_command(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    run, typed, command = ADVICE[name]
    phrases = next_steps({**run, "overrides": typed}, tmp_path / "run")
    commands = [phrase.text for phrase in phrases if phrase.is_command]
    assert commands == ([f"python {command}"] if command else [])
    assert bool(phrases) == (command is not None or name == "no scale")
    assert not phrases or not phrases[0].is_command


def test_eval_names_the_weakest_class_once(tmp_path):
    run = {**results("pretrain"), "stage": "eval", "overrides": [*OWN]}
    run.pop("val", None)
    said = [*verdict(run), *next_steps(run, tmp_path)]
    assert len([phrase for phrase in said if "weakest class" in phrase.text]) == 1
