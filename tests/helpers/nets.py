"""Networks small enough to be understood by eye, and adapters on them."""

from collections import OrderedDict

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.v2.functional import pil_to_tensor

from lora_mnist import MLP


class Counting(MLP):
    """Counts its calls in a buffer."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class FrozenMLP(MLP):
    """As its maker hands it out."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.requires_grad_(False)


class TinyNet(nn.Module):
    """Two linear layers with biases, in the shape of the real one."""

    def __init__(self):
        super().__init__()
        self.linear1 = nn.Linear(6, 5)
        self.linear2 = nn.Linear(5, 3)

    def forward(self, x):
        return self.linear2(torch.relu(self.linear1(x)))


def batches():
    """Fifty images for TinyNet and their labels, in batches of 16; none is of class 2."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(50, 6, generator=generator)
    labels = torch.randint(0, 2, (50,), generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size=16)


def convolutions():
    """Convolutions of several geometries, one name the end of another, and a linear layer."""
    block = nn.Sequential(nn.Conv2d(4, 3, (3, 2), stride=2), nn.ReLU())
    block.add_module("conv", nn.Conv2d(3, 5, 1, bias=False))
    layers = {"conv": nn.Conv2d(1, 4, 3, padding=1), "relu": nn.ReLU(), "block": block}
    layers |= {"flatten": nn.Flatten(), "linear": nn.Linear(5 * 9, 4)}
    return nn.Sequential(OrderedDict(layers))


def encoder():
    """A transformer on sequences of tokens."""
    layer = nn.TransformerEncoderLayer(16, 2, dim_feedforward=24, dropout=0.3, batch_first=True)
    layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(20, 16), layers, nn.Linear(16, 4))


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


def lstm():
    """A recurrent network on sequences of tokens."""
    rnn = nn.LSTM(8, 6, num_layers=2, batch_first=True, dropout=0.3, bidirectional=True)
    embed = nn.Embedding(20, 8, padding_idx=0)
    return nn.Sequential(embed, First(rnn), nn.BatchNorm1d(7), nn.Linear(12, 4))


#: Networks, and the shape of their images where they take no tokens.
NETWORKS = {
    "linear": (TinyNet, (5, 6)),
    "convolutions": (convolutions, (6, 1, 8, 7)),
    "mobilenet_v2": (
        lambda: torchvision.models.MobileNetV2(5, 0.25, [[1, 16, 1, 1], [6, 24, 2, 2]]),
        (2, 3, 32, 32),
    ),
    "encoder": (encoder, None),
    "attention_to_others": (
        lambda: First(nn.MultiheadAttention(8, 2, kdim=5, vdim=5, batch_first=True)),
        (2, 3, 8),
    ),
    "lstm": (lstm, None),
    "embedding": (lambda: nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 3)), None),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 5, 3, padding=1)), (2, 3, 9)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "own_forward": (lambda: Shifted(6, 2), (4, 6)),
    "one_layer_under_two_names": (lambda: nn.Sequential(*[nn.Linear(6, 6)] * 2), (4, 6)),
}


def made(name):
    """A network and its input, the same every time."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    net = make()
    x = torch.randint(1, 20, (5, 7)) if shape is None else torch.randn(shape)
    with torch.no_grad():
        for _ in range(5):
            net(x)  # for the statistics
    return net.eval(), x


def randomize(model):
    """Give the adapters, ours or PEFT's, values that change something."""
    for name, parameter in model.named_parameters():
        is_ours = "parametrizations" in name and "original" not in name
        if is_ours or "lora_" in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def as_floats(picture):
    """A picture's pixels from 0 to 1: a preparation of one's own, so images stay on the disk."""
    return pil_to_tensor(picture) / 255
