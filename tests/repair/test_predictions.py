import pytest
import torch
import torch.nn.functional as F
from helpers.nets import randomize
from hypothesis import given
from hypothesis import strategies as st

from lora_mnist import add_lora, compare_errors, lora_disabled, remove_lora
from lora_mnist.repair.module import logged_metrics
from lora_mnist.repair.predictions import Evaluation
from lora_mnist.repair.significance import mcnemar

CLASSES = 3


def batch(seed, size=20):
    """Logits of a base and of a network, and labels without class 2."""
    generator = torch.Generator().manual_seed(seed)
    base, logits = torch.randn(2, size, CLASSES, generator=generator)
    return base, logits, torch.randint(0, 2, (size,), generator=generator)


def plain_counts(logits, labels):
    errors, images, false_calls, called = ([0] * CLASSES for _ in range(4))
    for row, label in zip(logits, labels.tolist(), strict=True):
        prediction = int(row.argmax())
        images[label] += 1
        called[prediction] += 1
        errors[label] += prediction != label
        false_calls[prediction] += prediction != label
    precision = [1 - x / n if n else None for x, n in zip(false_calls, called, strict=True)]
    return {
        "loss": pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5),
        "accuracy": pytest.approx(1 - sum(errors) / len(labels)),
        "errors": sum(errors),
        "errors_per_class": errors,
        "false_calls_per_class": false_calls,
        "precision_per_class": pytest.approx(precision),
        "images_per_class": images,
    }


def plain_repair(base, logits, labels):
    repaired, broken = [0] * CLASSES, [0] * CLASSES
    for before, after, label in zip(base.argmax(1), logits.argmax(1), labels.tolist(), strict=True):
        repaired[label] += bool(before != label and after == label)
        broken[label] += bool(before == label and after != label)
    return {
        "repaired": sum(repaired),
        "broken": sum(broken),
        "negative_flip_rate": sum(broken) / len(labels),
        "p_value": mcnemar(sum(repaired), sum(broken)),
        "repaired_per_class": repaired,
        "broken_per_class": broken,
        **plain_counts(logits, labels),
    }


@given(seed=st.integers(0, 1000), first=st.integers(1, 19), has_base=st.booleans())
def test_counts_equal_those_of_a_plain_loop(seed, first, has_base):
    base, logits, labels = batch(seed)
    evaluation = Evaluation(CLASSES)
    for _ in range(2):  # it starts afresh each time
        for part in (slice(None, first), slice(first, None)):
            evaluation.update(logits[part], labels[part], base[part] if has_base else None)
        expected = {"val": plain_counts(logits, labels)}
        if has_base:
            expected = {"val": plain_repair(base, logits, labels)}
            expected["val_base"] = plain_counts(base, labels)
        assert evaluation.compute_and_reset("val") == expected


def test_classes_that_loggers_get():
    base, logits, labels = batch(0)
    evaluation = Evaluation(CLASSES)
    evaluation.update(logits, labels, base)
    outcomes = evaluation.compute_and_reset("val")
    tags = logged_metrics(outcomes, ["a/b", "c", "d"], [1])
    assert "val/accuracy_per_class/a-b" in tags
    assert "val_base/accuracy_per_class/d" not in tags  # there is no image of it
    assert tags["val/precision_per_class/d"] == outcomes["val"]["precision_per_class"][2]
    assert tags["val/false_calls_of_target"] == outcomes["val"]["false_calls_per_class"][1]
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
    assert outcomes["base"] == plain_counts(before, labels)
    assert outcomes["adapted"] == plain_repair(before, after, labels)
    assert outcomes["adapted"]["repaired"] + outcomes["adapted"]["broken"] > 0
    assert torch.equal(adapted(images), after)  # it is enabled
    with pytest.raises(ValueError, match="batches: expected at least one batch"):
        compare_errors(adapted, [])
    with pytest.raises(ValueError, match="LoRA"):
        compare_errors(remove_lora(adapted), batches())
