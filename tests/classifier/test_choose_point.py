"""How a point comes to be: set, saved, or advised by validation images."""

import pytest
import torch

from lora_mnist import add_lora, remove_lora
from lora_mnist.classifier.choose_point import PointSearch, apply_point
from lora_mnist.classifier.classifier import Classifier
from lora_mnist.classifier.record import Record
from lora_mnist.data import ImageDataset, Images, ImageSets
from lora_mnist.errors import UserError
from lora_mnist.lora.model import add_offset, lora_point
from lora_mnist.lora.offset import Offset
from lora_mnist.lora.point import Point
from lora_mnist.lora.weight import lora_adapters
from lora_mnist.measure.scale_curve import row_at


@pytest.fixture
def classifier(tmp_path):
    """A cat, a dog and an owl, all of which are cats to the base; its adapter is to repair owls."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, 1, 1], [0, 0, 0], [0, 0, 0]]))  # all are cats
        net[1].bias.zero_()
    add_lora(net.eval())
    add_offset(net, "1", Offset(torch.tensor([0.0, 0, 1])))
    images = Images(255 * torch.eye(3, dtype=torch.uint8).view(3, 1, 1, 3), torch.arange(3))
    dataset = ImageDataset("toy", ["cat", "dog", "owl"], 1, mean=0, std=1)
    dataset.sets = ImageSets(images, images, images, {}, {})
    return Classifier(net, dataset, {}, adapter=tmp_path, record=Record(targets=["owl"]))


def test_scale_auto_asks_the_rule_of_training(classifier):
    """An offset, too, unless it is set; and where neither helps, both are the base's."""
    net, (adapter,) = classifier.net, lora_adapters(classifier.net)
    net.to = lambda *_: pytest.fail("it was moved from where its user put it")

    def choose(scale=None, offset=None):
        return apply_point(classifier, {"scale": scale, "offset": offset})["point"]

    def move(scale=None, offset=None):
        return [*choose(scale, offset).value.values()]

    def codes(scale, offset=None):
        return [reason.code for reason in choose(scale, offset).reasons]

    with torch.no_grad():  # owls are known again
        adapter.lora_A.copy_(torch.tensor([[0.0, 0, 1]]))
        adapter.lora_B.copy_(torch.tensor([[0.0], [0], [30]]))
    scale, offset = move("auto", 0)
    assert scale > 0.2
    assert offset == 0
    scale, offset = move("auto")
    assert scale > 0.2
    assert abs(offset) < 12
    with torch.no_grad():  # cats are owls
        adapter.lora_A.copy_(torch.tensor([[1.0, 0, 0]]))
        adapter.lora_B.copy_(torch.tensor([[0.0], [0], [30]]))
    assert move("auto", 0) == [0.0, 0.0]
    assert move(1, 0) == [1.0, 0.0]
    assert move(1)[0] == 1.0
    assert lora_point(net) == Point(1.0, 0.0)
    assert move(None, 2.5) == [1.0, 2.5]
    classifier.record = Record(targets=["owl"], made={"refit": True})
    assert move(0.5, "auto") == [0.5, 2.5]  # nothing is advised; what is set stays
    assert codes(1, "auto") == ["asked", "trained_on_validation_images"]
    assert move(0) == [0.0, 2.5]
    assert "offset_alone" in codes(0)  # it is not off
    assert move(0, 0) == [0.0, 0.0]
    assert "offset_alone" not in codes(0, 0)
    with pytest.raises(UserError, match=r"offset=3: expected null, since the adapter has none"):
        classifier.net = add_lora(torch.nn.Linear(3, 3))
        apply_point(classifier, {"scale": None, "offset": 3})


def test_an_offset_alone_is_kept_at_scale_1(classifier):
    remove_lora(classifier.net)
    add_offset(classifier.net, "1", Offset(torch.tensor([0.0, 0, 1])))
    apply_point(classifier, {"scale": None, "offset": 1.5})
    for scale in (None, 0, 1):
        choice = apply_point(classifier, {"scale": scale, "offset": None})["point"]
        assert choice.value == {"scale": 0.0, "offset": 1.5}
    with pytest.raises(UserError, match=r"scale=0\.5: expected null"):
        apply_point(classifier, {"scale": 0.5, "offset": None})


def test_a_scale_that_is_set_has_the_best_offset_there(classifier):
    search = PointSearch(classifier, classifier.images.val, [2], 0, "accuracy")
    point, curve = search.advise({"scale": 0.3, "offset": "auto"})
    assert point == (0.3, row_at(curve, 0.3)["offset"])
    point, curve = search.advise({"scale": "auto", "offset": 0.5})
    assert {point.offset, *(row["offset"] for row in curve["rows"])} == {0.5}
    assert row_at(curve, point.scale) == max(curve["rows"], key=lambda row: row["score"])
    point, curve = search.advise({"scale": 0.3, "offset": 0.5}, scales=())
    assert (point, len(curve["rows"])) == ((0.3, 0.5), 1)
