"""Tasks that are not MNIST's MLP: small networks, and folders of pictures made from what is there.

``net=custom net._target_=tasks.ResNet`` finds a network here. Fashion-MNIST is in Debian's package
dataset-fashion-mnist, the digits are scikit-learn's.
"""

from collections.abc import Callable
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from jobs import OUTPUT, Base, Results, composed, count_test_errors
from PIL import Image
from torch import Tensor, nn

from lora_mnist.data import Batch, ImageDataModule, Images, make_data


class ResNet(nn.Module):
    """Three residual blocks with batch normalisation, and dropout before the last layer."""

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList()
        self.blocks = nn.ModuleList()
        for level in range(3):
            channels = width * 2**level
            self.down.append(nn.Conv2d(channels // (2 if level else 1), channels, 2, 2))
            block = []
            for _ in range(2):
                convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
                block += [nn.BatchNorm2d(channels), nn.ReLU(), convolution]
            self.blocks.append(nn.Sequential(*block))
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for down, block in zip(self.down, self.blocks, strict=True):
            x = down(x)
            x = x + block(x)
        logits: Tensor = self.head(self.dropout(x.relu().mean((2, 3))))
        return logits


class ViT(nn.Module):
    """A vision transformer: patches of 7x7 pixels, two layers, the mean of the patches."""

    def __init__(self, width: int = 64, num_classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 7, 7)
        self.position = nn.Parameter(0.02 * torch.randn(16, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.encoder(patches + self.position).mean(1))
        return logits


def clothes() -> None:
    """5,000 pictures of Fashion-MNIST in colours, with noise; 2,000 of them to test on."""
    data = make_data(composed(["stage=lora", "data=fashion_mnist"]), "fit")
    images, labels = data.train_set.take(list(range(5000)))
    generator = numpy.random.default_rng(0)
    front = generator.uniform(0.3, 1, (5000, 1, 1, 3))
    back = generator.uniform(0, 0.4, (5000, 1, 1, 3))
    grey = images[:, 0, :, :, None].numpy() / 255
    _write("clothes", grey * front + (1 - grey) * back, labels, noise=0.08, test=2000)


def digits() -> None:
    """scikit-learn's 1,797 digits, 8x8 pixels, with noise; 800 of them to test on."""
    from sklearn.datasets import load_digits  # late: nothing else here needs it

    images, labels = load_digits(return_X_y=True)
    _write("digits", images.reshape(-1, 8, 8) / 16, labels, noise=0.2, test=800)


def _write(name: str, images: Any, labels: Any, noise: float, test: int) -> None:
    """Write pictures, on the scale 0 to 1, as a folder that ``data=folder`` reads."""
    folder = OUTPUT / name
    images = images + numpy.random.default_rng(1).normal(0, noise, images.shape)
    images = (255 * images.clip(0, 1)).astype("uint8")
    for number, label in enumerate(labels):
        place = folder / ("test" if number < test else "train") / str(int(label))
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number]).save(place / f"{number}.png")


#: What makes the pictures of a task.
PICTURES = {"clothes": clothes, "digits": digits}


# --- weighted fine-tuning in plain PyTorch --------------------------------------------------------


def fine_tune(net: nn.Module, loss_of_a_step: Callable[[], Tensor]) -> None:
    """What anybody would write: Adam on all weights, 100 steps, the rate falls from 1e-3 to 0."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)  # as docs/repair.md's full fine-tuning
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=100)
    for _ in range(100):
        optimizer.zero_grad()
        loss_of_a_step().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()


def sample(images: Images, count: int, data: ImageDataModule) -> Batch:
    """``count`` of the ``images``, normalised, and their labels."""
    batch, labels = images.take(torch.randint(len(images), (count,)).tolist())
    return data.normalise(batch), labels


def weighted_fine_tuning(base: Base, digit: int, weight: int) -> Results:
    """Fine-tuning with one class some times as heavy; what was counted on the test images."""
    cfg, net = base.load()
    data = make_data(cfg, "fit")
    weights = torch.ones(len(data.classes))
    weights[digit] = weight

    def loss() -> Tensor:
        images, labels = sample(data.train_set, 100, data)
        return F.cross_entropy(net(images), labels, weight=weights)

    torch.manual_seed(0)
    fine_tune(net.train(), loss)
    trainable = sum(p.numel() for p in net.parameters())
    return {"test": count_test_errors(cfg, net), "parameters": {"trainable": trainable}}
