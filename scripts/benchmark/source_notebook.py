"""The source notebook, cell by cell, as a reference for the benchmark and the tests.

    python scripts/benchmark/source_notebook.py --seeds 0 1 2   # its numbers beside ours

Prints a Markdown table and takes about two minutes a seed on two cores. The notebook takes most of
them: it transforms images one by one, has Adam go parameter by parameter, builds the
dense ``W + B @ A`` at every access, and loops over the rows of each test batch in Python.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torchvision.datasets as datasets
import torchvision.transforms as transforms
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader

PROJECT = Path(__file__).resolve().parents[2]

DIGIT = 9


class RichBoyNet(nn.Module):
    """The notebook's network: (N, 1, 28, 28) or (N, 784) to logits, (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Linear(28 * 28, 1000)
        self.linear2 = nn.Linear(1000, 2000)
        self.linear3 = nn.Linear(2000, 10)
        self.relu = nn.ReLU()

    def forward(self, img: Tensor) -> Tensor:
        x = img.view(-1, 28 * 28)
        x = self.relu(self.linear1(x))
        x = self.relu(self.linear2(x))
        logits: Tensor = self.linear3(x)
        return logits


class DenseLoRA(nn.Module):
    """The notebook's parametrization: ``W + scale * (B @ A)``, in full size, at every access."""

    def __init__(self, weight: Tensor, rank: int = 1, alpha: float = 1) -> None:
        super().__init__()
        features_in, features_out = weight.shape  # the notebook's names, the wrong way round
        self.lora_A = nn.Parameter(torch.zeros((rank, features_out)))
        self.lora_B = nn.Parameter(torch.zeros((features_in, rank)))
        nn.init.normal_(self.lora_A, mean=0, std=1)
        self.scale = alpha / rank
        self.enabled = True

    def forward(self, weight: Tensor) -> Tensor:
        if not self.enabled:
            return weight
        return weight + torch.matmul(self.lora_B, self.lora_A).view(weight.shape) * self.scale


def load(train: bool) -> datasets.MNIST:
    """MNIST with the notebook's transforms, image by image."""
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    return datasets.MNIST(PROJECT / "data", train=train, download=True, transform=transform)


def loader(dataset: datasets.MNIST) -> DataLoader[Any]:
    """Return the notebook's only kind of loader: batches of 10, shuffled."""
    return DataLoader(dataset, batch_size=10, shuffle=True)


def only(dataset: datasets.MNIST, digit: int) -> datasets.MNIST:
    """Drop the images of every other digit, in place."""
    chosen = dataset.targets == digit
    dataset.data, dataset.targets = dataset.data[chosen], dataset.targets[chosen]
    return dataset


def fit(batches: DataLoader[Any], net: nn.Module, limit: int | None = None) -> None:
    """Train for one epoch, or for ``limit`` batches of it."""
    cross_entropy = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
    net.train()
    loss_sum = 0.0
    for iteration, (x, y) in enumerate(batches, start=1):
        optimizer.zero_grad()
        loss = cross_entropy(net(x.view(-1, 28 * 28)), y)
        loss_sum += loss.item()
        loss.backward()
        optimizer.step()
        if iteration == limit:
            return


def count_errors(batches: DataLoader[Any], net: nn.Module) -> list[int]:
    """Errors of each digit from 0 to 9, counted row by row."""
    wrong_counts = [0 for _ in range(10)]
    with torch.no_grad():
        for x, y in batches:
            output = net(x.view(-1, 784))
            for idx, i in enumerate(output):
                if torch.argmax(i) != y[idx]:
                    wrong_counts[y[idx]] += 1
    return wrong_counts


def add_dense_lora(net: RichBoyNet) -> None:
    """Parametrize the three layers and freeze the rest."""
    for layer in (net.linear1, net.linear2, net.linear3):
        parametrize.register_parametrization(layer, "weight", DenseLoRA(layer.weight))
    for name, parameter in net.named_parameters():
        if "lora" not in name:
            parameter.requires_grad = False


def set_lora_enabled(net: RichBoyNet, enabled: bool) -> None:
    """Switch the adapter on or off."""
    for layer in (net.linear1, net.linear2, net.linear3):
        layer.parametrizations["weight"][0].enabled = enabled  # type: ignore[index,union-attr]


# --- the notebook beside this project ------------------------------------------------------------


def run_notebook(seed: int) -> tuple[list[int], list[int]]:
    """Errors of each digit before and after fine-tuning on the nines, cell by cell."""
    torch.manual_seed(seed)
    net = RichBoyNet()
    train_loader, test_loader = loader(load(train=True)), loader(load(train=False))
    fit(train_loader, net)
    before = count_errors(test_loader, net)
    add_dense_lora(net)
    fit(loader(only(load(train=True), DIGIT)), net, limit=100)
    after = count_errors(loader(load(train=False)), net)
    set_lora_enabled(net, False)
    assert count_errors(test_loader, net) == before
    return before, after


def run_ours(seed: int) -> tuple[list[int], list[int]]:
    """Run both stages through ``train.py experiment=notebook``, and return the same."""
    with TemporaryDirectory() as folder:
        for stage in ("pretrain", "lora"):
            overrides = f"stage={stage} experiment=notebook seed={seed}".split()
            folders = [f"paths.outputs={folder}", f"hydra.run.dir={folder}/{stage}"]
            command = [sys.executable, "train.py", *overrides, *folders]
            subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
        results = json.loads(Path(folder, "lora", "results.json").read_text())
    return results["test_base"]["errors_per_class"], results["test"]["errors_per_class"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    print("| seed | | accuracy before | after | errors on 9 before | after |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for seed in parser.parse_args().seeds:
        for name, run in (("notebook", run_notebook), ("ours", run_ours)):
            before, after = run(seed)
            accuracies = [f"{1 - sum(errors) / 10_000:.4f}" for errors in (before, after)]
            cells = [seed, name, *accuracies, before[DIGIT], after[DIGIT]]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
