"""Verdicts and advice of made-up runs, beside verdicts.txt, which is to be read."""

from pathlib import Path

from helpers.runs import outcome, repaired, results

from lora_mnist.show.advice import advice
from lora_mnist.show.verdict import verdict

GOLDEN = Path(__file__).with_name("verdicts.txt")
DIGITS = [str(number) for number in range(10)]
BASE = [10] * 9 + [70]
OWN = ["data=folder", "data.data_dir=my photos", "net=custom", "net._target_=nets.Net"]
OWN += ["base_ckpt=mine.pt", "trainer.max_steps=400", "data.replay=90"]
DIAL = {
    **{"images": 500, "scales": [0, 0.4, 1], "errors": [180, 171, 923], "advised": 0.4, "saved": 1},
    **{"errors_of_target": [28, 11, 4], "errors_elsewhere": [152, 160, 919]},
}
#: The errors of two validations during the training.
WAY = [
    {"step": 24, "errors": 175, "errors_of_target": 9},
    {"step": 48, "errors": 400, "errors_of_target": 5},
]


def of_digits(broken, fixed, targets=(9,), **more):
    """A repair of the nines, which breaks so many fours."""
    test = repaired(BASE, [0] * 4 + [broken] + [0] * 5, [0] * 9 + [fixed], 1000)
    run = {"stage": "lora", "classes": DIGITS, "targets": [*targets], "replay": 0, **more}
    return {**run, "test": test, "test_base": outcome(BASE, 1000)}


def of_clothes(base, broken, fixed, **more):
    """A repair of the shirts with replayed images."""
    run = {"stage": "lora", "classes": ["coat", "dress", "shirt"], "targets": [2], "replay": 90}
    test = repaired(base, broken, fixed, 200)
    return {**run, "test": test, "test_base": outcome(base, 200), **more}


def of_mistakes():
    """A hotfix that mends nine of ten mistakes learnt, and four of five held out."""
    mended = {"mistakes": repaired([9, 0], [0, 0], [9, 0], 5), "mistakes_base": outcome([9, 0], 5)}
    held_out = repaired([5, 0], [0, 0], [4, 0], 5)
    held_out["images_per_class"] = [5, 0]
    mended |= {"mistakes_test": held_out, "mistakes_test_base": outcome([5, 0], 5)}
    return {**of_digits(40, 0, targets=[]), **mended}


