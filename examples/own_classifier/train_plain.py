"""Train the network on photos/train and save its weights: plain PyTorch, as anybody's script."""

import torch
from my_nets import Net
from torch.nn.functional import cross_entropy
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2.functional import pil_to_tensor

# When this network was trained there were few eights; the others have been collected since.
FEW = 30


def main() -> None:
    """Train for eight epochs and write mine.pt."""
    torch.manual_seed(0)
    folder = ImageFolder("photos/train", pil_to_tensor)
    images = torch.stack([image for image, _ in folder]) / 255
    labels = torch.tensor(folder.targets)
    mean, std = images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3))
    images = (images - mean[:, None, None]) / std[:, None, None]

    is_eight = labels == folder.class_to_idx["eight"]
    kept = (~is_eight | (is_eight.cumsum(0) <= FEW)).nonzero().flatten()
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for epoch in range(8):
        for batch in kept[torch.randperm(len(kept))].split(50):
            optimizer.zero_grad()
            loss = cross_entropy(net(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}")
    torch.save(net.state_dict(), "mine.pt")


if __name__ == "__main__":
    main()
