"""The networks that people have, saved as their users save them, through files and commands.

All of them are tried each night; every day, five small ones.
"""

from itertools import product

import pytest
import torch
from helpers.known_networks import NETWORKS
from helpers.nets import randomize
from helpers.stranger import CLASSES, take_pictures
from torch import nn

from lora_mnist import Classifier, add_lora, lora_disabled, lora_parameters
from lora_mnist.classifier.build import build_network
from lora_mnist.lora.base_state import base_state_dict, changed_tensors

ALL = "the extra all is not installed"
#: One in each form.
DAILY = (
    *("torchvision resnet18", "torchvision mobilenet_v3_small", "torchvision squeezenet1_1"),
    *("timm convnext_atto", "timm vit_tiny_patch16_224"),
)


def lightning(net):
    module = nn.ModuleDict({"net": net, "loss": nn.CrossEntropyLoss(torch.ones(3))})
    scores = {"ModelCheckpoint{}": {"best_model_score": torch.ones(())}}
    return {"epoch": 3, "state_dict": module.state_dict(), "callbacks": scores}


def with_average(net):
    moved = {name: tensor + 1 for name, tensor in net.state_dict().items()}
    return {"model": moved, "model_ema": net.state_dict(), "optimizer": {"state": {}}}


#: What is saved of a network, by how.
FORMS = {
    "plain": lambda net: net.state_dict(),
    "checkpoint": lambda net: {"model": net.state_dict(), "epoch": 3},
    "parallel": lambda net: nn.DataParallel(net).state_dict(),
    "lightning": lightning,
    "average": with_average,
}


def cases():
    """Each network in each form."""
    daily = [*zip(DAILY, FORMS, strict=True)]
    for name, form in product(NETWORKS, FORMS):
        is_daily = (name, form) in daily
        yield pytest.param(name, form, marks=[] if is_daily else pytest.mark.nightly)


def network(name):
    """A network without a user's weights, for three classes, and its settings."""
    if name.startswith("timm"):
        pytest.importorskip("timm", reason=ALL)
    torch.manual_seed(0)
    settings = {**NETWORKS[name], "num_classes": len(CLASSES)}
    return build_network(settings), settings


@pytest.mark.parametrize(("name", "form"), [*cases()])
def test_a_network_is_loaded_evaluated_and_given_an_adapter(name, form, tmp_path):
    mine, settings = network(name)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        mine.train()(x)  # for the statistics
        expected = mine.eval()(x)
    torch.save(FORMS[form](mine), tmp_path / "mine.pt")
    take_pictures(tmp_path / "photos", dict.fromkeys(CLASSES, 1), (64, 64))
    classifier = Classifier.load(
        base=tmp_path / "mine.pt",
        net=settings,
        prepare={"image_size": 64, "mean": 0.5, "std": 0.5},
        data={"_target_": "lora_mnist.data.Folder", "data_dir": str(tmp_path / "photos")},
        base_prefix="model_ema." if form == "average" else None,
    )
    classifier.check_network()
    net = classifier.net
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)  # of another layout
        expected = net(x)
    add_lora(net).train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in lora_parameters(net))
    randomize(net.eval())
    with torch.no_grad():
        assert not torch.equal(net(x), expected)
        with lora_disabled(net):
            assert torch.equal(net(x), expected)
    assert changed_tensors(mine.state_dict(), base_state_dict(net)) == []
