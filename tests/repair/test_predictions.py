import pytest
import torch
import torch.nn.functional as F
from helpers.nets import randomize
from hypothesis import given
from hypothesis import strategies as st

from lora_mnist import add_lora, compare_errors, lora_disabled, remove_lora
from lora_mnist.errors import TrainingError
from lora_mnist.repair.module import logged_metrics
from lora_mnist.repair.predictions import (
    Predictions,
    columns_of,
    counts_of,
    evaluate,
    outcomes_by_split,
)
from lora_mnist.repair.significance import mcnemar

CLASSES = 3


def logits_and_labels(seed, size=20):
    """Logits of a base and of a network, and labels without class 2."""
    generator = torch.Generator().manual_seed(seed)
    base, logits = torch.randn(2, size, CLASSES, generator=generator)
    return base, logits, torch.randint(0, 2, (size,), generator=generator)


def table_of(base, logits, labels):
    """The table of these logits; those of base and adapter may be ``None``."""
    table = Predictions(CLASSES, torch.arange(len(labels)), labels, *columns_of(base, labels))
    return table if logits is None else table.with_after(*columns_of(logits, labels))


def plain_counts(logits, labels, targets=()):
    errors, images, false_calls, called = ([0] * CLASSES for _ in range(4))
    false_calls_of_target = 0
    for row, label in zip(logits, labels.tolist(), strict=True):
        prediction = int(row.argmax())
        images[label] += 1
        called[prediction] += 1
        errors[label] += prediction != label
        false_calls[prediction] += prediction != label
        false_calls_of_target += prediction in targets and label not in targets
    precision = [1 - x / n if n else None for x, n in zip(false_calls, called, strict=True)]
    counts = {
        "loss": pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5),
        "accuracy": pytest.approx(1 - sum(errors) / len(labels)),
        "errors": sum(errors),
        "errors_per_class": errors,
        "false_calls_per_class": false_calls,
        "precision_per_class": pytest.approx(precision),
        "images_per_class": images,
    }
    if targets:
        counts["errors_of_target"] = sum(errors[target] for target in targets)
        counts["false_calls_of_target"] = false_calls_of_target
    return counts


def plain_repair(base, logits, labels, targets=()):
    repaired, broken = [0] * CLASSES, [0] * CLASSES
    for before, after, label in zip(base.argmax(1), logits.argmax(1), labels.tolist(), strict=True):
        repaired[label] += bool(before != label and after == label)
        broken[label] += bool(before == label and after != label)
    counts = {
        "repaired": sum(repaired),
        "broken": sum(broken),
        "negative_flip_rate": sum(broken) / len(labels),
        "p_value": mcnemar(sum(repaired), sum(broken)),
        "repaired_per_class": repaired,
        "broken_per_class": broken,
        **plain_counts(logits, labels, targets),
    }
    if targets:
        others = [c for c in range(CLASSES) if c not in targets]
        for key, group in (("p_value_of_target", targets), ("p_value_elsewhere", others)):
            flips = sum(repaired[c] for c in group), sum(broken[c] for c in group)
            counts[key] = mcnemar(*flips)
    return counts


@given(
    seed=st.integers(0, 1000),
    targets=st.sampled_from([(), (1,), (0, 2)]),
    has_adapter=st.booleans(),
)
def test_counts_equal_those_of_a_plain_loop(seed, targets, has_adapter):
    """With several targets an image of one that is called another is no false call."""
    base, logits, labels = logits_and_labels(seed)
    expected = {"before": plain_counts(base, labels, targets)}
    if has_adapter:
        expected["after"] = plain_repair(base, logits, labels, targets)
    table = table_of(base, logits if has_adapter else None, labels)
    assert counts_of(table, targets) == expected
    by_split = {"val": expected["before"]}
    if has_adapter:
        by_split = {"val": expected["after"], "val_base": expected["before"]}
    assert outcomes_by_split({"val": table}, targets) == by_split


