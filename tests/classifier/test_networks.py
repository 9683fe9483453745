"""The networks of ours."""

import torch
from helpers.commands import refused
from torch import nn

from lora_mnist import CNN, MLP, ResNet
from lora_mnist.classifier.build import build_network


def test_networks_have_the_documented_sizes():
    """The MLP is the notebook's."""
    assert MLP().linear2.weight.shape == (2000, 1000)
    for net, count in ((MLP(), 2_807_010), (CNN(), 20_490)):
        assert sum(parameter.numel() for parameter in net.parameters()) == count
        assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_resnet_is_the_papers():
    """Its table 6 names 0.27 and 0.46 million weights; doubled channels halve the image."""
    for depth, count in ((20, 269_722), (32, 464_154)):
        net = ResNet(depth).eval()
        assert sum(parameter.numel() for parameter in net.parameters()) == count
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    images = torch.rand(2, 16, 8, 8)
    block = ResNet(8).eval().block2
    nn.init.zeros_(block.bn2.weight)
    assert torch.equal(block(images)[:, :16], images[:, :, ::2, ::2])
    assert not block(images)[:, 16:].any()
    assert refused(build_network, {"_target_": "lora_mnist.ResNet", "depth": 21}).endswith(
        "depth=21: expected 6 n + 2, such as 20, 32 or 56"
    )
