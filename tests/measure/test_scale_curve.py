"""The scale curve: the score of a finished adapter at each point, and the advised point."""

import pytest
import torch
from helpers.nets import batches, randomize

from lora_mnist import add_lora, scale_curve, set_lora_enabled, set_lora_scale
from lora_mnist.lora.model import add_offset, set_lora_offset
from lora_mnist.lora.offset import Offset, build_offset
from lora_mnist.measure import scale_curve as module
from lora_mnist.measure.class_weights import MEASURES, class_weights
from lora_mnist.measure.counts import count_both
from lora_mnist.measure.predictions import compute_predictions
from lora_mnist.measure.scale_curve import offsets_to_try
from lora_mnist.measure.score import fit_temperature


@pytest.fixture
def adapted(tiny):
    return randomize(add_lora(tiny.eval(), rank=2).eval())


@pytest.mark.parametrize("direction", [[0.0, 1, 0], [-0.5, 2, 0.3]])
@pytest.mark.parametrize("choose_by", MEASURES)
def test_the_scale_curve_counts_the_errors_of_the_network_at_each_point(
    adapted, direction, choose_by
):
    add_offset(adapted, "linear2", Offset(torch.tensor(direction)))
    offsets = [-0.7, 0.0, 0.6, 1.1]
    images, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    test_prior = [30, 2, 8]
    weights = class_weights(test_prior, choose_by)
    curve = scale_curve(adapted, batches(), [1], [0, 0.5, 1], offsets, choose_by, test_prior)
    assert curve["images"] == 50
    base = count_both(compute_predictions(adapted, batches()), [1], test_prior)["before"]
    assert curve["base"]["weighted_accuracy"] == pytest.approx(base[choose_by])
    points = {}
    assert [row["scale"] for row in curve["rows"]] == [0, 0.5, 1]
    for row in curve["rows"]:
        scale = row["scale"]
        set_lora_scale(adapted, scale)
        every = {}
        for offset in offsets:
            set_lora_offset(adapted, offset)
            every[offset] = count_both(compute_predictions(adapted, batches()), [1], test_prior)[
                "after"
            ]
            set_lora_offset(adapted, 0.0)
            logits = adapted(images).double()
            temperature = fit_temperature(logits, labels)
            moved = (logits + offset * torch.tensor(direction)) / temperature
            right = moved.softmax(1).gather(1, labels[:, None])[:, 0]
            unknown = (offset * torch.tensor(direction).double() / temperature).softmax(0)
            value = 0.0
            for c, weight in enumerate(weights):
                of_class = [*right[labels == c], unknown[c]]
                value += weight * sum(each.item() ** 0.25 for each in of_class) / len(of_class)
            points[scale, offset] = value
        best = max(offsets, key=lambda offset: points[scale, offset])
        assert row["offset"] == best
        assert row["score"] == pytest.approx(points[scale, best])
        assert row["weighted_accuracy"] == pytest.approx(every[best][choose_by])
        for key in ("errors", "errors_of_target", "errors_elsewhere", "false_positives_of_target"):
            assert row[key] == every[best][key]
    assert (curve["advised"]["scale"], curve["advised"]["offset"]) == max(points, key=points.get)
    assert curve["base"]["score"] == pytest.approx(points[0, 0.0])


@pytest.mark.parametrize(
    "wrong",
    [
        *({"choose_by": "f1"}, {"scales": []}, {"scales": [float("nan")]}),
        *(
            {"test_prior": [1, 2]},
            {"test_prior": [3, -1, 2]},
            {"offsets": [float("inf")]},
            {"targets": [-1]},
            {"targets": [7]},
            {"targets": [True]},
        ),
    ],
)
def test_unusable_scales_and_offsets_are_a_value_error(adapted, wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}="):
        scale_curve(adapted, batches(), **wrong)


@pytest.mark.parametrize("labels", [[0.0, 1.0], [0, 3], [-1, 2]])
def test_labels_that_are_no_classes_are_a_value_error(adapted, labels):
    with pytest.raises(ValueError, match="^labels="):
        scale_curve(adapted, [(torch.zeros(2, 6), torch.tensor(labels))])


def test_logits_that_are_not_numbers_decide_nothing(adapted):
    images, labels = next(iter(batches()))
    with pytest.raises(ValueError, match="not finite"):
        scale_curve(adapted, [(images * torch.nan, labels)], [1])