def test_a_loss_that_is_not_finite_is_no_number():
    base, _, labels = logits_and_labels(0)
    base[0] = -3e38
    base[0, 1 - labels[0]] = 3e38  # their difference is no float32
    assert counts_of(table_of(base, None, labels))["before"]["loss"] is None
    base[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="outputs are not finite"):
        table_of(base, None, labels)


def test_some_rows_are_a_table_of_their_own():
    base, logits, labels = logits_and_labels(0)
    rows = torch.tensor([5, 0, 19])
    some = table_of(base, logits, labels).at(rows)
    assert some.index.tolist() == rows.tolist()
    expected = counts_of(table_of(base[rows], logits[rows], labels[rows]))
    assert counts_of(some) == expected


def test_columns_say_what_became_of_each_image():
    right, wrong = [9.0, 0, 0], [0, 9.0, 0]
    base, logits = torch.tensor([[right, right, wrong, wrong], [right, wrong, right, wrong]])
    labels = torch.zeros(4, dtype=torch.int64)
    columns = table_of(base, logits, labels).columns()
    assert columns["outcome"].tolist() == ["right", "broken", "repaired", "wrong"]
    assert columns["before"].tolist() == [0, 0, 1, 1]
    assert columns["after"].tolist() == [0, 1, 0, 1]
    assert columns["after_probability"].tolist() == [0.999753] * 4
    alone = table_of(base, None, labels).columns()
    assert list(alone) == ["index", "label", "before", "before_probability", "outcome"]
    assert alone["outcome"].tolist() == ["right", "right", "wrong", "wrong"]


def test_classes_that_loggers_get():
    base, logits, labels = logits_and_labels(0)
    outcomes = outcomes_by_split({"val": table_of(base, logits, labels)}, [1])
    tags = logged_metrics(outcomes, ["a/b", "c", "d"], [1])
    assert "val/accuracy_per_class/a-b" in tags
    assert "val_base/accuracy_per_class/d" not in tags  # there is no image of it
    assert tags["val/precision_per_class/d"] == outcomes["val"]["precision_per_class"][2]
    assert tags["val/false_calls_of_target"] == outcomes["val"]["false_calls_of_target"]
    many = logged_metrics(outcomes, ["x"] * 17, [1])
    kinds = ("accuracy", "precision")
    assert [tag for tag in many if "per_class" in tag] == [
        f"{split}/{kind}_per_class/x" for split in ("val", "val_base") for kind in kinds
    ]


def batches():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(50, 6, generator=generator)
    labels = torch.randint(0, 2, (50,), generator=generator)
    return list(zip(images.split(16), labels.split(16), strict=True))


def test_compare_errors_counts_base_and_adapter(tiny):
    adapted = randomize(add_lora(tiny))
    images, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    with torch.no_grad():
        after = adapted(images)
        with lora_disabled(adapted):
            before = adapted(images)
    outcomes = compare_errors(adapted, iter(batches()))
    assert outcomes["before"] == plain_counts(before, labels)
    assert outcomes["after"] == plain_repair(before, after, labels)
    assert outcomes["after"]["repaired"] + outcomes["after"]["broken"] > 0
    assert torch.equal(adapted(images), after)  # it is enabled
    with pytest.raises(ValueError, match="batches: expected at least one batch"):
        compare_errors(adapted, [])
    with pytest.raises(ValueError, match="LoRA"):
        compare_errors(remove_lora(adapted), batches())


def test_a_base_that_is_known_is_not_computed_again(tiny):
    """The table is the same, from half the forward passes."""
    base = evaluate(tiny, batches())
    assert base.after is None
    assert base.index.tolist() == list(range(50))
    adapted = randomize(add_lora(tiny))
    whole = evaluate(adapted, batches())
    calls = []
    adapted.register_forward_hook(lambda *_: calls.append(1))
    again = evaluate(adapted, batches(), base)
    assert len(calls) == len(batches())
    for name, column in vars(whole).items():
        assert torch.equal(torch.as_tensor(getattr(again, name)), torch.as_tensor(column)), name
