import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.nets import batches, randomize
from helpers.runs import at

from lora_mnist import add_lora, compare_errors, lora_disabled, remove_lora, set_lora_scale
from lora_mnist.errors import TrainingError
from lora_mnist.lora.model import add_offset, lora_point, set_lora_offset
from lora_mnist.lora.offset import Offset
from lora_mnist.measure.predictions import (
    BASE,
    Point,
    counts_of,
    counts_of_labels,
    logged_metrics,
    outcomes_by_part,
    predictions_at,
    predictions_of,
)
from lora_mnist.measure.significance import mcnemar
from lora_mnist.measure.weights import MEASURES

#: The last of four classes has no image, and no image is given its name.
LABELS = torch.tensor([0, 0, 0, 1, 1, 1])
BEFORE = 9.0 * F.one_hot(torch.tensor([0, 1, 2, 1, 0, 1]), 4)
AFTER = 9.0 * F.one_hot(torch.tensor([0, 0, 1, 1, 1, 2]), 4)


def table_of(before, after=None):
    """The table of these logits of a base, and of base and adapter."""
    table = predictions_at(torch.nn.Identity(), [(before, LABELS)], [BASE])
    return table if after is None else table.followed_by(table_of(after))


def test_counts_by_hand():
    before = {
        "loss": pytest.approx(F.cross_entropy(BEFORE, LABELS).item()),
        "accuracy": 0.5,
        "balanced_accuracy": 0.5,
        "mean_accuracy": 0.5,
        "errors": 3,
        "errors_per_class": [2, 1, 0, 0],
        "called_per_class": [[1, 1], [0, 1], None, None],
        "false_calls_per_class": [1, 1, 1, 0],
        "images_per_class": [3, 3, 0, 0],
    }
    assert counts_of(table_of(BEFORE)) == {"before": before}
    after = {
        "loss": pytest.approx(F.cross_entropy(AFTER, LABELS).item()),
        "accuracy": pytest.approx(4 / 6),
        "balanced_accuracy": pytest.approx(4 / 6),
        "mean_accuracy": pytest.approx(4 / 6),
        "errors": 2,
        "errors_per_class": [1, 1, 0, 0],
        "called_per_class": [[1, 1], [2, 1], None, None],
        "false_calls_per_class": [0, 1, 1, 0],
        "images_per_class": [3, 3, 0, 0],
        "repaired": 2,
        "broken": 1,
        "negative_flip_rate": 1 / 6,
        "p_value": mcnemar(2, 1),
        **{f"p_value_{name}": 1 for name in MEASURES},
        "repaired_per_class": [1, 1, 0, 0],
        "broken_per_class": [0, 1, 0, 0],
    }
    table = table_of(BEFORE, AFTER)
    assert counts_of(table) == {"before": before, "after": after}
    before |= {"errors_of_target": 1, "errors_elsewhere": 2, "false_calls_of_target": 1}
    after |= {"errors_of_target": 1, "errors_elsewhere": 1, "false_calls_of_target": 1}
    before["precision_of_target"] = after["precision_of_target"] = 2 / 3
    after |= {"p_value_of_target": mcnemar(1, 1), "p_value_elsewhere": mcnemar(1, 0)}
    assert counts_of(table, [1]) == {"before": before, "after": after}
    assert outcomes_by_part({"val": table}, [1]) == {"val": after, "val_base": before}
    # Of two classes with three images each; the test has the first ten times as often.
    tables = {"test": table, "mistakes": table}
    outcomes = outcomes_by_part(tables, [1], [10, 1, 0, 0])
    assert outcomes["test_base"]["accuracy"] == pytest.approx((10 / 3 + 2 / 3) / 11)
    assert outcomes["test_base"]["balanced_accuracy"] == 0.5
    assert outcomes["mistakes"] == after  # which are no sample of what a classifier meets
    many = counts_of(at(table, torch.arange(6).repeat(5)), [1])["after"]
    p_values = [many[f"p_value{group}"] for group in ("", "_of_target", "_elsewhere")]
    assert p_values == [mcnemar(10, 5), mcnemar(5, 5), mcnemar(5, 0)]
    assert len({*p_values}) == 3
    # Names are exact: an image of one target that is given the name of another is a false call.
    both = counts_of(table, [0, 1])["after"]
    assert (both["false_calls_of_target"], both["precision_of_target"]) == (1, 4 / 5)


def test_counts_of_a_loss_that_is_not_finite_have_no_number():
    logits = BEFORE.clone()
    logits[1, 0], logits[1, 1] = -3e38, 3e38  # their difference is no float32
    assert counts_of(table_of(logits))["before"]["loss"] is None
    logits[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="outputs are not finite"):
        table_of(logits)


