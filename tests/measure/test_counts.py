"""Every count that is made of predictions."""

import pytest
import torch
import torch.nn.functional as F
from helpers.logits import AFTER, BEFORE, LABELS, make_table
from helpers.nets import batches, randomize
from helpers.runs import at

from lora_mnist import add_lora, lora_disabled, remove_lora
from lora_mnist.errors import TrainingError
from lora_mnist.measure.class_weights import MEASURES
from lora_mnist.measure.counts import (
    compare_errors,
    count_both,
    count_by_split,
    count_errors,
)
from lora_mnist.measure.significance import mcnemar


def test_counts_by_hand():
    before = {
        "loss": pytest.approx(F.cross_entropy(BEFORE, LABELS).item()),
        "accuracy": 0.5,
        "balanced_accuracy": 0.5,
        "mean_accuracy": 0.5,
        "errors": 3,
        "errors_per_class": [2, 1, 0, 0],
        "top_confusion_per_class": [[1, 1], [0, 1], None, None],
        "false_positives_per_class": [1, 1, 1, 0],
        "images_per_class": [3, 3, 0, 0],
    }
    assert count_both(make_table(BEFORE)) == {"before": before}
    after = {
        "loss": pytest.approx(F.cross_entropy(AFTER, LABELS).item()),
        "accuracy": pytest.approx(4 / 6),
        "balanced_accuracy": pytest.approx(4 / 6),
        "mean_accuracy": pytest.approx(4 / 6),
        "errors": 2,
        "errors_per_class": [1, 1, 0, 0],
        "top_confusion_per_class": [[1, 1], [2, 1], None, None],
        "false_positives_per_class": [0, 1, 1, 0],
        "images_per_class": [3, 3, 0, 0],
        "repaired": 2,
        "broken": 1,
        "negative_flip_rate": 1 / 6,
        "p_value": mcnemar(2, 1),
        **{f"p_value_{name}": 1 for name in MEASURES},
        "repaired_per_class": [1, 1, 0, 0],
        "broken_per_class": [0, 1, 0, 0],
    }
    table = make_table(BEFORE, AFTER)
    assert count_both(table) == {"before": before, "after": after}
    before |= {"errors_of_target": 1, "errors_elsewhere": 2, "false_positives_of_target": 1}
    after |= {"errors_of_target": 1, "errors_elsewhere": 1, "false_positives_of_target": 1}
    before["precision_of_target"] = after["precision_of_target"] = 2 / 3
    after |= {"p_value_of_target": mcnemar(1, 1), "p_value_elsewhere": mcnemar(1, 0)}
    assert count_both(table, [1]) == {"before": before, "after": after}
    assert count_by_split({"val": table}, [1]) == {"val": after, "val_base": before}
    # Of two classes with three images each; the test has the first ten times as often.
    tables = {"test": table, "mistakes": table}
    outcomes = count_by_split(tables, [1], [10, 1, 0, 0])
    assert outcomes["test_base"]["accuracy"] == pytest.approx((10 / 3 + 2 / 3) / 11)
    assert outcomes["test_base"]["balanced_accuracy"] == 0.5
    assert outcomes["mistakes"] == after  # which are no sample of what a classifier meets
    many = count_both(at(table, torch.arange(6).repeat(5)), [1])["after"]
    p_values = [many[f"p_value{group}"] for group in ("", "_of_target", "_elsewhere")]
    assert p_values == [mcnemar(10, 5), mcnemar(5, 5), mcnemar(5, 0)]
    assert len({*p_values}) == 3
    # An image of one target that is called another target is no false positive of the two.
    both = count_both(table, [0, 1])["after"]
    assert (both["false_positives_of_target"], both["precision_of_target"]) == (0, 1.0)


def test_counts_of_a_loss_that_is_not_finite_have_no_number():
    logits = BEFORE.clone()
    logits[1, 0], logits[1, 1] = -3e38, 3e38  # their difference is no float32
    assert count_both(make_table(logits))["before"]["loss"] is None
    logits[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="outputs are not finite"):
        make_table(logits)


def test_compare_errors_counts_base_and_adapter(tiny):
    adapted = randomize(add_lora(tiny))
    images, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    with torch.no_grad():
        after = adapted(images).argmax(1) == labels
        with lora_disabled(adapted):
            before = adapted(images).argmax(1) == labels
    outcomes = compare_errors(adapted, iter(batches()))
    assert outcomes["before"]["errors"] == int((~before).sum())
    assert outcomes["after"]["repaired"] == int((~before & after).sum())
    assert outcomes["after"]["broken"] == int((before & ~after).sum()) > 0
    with pytest.raises(ValueError, match="batches: expected at least one batch"):
        compare_errors(adapted, [])
    with pytest.raises(ValueError, match="LoRA"):
        compare_errors(remove_lora(adapted), batches())


def test_without_an_image_there_is_no_share():
    with pytest.raises(ValueError, match="expected at least one image"):
        count_errors(torch.arange(0), torch.arange(0), 2)


def test_the_counts_of_many_classes_are_those_of_their_confusion_matrix():
    """Without the matrix, which of 100,000 classes would be of 80 GB."""
    generator = torch.Generator().manual_seed(0)
    label, prediction = torch.randint(5, (2, 300), generator=generator)
    counts, confusion = count_errors(label, prediction, 6, [1, 4]), torch.zeros(6, 6).long()
    for pair in zip(label.tolist(), prediction.tolist(), strict=True):
        confusion[pair] += 1
    wrong = confusion.clone().fill_diagonal_(0)
    assert counts["accuracy"] == pytest.approx(int(confusion.trace()) / 300)
    assert counts["errors_per_class"] == wrong.sum(1).tolist()
    assert counts["images_per_class"] == confusion.sum(1).tolist()
    assert counts["false_positives_per_class"] == wrong.sum(0).tolist()
    assert counts["false_positives_of_target"] == int(wrong[[0, 2, 3, 5]][:, [1, 4]].sum())
    for row, called in zip(wrong.tolist(), counts["top_confusion_per_class"], strict=True):
        assert called == ([row.index(max(row)), max(row)] if any(row) else None)
    assert count_errors(100_000 - 1 - label, prediction, 100_000)["errors"] == 300
