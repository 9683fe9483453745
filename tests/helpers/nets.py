"""Networks small enough to be understood by eye, and adapters on them."""

import random

import numpy
import torch
import torchvision
from torch import nn

from lora_mnist import MLP
from lora_mnist.lora.model import lora_parameters


class Noisy(MLP):
    """Draws from the generators of Python, NumPy and torch while it trains."""

    def forward(self, x):
        noise = random.random() + numpy.random.rand() + torch.rand(1) if self.training else 1
        return noise * super().forward(x)


class Counting(MLP):
    """Counts its calls in a buffer."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class TinyNet(nn.Module):
    """Two linear layers with biases, in the shape of the real one."""

    def __init__(self):
        super().__init__()
        self.linear1 = nn.Linear(6, 5)
        self.linear2 = nn.Linear(5, 3)

    def forward(self, x):
        return self.linear2(torch.relu(self.linear1(x)))


class ConvNet(nn.Module):
    """Convolutions of several geometries, one name the end of another, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 3, (3, 2), stride=2), nn.ReLU())
        self.block.add_module("conv", nn.Conv2d(3, 5, 1, bias=False))
        self.linear = nn.Linear(5 * 9, 4)

    def forward(self, x):
        return self.linear(self.block(torch.relu(self.conv(x))).flatten(1))


class Encoder(nn.Module):
    """A transformer that classifies sequences of tokens."""

    def __init__(self, **options):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, dim_feedforward=24, dropout=0.3, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))


class First(nn.Module):
    """The output of a recurrent layer without its state, or of attention to another sequence."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        is_attention = isinstance(self.layer, nn.MultiheadAttention)
        return self.layer(*((x, x[..., :5], x[..., :5]) if is_attention else (x,)))[0]


class Shifted(nn.Linear):
    """A layer with a forward of its own."""

    def forward(self, x):
        return super().forward(x) + 1


def recurrent(kind, **options):
    """A recurrent network on sequences of tokens."""
    embed = nn.Embedding(20, 8, padding_idx=0)
    rnn = First(kind(8, 6, num_layers=2, batch_first=True, dropout=0.3, **options))
    return nn.Sequential(embed, rnn, nn.BatchNorm1d(7), nn.LazyLinear(4))


#: Networks, and the shape of their images where they take no tokens.
NETWORKS = {
    "linear": (TinyNet, (5, 6)),
    "convolutions": (ConvNet, (6, 1, 8, 7)),
    "mobilenet_v2": (
        lambda: torchvision.models.MobileNetV2(5, 0.25, [[1, 16, 1, 1], [6, 24, 2, 2]]),
        (2, 3, 32, 32),
    ),
    "encoder": (lambda: Encoder(nhead=2, batch_first=True), None),
    "attention_to_others": (
        lambda: First(nn.MultiheadAttention(8, 2, kdim=5, vdim=5, batch_first=True)),
        (2, 3, 8),
    ),
    "lstm": (lambda: recurrent(nn.LSTM, bidirectional=True), None),
    "embedding": (lambda: nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 3)), None),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 5, 3, padding=1)), (2, 3, 9)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "own_forward": (lambda: Shifted(6, 2), (4, 6)),
    "one_layer_under_two_names": (lambda: nn.Sequential(*[nn.Linear(6, 6)] * 2), (4, 6)),
}


def made(name, dtype=torch.float32):
    """A network and its input, the same every time."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    net = make()
    x = torch.randint(1, 20, (5, 7)) if shape is None else torch.randn(shape)
    with torch.no_grad():
        for _ in range(5):
            net(x)  # for the statistics
    return net.to(dtype).eval(), x if shape is None else x.to(dtype)


def randomize(model):
    """Give lora_B values, so that the adapters change something."""
    for parameter in lora_parameters(model):
        nn.init.normal_(parameter, std=0.5)
    return model