def test_a_point_that_is_behind_beyond_chance_is_not_taken():
    """The score asks for the adapter, which is sure; but images that are right become wrong."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    net.load_state_dict({"0.weight": torch.eye(2)})
    add_lora(net.eval(), rank=1)
    labels = torch.tensor([0, 1] * 100)
    images = torch.nn.functional.one_hot(labels, 2).float()
    taken = scale_curve(net, [(images, labels)], scales=[0.0, 1.0])
    assert taken["advised"]["scale"] == 0  # nothing was trained; equal, so the nearest to the base
    with torch.no_grad():
        adapter = net[0].parametrizations.weight[0]
        adapter.lora_A.copy_(torch.tensor([[1.0, 0]]))
        adapter.lora_B.copy_(torch.tensor([[-3.0], [0]]))
    rows = scale_curve(net, [(images, labels)], scales=[0.0, 1.0])["rows"]
    assert [row["is_behind"] for row in rows] == [False, True]
    few = [0, 1]
    rows = scale_curve(net, [(images[few], labels[few])], scales=[0.0, 1.0])["rows"]
    assert not any(row["is_behind"] for row in rows)  # one image may be chance
    alone = scale_curve(net, [(images, labels)], scales=[1.0])
    assert alone["advised"] == {"scale": 0.0, "offset": 0.0}


def test_an_adapter_that_is_switched_off_has_no_scale_curve(adapted):
    set_lora_enabled(adapted, False)
    with pytest.raises(ValueError, match="switched off"):
        scale_curve(adapted, batches())


def test_without_an_offset_the_curve_has_only_scales(adapted):
    curve = scale_curve(adapted, batches(), [1])
    assert {row["offset"] for row in curve["rows"]} == {0.0}


def test_the_base_itself_can_be_taken():
    """Two images that are wrong by far ask for an offset that breaks nine others."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2))
    net.load_state_dict({"0.weight": torch.eye(2), "0.bias": torch.zeros(2)})
    add_offset(add_lora(net.eval(), rank=1), "0", Offset(torch.tensor([0.0, 1])))
    margins = torch.tensor([0.5] * 9 + [-1.0] * 10 + [6, 6])
    labels = torch.tensor([1] * 9 + [0] * 12)
    images = torch.stack([0 * margins, margins], dim=1)
    curve = scale_curve(net, [(images, labels)], [1], offsets=[-1.0, 0.0])
    assert curve["advised"] == {"scale": 0, "offset": 0}
    assert curve["rows"][0]["weighted_accuracy"] == curve["base"]["weighted_accuracy"]
    # An offset that is set is in each row, whatever it costs.
    curve = scale_curve(net, [(images, labels)], [1], offsets=[8.0])
    assert all(row["is_behind"] and row["offset"] == 8 for row in curve["rows"])
    assert curve["advised"]["offset"] == 8
    assert curve["rows"][0]["weighted_accuracy"] < curve["base"]["weighted_accuracy"]


def test_an_offset_is_tried_up_to_one_more_than_a_class_is_rarer():
    counts = torch.tensor([300.0, 300, 10, 0])
    rarity = (610 / 3 / counts[2]).log().item()
    of_one = build_offset(counts, [2])
    assert of_one.direction.tolist() == [0, 0, 1, 0]
    assert max(offsets_to_try(of_one)) == pytest.approx(rarity + 1, abs=0.25)
    assert max(offsets_to_try(build_offset(counts, [0]))) == 1
    of_two = build_offset(counts, [1, 2])
    assert of_two.direction[2].item() == pytest.approx(rarity)
    assert of_two.direction[3] == 0
    assert max(offsets_to_try(of_two)) == 2
    assert offsets_to_try(None) == [0.0]
    assert offsets_to_try(build_offset(torch.tensor([9.0, 9]), [0, 1])) == [0.0]  # tau moves none


def test_the_seed_selects_the_search_images(monkeypatch):
    monkeypatch.setattr(module, "MAX_IMAGES", 20)
    labels = torch.tensor([0] * 40 + [1] * 58 + [2] * 2)
    some, same, others = (module.select_search_images(labels, seed) for seed in (0, 0, 1))
    assert len(some.unique()) == 20
    assert torch.equal(some, same)
    assert not torch.equal(some, others)
    assert labels[some].bincount(minlength=3).tolist() == [9, 9, 2]
    assert module.select_search_images(labels[:7], 0).tolist() == [*range(7)]
