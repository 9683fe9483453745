"""Loops beside this project's commands; each prints its steps or images a second.

python scripts/benchmark/loops.py notebook pretrain     # the source notebook's own loop
python scripts/benchmark/loops.py notebook lora
python scripts/benchmark/loops.py lora --batch 10       # our adapter, PEFT's: the least loop
python scripts/benchmark/loops.py peft --batch 10
python scripts/benchmark/loops.py evaluate resnet18 224 mine.pt photos/val photos/test
"""

import argparse
import time
from collections.abc import Iterable
from pathlib import Path

import numpy
import source_notebook
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn

from lora_mnist import MLP, add_lora


def train(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the steps a second, after the first, of the least loop that trains ``net``."""
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    ends = []
    for images, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        ends.append(time.perf_counter())
    return (len(ends) - 1) / (ends[-1] - ends[0])


def notebook(stage: str, steps: int) -> float:
    """Return the steps a second in the notebook."""
    net, images = source_notebook.RichBoyNet(), source_notebook.load(train=True)
    if stage == "lora":
        source_notebook.add_dense_lora(net)
        images = source_notebook.only(images, source_notebook.DIGIT)
    started = time.perf_counter()
    source_notebook.fit(source_notebook.loader(images), net, limit=steps)
    return steps / (time.perf_counter() - started)


def adapter(package: str, batch: int, steps: int) -> float:
    """Return the steps a second with an adapter of rank 1 on all layers, images in memory."""
    dataset = source_notebook.load(train=True)
    pixels = (dataset.data[:10_000].unsqueeze(1) / 255 - 0.1307) / 0.3081
    chosen = torch.randint(len(pixels), (steps, batch))
    batches = [(pixels[index], dataset.targets[index]) for index in chosen]
    net: nn.Module = MLP()
    if package == "peft":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=1, lora_alpha=1, target_modules=["linear1", "linear2", "linear3"])
        net = get_peft_model(net, config)
    else:
        add_lora(net)
    return train(net, batches)


@torch.inference_mode()
def evaluate(name: str, side: str, weights: str, *folders: str) -> None:
    """Count the errors of a torchvision network of ten classes on pictures, 50 at a time."""
    size, errors = (int(side), int(side)), 0
    net = getattr(torchvision.models, name)(num_classes=10).eval()
    net.load_state_dict(torch.load(weights, weights_only=True))
    classes = [path for folder in folders for path in sorted(Path(folder).iterdir())]
    for place, of_class in enumerate(classes):
        files = sorted(of_class.iterdir())
        for start in range(0, len(files), 50):
            pictures = [Image.open(file).resize(size) for file in files[start : start + 50]]
            pixels = torch.from_numpy(numpy.stack([numpy.asarray(each) for each in pictures]))
            images = (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
            errors += int((net(images).argmax(1) != place % 10).sum())
    print(f"{errors} errors")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    loops = ("notebook", "lora", "peft", "evaluate")
    parser.add_argument("loop", choices=loops)
    parser.add_argument("what", nargs="*", help="of notebook: pretrain or lora; of evaluate: above")
    parser.add_argument("--batch", type=int, default=10, help="images a step")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.loop == "evaluate":
        evaluate(*arguments.what)
    elif arguments.loop == "notebook":
        print(f"measured: {notebook(arguments.what[0], arguments.steps)}")
    else:
        print(f"measured: {adapter(arguments.loop, arguments.batch, arguments.steps)}")


if __name__ == "__main__":
    main()
