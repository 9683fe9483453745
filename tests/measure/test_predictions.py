"""The table of predictions, and the loop that makes it."""

import copy

import pytest
import torch
from helpers.logits import AFTER, BEFORE, make_table
from helpers.nets import batches, randomize
from helpers.runs import at
from torch import nn

from lora_mnist import add_lora, remove_lora, set_lora_scale
from lora_mnist.lora.model import add_offset, lora_point, set_lora_offset
from lora_mnist.lora.offset import Offset
from lora_mnist.lora.point import BASE, Point
from lora_mnist.measure.predictions import (
    compute_logits,
    compute_predictions,
    compute_predictions_at,
)


def test_the_outcome_says_what_became_of_each_image():
    table = at(make_table(BEFORE, AFTER), torch.tensor([5, 0, 1, 2]))
    assert table.label.tolist() == [1, 0, 0, 0]
    assert table.prediction.tolist() == [[1, 0, 1, 2], [2, 0, 0, 1]]
    of_base = make_table(BEFORE)
    for column in ("probability", "loss"):
        expected = getattr(of_base, column)[0, [5, 0, 1, 2]]
        assert torch.equal(getattr(table, column)[0], expected)
    assert table.outcomes().tolist() == ["broken", "right", "repaired", "wrong"]
    torch.testing.assert_close(of_base.probability[0], BEFORE.softmax(dim=1).amax(dim=1))
    alone = of_base.outcomes()
    assert alone.tolist() == ["right", "wrong", "wrong", "right", "wrong", "right"]


def test_a_large_batch_is_computed_a_few_images_at_a_time():
    """glibc returns the activations of 50 images of 64 x 64 to the kernel, those of 12 not."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    sizes = []
    net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    images = torch.rand(50, 3, 64, 64)
    expected = net(images)
    torch.testing.assert_close(compute_logits(net, images), expected, atol=1e-5, rtol=0)
    assert sizes[0] == sum(sizes[1:]) == 50
    assert max(sizes[1:]) * images[0].numel() <= 3 * 3 * 224 * 224


def test_predictions_at_each_scale(tiny):
    """Those of the network with that scale, which afterwards has its own again."""
    adapted = randomize(add_lora(tiny))
    set_lora_scale(adapted, 0.5)
    add_offset(adapted, "linear2", Offset(torch.tensor([0.5, 0, -1])))
    base = compute_predictions(remove_lora(copy.deepcopy(adapted)), batches())
    points = [BASE, Point(0.3, 2.0), None, Point(1.0)]
    table = compute_predictions_at(adapted, batches(), points)
    assert lora_point(adapted).scale == 0.5
    for place, point in enumerate(points):
        scale, offset = point or (0.5, 0)
        set_lora_scale(adapted, scale)
        set_lora_offset(adapted, offset)
        alone = compute_predictions(adapted, batches())
        for column in ("prediction", "probability", "loss"):
            assert torch.equal(getattr(table, column)[place], getattr(alone, column)[1])
        known = compute_predictions(adapted, batches(), base)
        assert torch.equal(known.probability, alone.probability)
    assert len({tuple(row.tolist()) for row in table.probability}) == 4
    with pytest.raises(RuntimeError):  # images of another size
        compute_predictions_at(adapted, [(torch.zeros(1, 7), torch.zeros(1).long())], [BASE])
    assert lora_point(adapted) == Point(1.0)
