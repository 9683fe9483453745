import torch
from torch import nn

from lora_mnist import CNN, MLP


def test_sizes_and_forward() -> None:
    net = MLP(in_features=12, hidden_sizes=[5, 7, 4], num_classes=3)
    shapes = [tuple(m.weight.shape) for m in net.children() if isinstance(m, nn.Linear)]
    assert shapes == [(5, 12), (7, 5), (4, 7), (3, 4)]
    images = torch.randn(2, 1, 3, 4)
    hidden = images.reshape(2, 12)
    for layer in (net.linear1, net.linear2, net.linear3):
        hidden = torch.relu(layer(hidden))
    assert torch.equal(net(images), net.linear4(hidden))


def test_sizes_and_forward_of_the_cnn() -> None:
    net = CNN(in_channels=2, channels=[3, 5], image_size=9, num_classes=4)
    shapes = [tuple(m.weight.shape) for m in net.children() if hasattr(m, "weight")]
    assert shapes == [(3, 2, 3, 3), (5, 3, 3, 3), (4, 5 * 2 * 2)]
    images = torch.randn(2, 2, 9, 9)
    hidden = nn.functional.max_pool2d(torch.relu(net.conv1(images)), 2)
    hidden = nn.functional.max_pool2d(torch.relu(net.conv2(hidden)), 2)
    assert torch.equal(net(images), net.linear1(hidden.flatten(1)))
    assert sum(p.numel() for p in CNN().parameters()) == 20_490