GUESSING = {
    **{"stage": "lora", "classes": [*"abcde"], "targets": [4], "replay": 90},
    "test_base": outcome([10, 20, 20, 20, 45], 50),
    "test": repaired([10, 20, 20, 20, 45], [35, 27, 27, 26, 0], [0, 0, 0, 0, 45], 50),
}
TYPED = ["experiment=repair", "target=shirt", *OWN]
TWO = {**{"stage": "lora", "classes": ["a", "b"], "targets": [0, 1], "replay": 90}}
TWO |= {"test_base": outcome([60, 32], 200), "test": repaired([60, 32], [1, 0], [45, 18], 200)}
BEFORE, AFTER = (
    outcome([315, 40, 60], 1000),
    repaired([315, 40, 60], [0, 90, 80], [204, 0, 0], 1000),
)
PRICE = {"stage": "lora", "classes": ["pullover", "coat", "shirt"], "targets": [0], "replay": 90}
PRICE |= {"test_base": {**BEFORE, "false_calls_per_class": [8, 200, 207]}}
PRICE |= {"test": {**AFTER, "false_calls_per_class": [177, 104, 100]}}
CASES = {
    "a base": (results("pretrain"), ["stage=pretrain"]),
    "a base with few errors, and the highest rate in a small class": (
        {
            **{"stage": "eval", "classes": ["a", "b", "c"], "targets": []},
            "test": {**outcome([40, 30, 2], 400), "images_per_class": [400, 60, 8]},
        },
        [],
    ),
    "a base whose errors no repair could be told from chance by": (
        {"stage": "eval", "classes": ["a", "b"], "targets": [], "test": outcome([2, 1], 59)},
        [],
    ),
    "somebody's base": ({**results("pretrain"), "stage": "eval"}, OWN),
    "somebody's base, tested on images of its training folder": (
        {**results("pretrain"), "stage": "eval", "test_held_out_now": True},
        OWN,
    ),
    "a base without errors": (
        {"stage": "eval", "classes": ["a"], "targets": [], "test": outcome([0])},
        [],
    ),
    "a base with most images wrong": (
        {"stage": "eval", "classes": ["a", "b"], "targets": [], "test": outcome([19, 15])},
        [],
    ),
    "only nines: harm, and a smaller scale": (of_digits(1754, 61, dial=DIAL), ["stage=lora"]),
    "harm, and no smaller scale": (of_digits(1754, 61, dial={**DIAL, "advised": 0}), []),
    "harm, turned down already": (
        of_digits(1754, 61, replay=90, dial={**DIAL, "saved": 0.4}),
        ["experiment=repair", "digit=9", "loss.target_weight=0.8"],
    ),
    "harm by other weights": (of_digits(1754, 61, stage="finetune"), ["stage=finetune"]),
    "turned off": (
        of_digits(0, 0, replay=90, dial={**DIAL, "advised": 0, "saved": 0}),
        ["experiment=repair", "digit=9", "optimizer.lr=0.1"],
    ),
    "turned off, and better on the way": (
        of_digits(0, 0, replay=90, dial={**DIAL, "advised": 0, "saved": 0}, validations=WAY),
        ["experiment=repair", "digit=9", "optimizer.lr=0.1"],
    ),
    "a scale that repairs none": (
        of_digits(1754, 61, replay=90, dial={**DIAL, "errors_of_target": [28, 28, 4]}),
        ["experiment=repair", "digit=9"],
    ),
    "nothing but chance": (of_digits(5, 5, replay=90), ["experiment=repair"]),
    "two classes": (of_digits(0, 1, targets=[4, 9]), ["stage=lora", "digit=[4,9]"]),
    "two classes, and no others": (TWO, ["experiment=repair", "target=[a,b]"]),
    "the price of a repair": (PRICE, ["experiment=repair", "target=pullover"]),
    "all classes": (of_digits(20, 0, targets=[], dial={**DIAL, "saved": 0.5}), ["stage=lora"]),
    "no better than guessing": (GUESSING, ["experiment=repair", "target=e"]),
    "mistakes": (of_mistakes(), ["stage=lora", "data.mistakes=wrong"]),
    "a good repair": (of_clothes([30, 8, 60], [2, 1, 0], [5, 1, 40]), TYPED),
    "a good repair, tested again": (
        of_clothes([30, 8, 60], [2, 1, 0], [5, 1, 40], stage="eval"),
        ["adapter=latest"],
    ),
    "the class repaired, no gain in all": (
        of_clothes([20, 15, 96], [60, 28, 0], [31, 25, 61]),
        TYPED,
    ),
    "the class repaired on top, others worse": (
        of_clothes([20, 15, 96], [60, 28, 0], [31, 25, 61]),
        [*TYPED, "adapter=latest"],
    ),
    "others gain, the class does not": (of_clothes([60, 40, 20], [0, 0, 3], [40, 30, 4]), TYPED),
    "a loss of what was repaired before": (
        of_clothes(
            *([80, 9, 20], [0, 20, 0], [60, 0, 0]),
            **{"targets": [0], "repaired_before": [1], "test_before": outcome([80, 9, 20], 200)},
        ),
        [*TYPED, "adapter=latest"],
    ),
    "what was repaired before stays": (
        of_clothes(
            *([80, 9, 40], [0, 1, 0], [60, 2, 1]),
            **{"targets": [0], "repaired_before": [1], "test_before": outcome([80, 9, 40], 200)},
        ),
        [*TYPED, "adapter=latest"],
    ),
}


def test_verdicts_and_advice_are_those_that_were_read(tmp_path, monkeypatch):
    """After a change of words: read the difference, then copy what this test has written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    lines = []
    for name, (run, typed) in CASES.items():
        text = "".join(f"- {override}\n" for override in typed)
        (tmp_path / "run" / ".hydra" / "overrides.yaml").write_text(text or "[]")
        lines.append(f"# {name}")
        run = {"seconds": {"total": 661}, "adapter": "adapter", **run}
        for phrase in [*verdict(run), *advice(run, tmp_path / "run")]:
            lines.append(f"{phrase.mood:6} {phrase.text}")
        lines.append("")
    (tmp_path / "verdicts.txt").write_text("\n".join(lines))
    assert lines == GOLDEN.read_text().split("\n"), tmp_path
