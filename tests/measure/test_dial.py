"""The dial: what a finished adapter gains at each scale and offset, and where to turn it."""

import pytest
import torch
import torch.nn.functional as F
from helpers.nets import batches, randomize

from lora_mnist import add_lora, dial_curve, set_lora_scale
from lora_mnist.lora.model import add_offset, set_lora_offset
from lora_mnist.measure import dial
from lora_mnist.measure.dial import (
    Collapse,
    advised_place,
    contest,
    offset_for,
    offsets_of,
    outcome,
)
from lora_mnist.measure.predictions import counts_of, predictions_of


@pytest.fixture
def adapted(tiny):
    return randomize(add_lora(tiny.eval(), rank=2).eval())


@pytest.mark.parametrize("direction", [[0.0, 1, 0], [-0.5, 2, 0.3]])
def test_dial_curve_counts_each_point_as_the_network_errs_there(adapted, direction):
    add_offset(adapted, "linear2", torch.tensor(direction))
    offsets = [-0.7, 0.0, 0.6, 1.1]
    images, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    for choose_by in ("balanced_accuracy", "accuracy"):
        curve = dial_curve(adapted, batches(), [1], [0, 0.5, 1], offsets, choose_by)
        assert curve["images"] == 50
        base = counts_of(predictions_of(adapted, batches()), [1])["before"]
        assert curve["base"]["measure"] == pytest.approx(base[choose_by])
        for place, scale in enumerate(curve["scales"]):
            set_lora_scale(adapted, scale)
            every = {}
            for offset in offsets:
                set_lora_offset(adapted, offset)
                every[offset] = counts_of(predictions_of(adapted, batches()), [1])["after"]
            its = every[curve["offsets"][place]]
            for key in ("errors", "errors_of_target", "errors_elsewhere", "false_calls_of_target"):
                assert curve[key][place] == its[key]
            assert curve["saved"][place] == pytest.approx(its[choose_by] - base[choose_by])
            weights = None if choose_by == "accuracy" else 1 / labels.bincount(minlength=3)
            losses = {}
            for offset in offsets:
                set_lora_offset(adapted, offset)
                losses[offset] = F.cross_entropy(adapted(images), labels, weights).item()
            best = min(losses, key=losses.get)
            if scale == 0 and every[best][choose_by] < base[choose_by]:
                best = 0.0  # the base itself
            assert curve["offsets"][place] == best
            if place == curve["scales"].index(curve["advised"]):
                counts = [every[offset]["errors_of_target"] for offset in offsets]
                assert curve["by_offset"]["adapter"]["errors_of_target"] == counts
    with pytest.raises(ValueError, match="choose_by=f1"):
        dial_curve(adapted, batches(), choose_by="f1")


def test_without_an_offset_the_dial_has_scales_alone(adapted):
    curve = dial_curve(adapted, batches(), [1])
    assert set(curve["offsets"]) == {0.0}
    assert "by_offset" not in curve


@pytest.mark.parametrize(
    ("saved", "deviation", "advised"),
    [
        # Near 1, where that is the best but for chance.
        ([0, 100, 90], [12, 0, 10], 0.5),
        ([0, 100, 95], [12, 0, 10], 1.0),  # half of a deviation
        ([0, -1, -2], [0, 3, 5], 1.0),
        ([0, -1, -4], [0, 3, 5], 0.5),
        ([0, -200, -1400], [0, 20, 43], 0.0),
    ],
)
def test_advised_scale(saved, deviation, advised):
    curve = {"scales": [0.0, 0.5, 1.0], "saved": saved, "deviation": deviation}
    for each in (curve, {key: values[::-1] for key, values in curve.items()}):
        assert each["scales"][advised_place(each)] == advised


def test_the_base_itself_can_be_taken():
    """Two images that are wrong by far ask for an offset that breaks three others."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2))
    net.load_state_dict({"0.weight": torch.eye(2), "0.bias": torch.zeros(2)})
    add_offset(add_lora(net.eval(), rank=1), "0", torch.tensor([0.0, 1]))
    margins, labels = torch.tensor([0.5, 0.5, 0.5, -1, -1, 6, 6]), torch.tensor([1] * 3 + [0] * 4)
    images = torch.stack([0 * margins, margins], dim=1)
    curve = dial_curve(net, [(images, labels)], [1], offsets=[-1.0, 0.0])
    assert curve["offsets"] == [0, *[-1] * (len(curve["scales"]) - 1)]
    assert curve["saved"] == pytest.approx([0, *[-0.5] * (len(curve["scales"]) - 1)])
    assert (curve["advised"], curve["advised_offset"]) == (0, 0)


def test_equal_logits_are_the_first_class_with_any_offset():
    logits = torch.tensor([[1.0, 1, 0], [0, 2, 2], [3, 2, 3], [1, 1, 1]])
    for direction in (torch.tensor([0.0, 0, 1]), torch.tensor([0, 1.0, 0.5]), None):
        rows = contest(logits, torch.zeros(4).long(), direction)
        for offset in (0.0, 1.0, 2.0):
            moved = logits if direction is None else logits + offset * direction
            assert outcome(rows, direction, offset).tolist() == moved.argmax(1).tolist()


def test_a_shift_of_logits_is_no_collapse():
    """What an offset would put right is no harm; what it would not is."""
    labels = torch.tensor([0] * 40 + [1] * 10)
    good = torch.nn.functional.one_hot(labels, 2) * 4.0
    shifted, spoilt = good + torch.tensor([0, 6.0]), good.flip(1)
    direction = torch.tensor([0, 1.0])
    limit = Collapse(0.7, "balanced_accuracy", direction, [-6.0, 0.0, 6.0])
    assert not limit.is_seen(contest(shifted, labels, direction), 2)
    assert limit.is_seen(contest(spoilt, labels, direction), 2)
    assert Collapse(0.7, "accuracy").is_seen(contest(shifted, labels, None), 2)


def test_an_offset_is_tried_up_to_one_more_than_a_class_is_rarer():
    counts = torch.tensor([300.0, 300, 10, 0])
    rarity = (610 / 3 / counts[2]).log().item()
    of_one = offset_for(counts, [2])
    assert of_one.direction.tolist() == [0, 0, 1, 0]
    assert max(offsets_of(of_one)) == pytest.approx(rarity + 1, abs=0.25)
    assert max(offsets_of(offset_for(counts, [0]))) == 1
    of_two = offset_for(counts, [1, 2])
    assert of_two.direction[2].item() == pytest.approx(rarity)
    assert of_two.direction[3] == 0
    assert max(offsets_of(of_two)) == 2
    assert offsets_of(None) == [0.0]
    assert offsets_of(offset_for(torch.tensor([9.0, 9]), [0, 1])) == [0.0]  # tau moves none


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
