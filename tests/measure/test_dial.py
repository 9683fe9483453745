"""The dial: what a finished adapter gains at each scale and offset, and where to turn it."""

import pytest
import torch
from helpers.nets import batches, randomize
from hypothesis import given
from hypothesis import strategies as st

from lora_mnist import add_lora, dial_curve, set_lora_scale
from lora_mnist.lora.model import add_offset, set_lora_offset
from lora_mnist.lora.offset import Offset, offset_for
from lora_mnist.measure import dial
from lora_mnist.measure.dial import offsets_to_try, smoothed
from lora_mnist.measure.predictions import counts_of, predictions_of
from lora_mnist.measure.significance import class_weights


@pytest.fixture
def adapted(tiny):
    return randomize(add_lora(tiny.eval(), rank=2).eval())


@pytest.mark.parametrize("direction", [[0.0, 1, 0], [-0.5, 2, 0.3]])
@pytest.mark.parametrize("choose_by", ["balanced_accuracy", "accuracy"])
def test_dial_curve_counts_each_point_as_the_network_errs_there(adapted, direction, choose_by):
    add_offset(adapted, "linear2", Offset(torch.tensor(direction)))
    offsets = [-0.7, 0.0, 0.6, 1.1]
    images, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    weights = torch.from_numpy(class_weights(labels.bincount(minlength=3), choose_by))[labels]
    curve = dial_curve(adapted, batches(), [1], [0, 0.5, 1], offsets, choose_by)
    assert curve["images"] == 50
    base = counts_of(predictions_of(adapted, batches()), [1])["before"]
    assert curve["base"]["measure"] == pytest.approx(base[choose_by])
    points = {}
    assert [row["scale"] for row in curve["rows"]] == [0, 0.5, 1]
    for row in curve["rows"]:
        scale = row["scale"]
        set_lora_scale(adapted, scale)
        every = {}
        for offset in offsets:
            set_lora_offset(adapted, offset)
            every[offset] = counts_of(predictions_of(adapted, batches()), [1])["after"]
            right = adapted(images).softmax(1).gather(1, labels[:, None])[:, 0].double()
            points[scale, offset] = (weights @ right**0.25).item()
        best = max(offsets, key=lambda offset: points[scale, offset])
        assert row["offset"] == best
        assert row["smoothed"] == pytest.approx(points[scale, best])
        assert row["measure"] == pytest.approx(every[best][choose_by])
        for key in ("errors", "errors_of_target", "errors_elsewhere", "false_calls_of_target"):
            assert row[key] == every[best][key]
    assert (curve["advised"]["scale"], curve["advised"]["offset"]) == max(points, key=points.get)
    assert curve["base"]["smoothed"] == pytest.approx(points[0, 0.0])


@pytest.mark.parametrize(
    "wrong",
    [
        *({"choose_by": "f1"}, {"scales": []}, {"scales": [float("nan")]}),
        *({"offsets": [float("inf")]}, {"targets": [-1]}, {"targets": [7]}, {"targets": [True]}),
    ],
)
def test_what_the_dial_cannot_use_is_a_value_error(adapted, wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}="):
        dial_curve(adapted, batches(), **wrong)


@pytest.mark.parametrize("labels", [[0.0, 1.0], [0, 3], [-1, 2]])
def test_labels_that_are_no_classes_are_a_value_error(adapted, labels):
    with pytest.raises(ValueError, match="^labels="):
        dial_curve(adapted, [(torch.zeros(2, 6), torch.tensor(labels))])


def test_logits_that_are_not_numbers_decide_nothing(adapted):
    images, labels = next(iter(batches()))
    with pytest.raises(ValueError, match="not finite"):
        dial_curve(adapted, [(images * torch.nan, labels)], [1])


@given(st.data())
def test_the_smoothed_measure_is_the_mean_over_classes_of_what_is_sure(data):
    """Where a network is sure, it is the balanced accuracy; no image counts more than that."""
    numbers = st.integers(0, 2)
    labels = torch.tensor([0, 1, 2, *data.draw(st.lists(numbers, max_size=30))])
    predicted = torch.tensor([data.draw(numbers) for _ in labels])
    logits = 1000.0 * torch.nn.functional.one_hot(predicted, 3)
    shares = [(predicted == labels)[labels == c].double().mean() for c in range(3)]
    (value,) = smoothed(logits, labels, torch.zeros(3), [0.0], "balanced_accuracy")
    assert value.item() == pytest.approx(float(sum(shares) / 3))
    (of_outlier,) = smoothed(1000 * logits, labels, torch.zeros(3), [0.0], "balanced_accuracy")
    assert of_outlier.item() == pytest.approx(value.item())
    (of_images,) = smoothed(logits, labels, torch.zeros(3), [0.0], "accuracy")
    assert of_images.item() == pytest.approx(float((predicted == labels).double().mean()))


def test_without_an_offset_the_dial_has_scales_alone(adapted):
    curve = dial_curve(adapted, batches(), [1])
    assert {row["offset"] for row in curve["rows"]} == {0.0}


def test_the_base_itself_can_be_taken():
    """Two images that are wrong by far ask for an offset that breaks three others."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2))
    net.load_state_dict({"0.weight": torch.eye(2), "0.bias": torch.zeros(2)})
    add_offset(add_lora(net.eval(), rank=1), "0", Offset(torch.tensor([0.0, 1])))
    margins, labels = torch.tensor([0.5, 0.5, 0.5, -1, -1, 6, 6]), torch.tensor([1] * 3 + [0] * 4)
    images = torch.stack([0 * margins, margins], dim=1)
    curve = dial_curve(net, [(images, labels)], [1], offsets=[-1.0, 0.0])
    assert curve["advised"] == {"scale": 0, "offset": 0}
    assert curve["rows"][0]["measure"] == curve["base"]["measure"]


def test_an_offset_is_tried_up_to_one_more_than_a_class_is_rarer():
    counts = torch.tensor([300.0, 300, 10, 0])
    rarity = (610 / 3 / counts[2]).log().item()
    of_one = offset_for(counts, [2])
    assert of_one.direction.tolist() == [0, 0, 1, 0]
    assert max(offsets_to_try(of_one)) == pytest.approx(rarity + 1, abs=0.25)
    assert max(offsets_to_try(offset_for(counts, [0]))) == 1
    of_two = offset_for(counts, [1, 2])
    assert of_two.direction[2].item() == pytest.approx(rarity)
    assert of_two.direction[3] == 0
    assert max(offsets_to_try(of_two)) == 2
    assert offsets_to_try(None) == [0.0]
    assert offsets_to_try(offset_for(torch.tensor([9.0, 9]), [0, 1])) == [0.0]  # tau moves none


def test_the_dial_takes_those_of_many_images_that_the_seed_gives(monkeypatch):
    monkeypatch.setattr(dial, "MAX_IMAGES", 20)
    labels = torch.tensor([0] * 40 + [1] * 58 + [2] * 2)
    for choose_by, expected in {"balanced_accuracy": [9, 9, 2], "accuracy": None}.items():
        some, same, others = (dial.images_of_dial(labels, seed, choose_by) for seed in (0, 0, 1))
        assert len(some.unique()) == 20
        assert torch.equal(some, same)
        assert not torch.equal(some, others)
        counts = labels[some].bincount(minlength=3)
        assert counts.tolist() == expected if expected else counts.all()
    assert dial.images_of_dial(labels[:7], 0, "accuracy").tolist() == [*range(7)]