def test_the_outcome_says_what_became_of_each_image():
    table = at(table_of(BEFORE, AFTER), torch.tensor([5, 0, 1, 2]))
    assert table.label.tolist() == [1, 0, 0, 0]
    assert table.prediction.tolist() == [[1, 0, 1, 2], [2, 0, 0, 1]]
    of_base = table_of(BEFORE)
    for column in ("probability", "loss"):
        expected = getattr(of_base, column)[0, [5, 0, 1, 2]]
        assert torch.equal(getattr(table, column)[0], expected)
    assert table.outcomes().tolist() == ["broken", "right", "repaired", "wrong"]
    torch.testing.assert_close(of_base.probability[0], BEFORE.softmax(dim=1).amax(dim=1))
    alone = of_base.outcomes()
    assert alone.tolist() == ["right", "wrong", "wrong", "right", "wrong", "right"]


def test_logged_metrics_of_classes():
    """Before a training its validation images have no curve of a class; many classes have none."""
    outcomes = outcomes_by_part({"val": table_of(BEFORE, AFTER)}, [1])
    tags = logged_metrics(outcomes, ["a/b", "c", "d", "e"], [1])
    curves = {tag for tag in tags if "per_class" in tag}
    assert curves == {"val/accuracy_per_class/a-b", "val/accuracy_per_class/c"}
    assert [tags[tag] for tag in curves] == pytest.approx([2 / 3, 2 / 3])
    assert (tags["val/repaired"], tags["val/errors_elsewhere"]) == (2, 1)
    assert (tags["val_base/precision_of_target"], tags["val/precision_of_target"]) == (2 / 3, 2 / 3)
    for tag, number in tags.items():  # by the keys of results.json
        part, _, key = tag.partition("/")
        assert "per_class" in key or outcomes[part][key] == number
    many = logged_metrics(outcomes, ["x"] * 17, [1])
    assert [tag for tag in many if "per_class" in tag] == ["val/accuracy_per_class/x"]


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


def test_predictions_at_each_scale(tiny):
    """Those of the network with that scale, which afterwards has its own again."""
    adapted = randomize(add_lora(tiny))
    set_lora_scale(adapted, 0.5)
    add_offset(adapted, "linear2", Offset(torch.tensor([0.5, 0, -1])))
    base = predictions_of(remove_lora(copy.deepcopy(adapted)), batches())
    points = [BASE, Point(0.3, 2.0), None, Point(1.0)]
    table = predictions_at(adapted, batches(), points)
    assert lora_point(adapted).scale == 0.5
    for place, point in enumerate(points):
        scale, offset = point or (0.5, 0)
        set_lora_scale(adapted, scale)
        set_lora_offset(adapted, offset)
        alone = predictions_of(adapted, batches())
        for column in ("prediction", "probability", "loss"):
            assert torch.equal(getattr(table, column)[place], getattr(alone, column)[1])
        known = predictions_of(adapted, batches(), base)
        assert torch.equal(known.probability, alone.probability)
    assert len({tuple(row.tolist()) for row in table.probability}) == 4
    with pytest.raises(RuntimeError):  # images of another size
        predictions_at(adapted, [(torch.zeros(1, 7), torch.zeros(1).long())], [BASE])
    assert lora_point(adapted) == Point(1.0)


def test_without_an_image_there_is_no_share():
    with pytest.raises(ValueError, match="expected at least one image"):
        counts_of_labels(torch.arange(0), torch.arange(0), 2)


def test_the_counts_of_many_classes_are_those_of_their_confusion_matrix():
    """Without the matrix, which of 100,000 classes would be of 80 GB."""
    generator = torch.Generator().manual_seed(0)
    label, prediction = torch.randint(5, (2, 300), generator=generator)
    counts, confusion = counts_of_labels(label, prediction, 6, [1, 4]), torch.zeros(6, 6).long()
    for pair in zip(label.tolist(), prediction.tolist(), strict=True):
        confusion[pair] += 1
    wrong = confusion.clone().fill_diagonal_(0)
    assert counts["accuracy"] == pytest.approx(int(confusion.trace()) / 300)
    assert counts["errors_per_class"] == wrong.sum(1).tolist()
    assert counts["images_per_class"] == confusion.sum(1).tolist()
    assert counts["false_calls_per_class"] == wrong.sum(0).tolist()
    assert counts["false_calls_of_target"] == int(wrong[:, [1, 4]].sum())
    for row, called in zip(wrong.tolist(), counts["called_per_class"], strict=True):
        assert called == ([row.index(max(row)), max(row)] if any(row) else None)
    assert counts_of_labels(100_000 - 1 - label, prediction, 100_000)["errors"] == 300
