"""The networks of this project; networks of your own are made alike."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from lora_mnist.errors import require


class MLP(nn.Sequential):
    """Fully connected classifier with ReLU between its layers, ``linear1`` to ``linearN``.

    Images, (N, ...) with ``in_features`` values each, give logits, (N, num_classes). With the
    default sizes it is the notebook's ``RichBoyNet``: 784-1000-2000-10, 2,807,010 parameters, far
    larger than the task needs, so that LoRA is small by comparison.

    Args:
        in_features: number of input values per image, all dimensions but the first.
        hidden_sizes: width of each hidden layer.
        num_classes: number of logits.
    """

    def __init__(
        self,
        in_features: int = 28 * 28,
        hidden_sizes: Sequence[int] = (1000, 2000),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        sizes = [in_features, *hidden_sizes, num_classes]
        for number, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
            if number > 1:
                self.add_module(f"relu{number - 1}", nn.ReLU())
            self.add_module(f"linear{number}", nn.Linear(fan_in, fan_out))


class CNN(nn.Sequential):
    """Convolutional classifier: ``conv1`` to ``convN`` with ReLU and pooling, then ``linear1``.

    Images, (N, in_channels, image_size, image_size), give logits, (N, num_classes). Each
    convolution is 3x3 with padding, each max-pooling 2x2. With the default sizes it has 20,490
    parameters, and is the better classifier; it shows that nothing here is tied to the MLP.

    Args:
        in_channels: channels of the images.
        channels: output channels of each convolution.
        image_size: height and width of the images, at least ``2 ** len(channels)``.
        num_classes: number of logits.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32),
        image_size: int = 28,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        for number, (fan_in, fan_out) in enumerate(pairwise([in_channels, *channels]), start=1):
            self.add_module(f"conv{number}", nn.Conv2d(fan_in, fan_out, 3, padding=1))
            self.add_module(f"relu{number}", nn.ReLU())
            self.add_module(f"pool{number}", nn.MaxPool2d(2))
        side = image_size >> len(channels)  # pooling rounds down
        self.flatten = nn.Flatten()
        self.linear1 = nn.Linear(channels[-1] * side * side, num_classes)


class ResNet(nn.Sequential):
    """Residual network for small images: He et al. 2016, arXiv:1512.03385, section 4.2.

    Images, (N, in_channels, height, width), give logits, (N, num_classes). The layers are ``conv1``
    and ``bn1``, three stages of blocks of 16, 32 and 64 channels, ``block1`` to ``blockN``, and,
    after the mean of each channel, ``linear1``. With the default sizes it has 269,722 parameters.

    Args:
        depth: number of layers with weights, ``6 n + 2`` for ``n`` blocks a stage.
        in_channels: channels of the images.
        num_classes: number of logits.
    """

    def __init__(self, depth: int = 20, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        require(blocks > 0 and rest == 0, "depth", depth, "6 n + 2, such as 20, 32 or 56")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu1 = nn.ReLU()
        channels = [16] * (blocks + 1) + [32] * blocks + [64] * blocks
        for number, (fan_in, fan_out) in enumerate(pairwise(channels), start=1):
            self.add_module(f"block{number}", _Block(fan_in, fan_out))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear1 = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)


class _Block(nn.Module):
    """Two convolutions with a shortcut; where they double the channels, they halve the size."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.stride, self.added = fan_out // fan_in, fan_out - fan_in
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out)

    def forward(self, images: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(images)).relu()))
        # The paper's option A: new channels get zeros, and no weights.
        shortcut = images[:, :, :: self.stride, :: self.stride]
        total: Tensor = out + F.pad(shortcut, (0, 0, 0, 0, 0, self.added))
        return total.relu()


#: Our networks, by the names that configurations and records have; the first is the default.
NETWORKS = {f"lora_mnist.{each.__name__}": each for each in (MLP, CNN, ResNet)}
DEFAULT = next(iter(NETWORKS))
