"""A network of somebody's own."""

from torch import Tensor, nn


class Net(nn.Module):
    """Convolutions with batch normalization, from images, (N, 3, H, W), to logits, (N, 10)."""

    def __init__(self, width: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *block(3, width), *block(width, 2 * width), *block(2 * width, 4 * width)
        )
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).amax(dim=(2, 3)))


def block(inputs: int, outputs: int) -> list[nn.Module]:
    """Return a convolution with its activation; it halves height and width."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
