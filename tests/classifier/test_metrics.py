from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.nets import TinyNet
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lora_mnist import add_lora, compare_errors, lora_disabled, lora_parameters
from lora_mnist.classifier.metrics import Evaluation, scalars
from lora_mnist.classifier.significance import mcnemar, wilson

CLASSES = 3


def batch(seed: int, size: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a base and of a network, and labels without class 2."""
    generator = torch.Generator().manual_seed(seed)
    base, logits = torch.randn(2, size, CLASSES, generator=generator)
    return base, logits, torch.randint(0, 2, (size,), generator=generator)


def largest(logits: Tensor, labels: Tensor) -> list[dict[str, int]]:
    """The three largest confusions; of equals those of the first classes."""
    pairs = Counter(zip(labels.tolist(), logits.argmax(dim=1).tolist(), strict=True))
    wrong = sorted(
        (pair for pair in pairs if pair[0] != pair[1]), key=lambda pair: (-pairs[pair], pair)
    )
    return [{"label": y, "taken_for": c, "images": pairs[y, c]} for y, c in wrong[:3]]


def plain_counts(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """What is counted of a network alone, image by image."""
    errors, images, loss = [0] * CLASSES, [0] * CLASSES, 0.0
    for row, label in zip(logits, labels.tolist(), strict=True):
        images[label] += 1
        errors[label] += int(row.argmax()) != label
        loss += F.cross_entropy(row[None], torch.tensor([label])).item()
    return {
        "loss": pytest.approx(loss / len(labels), rel=1e-5),
        "accuracy": pytest.approx(1 - sum(errors) / len(labels)),
        "errors": sum(errors),
        "errors_per_class": errors,
        "errors_interval_per_class": [
            pytest.approx(wilson(*of), abs=0.005) for of in zip(errors, images, strict=True)
        ],
        "images_per_class": images,
        "confusions": largest(logits, labels),
    }


def plain_repair(base: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """What is counted of a network beside its base, image by image."""
    repaired, broken = [0] * CLASSES, [0] * CLASSES
    for before, after, label in zip(base.argmax(1), logits.argmax(1), labels.tolist(), strict=True):
        repaired[label] += bool(before != label and after == label)
        broken[label] += bool(before == label and after != label)
    return {
        **{"repaired": sum(repaired), "broken": sum(broken)},
        "p_value": mcnemar(sum(repaired), sum(broken)),
        **{"repaired_per_class": repaired, "broken_per_class": broken},
        **plain_counts(logits, labels),
    }


@given(seed=st.integers(0, 1000), first=st.integers(1, 19), has_base=st.booleans())
def test_counts_equal_those_of_a_plain_loop(seed: int, first: int, has_base: bool) -> None:
    base, logits, labels = batch(seed)
    evaluation = Evaluation(CLASSES)
    for _ in range(2):  # it starts afresh each time
        for part in (slice(None, first), slice(first, None)):
            evaluation.update(logits[part], labels[part], base[part] if has_base else None)
        outcomes = evaluation.conclude("val")
        expected = {"val": plain_counts(logits, labels)}
        if has_base:
            expected = {"val": plain_repair(base, logits, labels)}
            expected["val_base"] = plain_counts(base, labels)
        assert outcomes == expected
        assert list(outcomes["val"]) == list(expected["val"])
        assert {type(outcomes["val"][key]) for key in ("errors", "accuracy")} == {int, float}
        if has_base:
            change = outcomes["val"]["errors"] - outcomes["val_base"]["errors"]
            assert change == outcomes["val"]["broken"] - outcomes["val"]["repaired"]


@pytest.mark.parametrize("has_base", [True, False])
def test_predictions_are_kept_in_order(has_base: bool) -> None:
    """Those of a network without a base are a base's own."""
    base, logits, labels = batch(0)
    sides = {"base": base, "adapted": logits} if has_base else {"base": logits}
    evaluation = Evaluation(CLASSES)
    for part in (slice(None, 7), slice(7, None)):
        evaluation.update(logits[part], labels[part], base[part] if has_base else None)
    evaluation.conclude("test")
    found = evaluation.predictions
    probabilities = [f"{side}_probability" for side in sides]
    assert list(found) == ["index", "label", *sides, *probabilities]
    assert found["index"].tolist() == list(range(20))
    assert torch.equal(found["label"], labels)
    for side, z in sides.items():
        assert torch.equal(found[side], z.argmax(dim=1))
        torch.testing.assert_close(found[f"{side}_probability"], z.softmax(dim=1).amax(dim=1))


def test_predictions_of_several_processes_take_their_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, logits, labels = batch(0)
    parts = []
    for rank in range(2):
        evaluation = Evaluation(CLASSES)
        with monkeypatch.context() as distributed:
            distributed.setattr("torch.distributed.is_initialized", lambda: True)
            distributed.setattr("torch.distributed.get_rank", lambda *_, rank=rank: rank)
            distributed.setattr("torch.distributed.get_world_size", lambda *_: 2)
            evaluation.update(logits[rank::2], labels[rank::2])
        parts.append(evaluation)
    # What synchronisation does: the processes' lists, one after the other.
    for name in ("index", "label", "base", "base_probability"):
        getattr(parts[0], name).extend(getattr(parts[1], name))
    parts[0].conclude("test")
    assert torch.equal(parts[0].predictions["label"], labels)
    assert torch.equal(parts[0].predictions["base"], logits.argmax(dim=1))


def test_loggers_get_base_and_network_by_class() -> None:
    base, logits, labels = batch(0)
    evaluation = Evaluation(CLASSES)
    evaluation.update(logits, labels, base)
    outcomes = evaluation.conclude("val")
    tags = scalars("val", outcomes, ["a/b", "c", "d"], [1])
    errors, images = (outcomes["val"][f"{what}_per_class"] for what in ("errors", "images"))
    assert tags["val/errors_of_target"] == errors[1]
    assert tags["val/errors_elsewhere"] == errors[0] + errors[2]
    assert tags["val/accuracy_per_class/a-b"] == 1 - errors[0] / images[0]
    assert "val_base/accuracy_per_class/d" not in tags  # there is no image of it
    assert {"val/repaired", "val/broken", "val/loss", "val_base/accuracy"} <= tags.keys()
    many = scalars("val", outcomes, ["x"] * 17, [1])
    assert [tag for tag in many if "per_class" in tag] == [
        "val/accuracy_per_class/x",
        "val_base/accuracy_per_class/x",
    ]


def test_a_loss_that_is_no_number_is_null() -> None:
    evaluation = Evaluation(CLASSES)
    evaluation.update(torch.full((2, CLASSES), float("nan")), torch.tensor([0, 1]))
    assert evaluation.conclude("val")["val"]["loss"] is None


# --- a loop of one's own -------------------------------------------------------------------------


@pytest.fixture
def adapted(tiny: TinyNet) -> TinyNet:
    add_lora(tiny)
    for parameter in lora_parameters(tiny):
        nn.init.normal_(parameter)
    return tiny


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(50, 6, generator=generator)
    labels = torch.randint(0, 2, (50,), generator=generator)
    return list(zip(images.split(16), labels.split(16), strict=True))


def test_compare_errors_counts_base_and_adapter(adapted: TinyNet) -> None:
    images, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    with torch.no_grad():
        after = adapted(images)
        with lora_disabled(adapted):
            before = adapted(images)
    found = compare_errors(adapted, iter(batches()))
    assert found == {
        "base": plain_counts(before, labels),
        "adapted": plain_repair(before, after, labels),
    }
    assert found["adapted"]["repaired"] + found["adapted"]["broken"] > 0


def test_compare_errors_leaves_the_network_as_it_was(adapted: TinyNet) -> None:
    adapted.train()
    adapted(batches()[0][0])  # the base goes back to eval mode as soon as it is asked
    modes = [module.training for module in adapted.modules()]
    state = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    compare_errors(adapted, batches())
    assert [module.training for module in adapted.modules()] == modes
    assert torch.is_grad_enabled()
    assert all(p.grad is None for p in adapted.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in adapted.state_dict().items())
    images, _ = batches()[0]
    with lora_disabled(adapted):
        base = adapted(images)
    assert not torch.equal(adapted(images), base)


def test_compare_errors_counts_classes_that_the_network_does_not_know(adapted: TinyNet) -> None:
    found = compare_errors(adapted, batches(), num_classes=4)
    assert found["base"]["images_per_class"][2:] == [0, 0]
    assert len(found["adapted"]["errors_per_class"]) == 4


def test_compare_errors_refuses_what_it_cannot_compare(tiny: TinyNet) -> None:
    with pytest.raises(ValueError, match="LoRA"):
        compare_errors(tiny, batches())
    with pytest.raises(ValueError, match="batches: expected at least one batch"):
        compare_errors(add_lora(tiny), [])
